"""A schema is enforced whole, or refused by the name and the path of what cannot be."""

from __future__ import annotations

import json

import jsonschema
import pytest

from freehold.core.errors import RequestError
from freehold.model.answer_grammar import json_schema_grammar
from freehold.model.grammar import Grammars
from freehold.model.grammar_schema import ANNOTATIONS, checked
from support.grammar_walk import NUM_TOKENS, Bytes, walk
from support.random_schemas import random_schema


@pytest.fixture(scope="module")
def grammars():
    return Grammars(Bytes(), NUM_TOKENS)


def inside(schema):
    return {"type": "object", "properties": {"a": {"type": "array", "items": schema}}}


@pytest.mark.parametrize(
    ("schema", "keyword"),
    [
        ({"not": {}}, "not"),
        ({"if": {}, "then": {}}, "if"),
        ({"type": "array", "uniqueItems": True}, "uniqueItems"),
        ({"type": "array", "uniqueItems": False}, "uniqueItems"),
        ({"type": "array", "contains": {}}, "contains"),
        ({"type": "array", "items": [{}]}, "items"),
        ({"type": "object", "propertyNames": {}}, "propertyNames"),
        ({"type": "object", "dependentRequired": {}}, "dependentRequired"),
        ({"type": "object", "unevaluatedProperties": False}, "unevaluatedProperties"),
        ({"type": "object", "minProperties": 2}, "minProperties"),
        ({"type": "string", "format": "color"}, "format"),
        ({"type": "string", "format": "float"}, "format"),
        ({"type": "string", "contentEncoding": "base64"}, "contentEncoding"),
        ({"type": "string", "pattern": "^(?=a)b"}, "pattern"),
        ({"type": "string", "pattern": "("}, "pattern"),
        ({"type": "string", "nullable": True}, "nullable"),
        ({"type": "text"}, "type"),
        ({"type": "string", "minLength": -1}, "minLength"),
        ({"type": "integer", "exclusiveMinimum": True}, "exclusiveMinimum"),
        ({"$ref": "https://example.com/schema"}, r"\$ref"),
        ({"$ref": "#/$defs/absent"}, r"\$ref"),
        ({"$ref": "other.json#/x"}, r"\$ref"),
        ({"$id": "x"}, r"\$id"),
        ({"enum": []}, "enum"),
        ({"required": "a"}, "required"),
        ({"x-guidance": {"lenient": True}}, "x-guidance"),
        ({"lenght": 5}, "lenght"),
    ],
)
def test_what_cannot_be_enforced_is_refused_by_keyword_and_path(schema, keyword):
    with pytest.raises(RequestError, match=rf"^reply\.properties\.a\.items\.{keyword}: ") as refused:
        checked(inside(schema), "reply")
    assert refused.value.field == "reply"


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ({"oneOf": [{"type": "number"}, {"type": "integer"}]}, "the keyword 'oneOf'"),
        ({"type": "object", "properties": {"b": {}}, "maxProperties": 2}, "maxProperties"),
    ],
)
def test_what_only_the_library_knows_is_refused_with_the_path(schema, message):
    with pytest.raises(RequestError, match=rf"^reply\.properties\.a\.items: .*{message}"):
        checked(inside(schema), "reply")


@pytest.mark.parametrize(
    "schema",
    [
        {"$ref": "#"},
        {"allOf": [{"$ref": "#"}]},
        {"anyOf": [{"type": "string"}, {"$ref": "#"}]},
        {"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"},
    ],
)
def test_a_schema_that_leads_back_to_itself_is_refused(schema):
    with pytest.raises(RequestError, match="leads back to itself"):
        checked(schema, "reply")


def test_a_schema_may_hold_itself():
    tree = {"type": "object", "properties": {"next": {"$ref": "#"}}}
    assert checked(tree, "reply") == tree


def test_a_schema_that_nothing_fits_is_refused():
    for impossible in (
        False,
        {"type": "integer", "minimum": 5, "maximum": 3},
        {"allOf": [{"type": "null"}, {"const": 1}]},
    ):
        with pytest.raises(RequestError, match=r"^reply: Unsatisfiable schema"):
            checked(impossible, "reply")


def test_annotations_restrict_nothing_and_are_left_out():
    noted = dict.fromkeys(ANNOTATIONS, "x") | {"type": "integer"}
    assert checked(inside(noted), "reply") == inside({"type": "integer"})


def test_a_member_may_be_called_like_a_keyword(grammars):
    schema = {
        "type": "object",
        "properties": {"not": {"type": "null"}, "title": {"type": "null"}},
        "required": ["not", "title"],
        "additionalProperties": False,
    }
    answer = walk(grammars, json_schema_grammar(schema), 0)
    assert json.loads(answer or "") == {"not": None, "title": None}


def test_schemas_that_are_no_schemas_are_refused():
    for wrong in (None, 5, "object", [{}]):
        with pytest.raises(RequestError, match="a schema is an object, true or false"):
            checked(wrong, "reply")


def test_random_walks_through_random_schemas_are_valid(grammars):
    num_whole = 0
    for seed in range(60):
        schema = random_schema(seed + 1000)
        answer = walk(grammars, json_schema_grammar(schema), seed)
        if answer is not None:
            jsonschema.validate(json.loads(answer), schema)
            num_whole += 1
    assert num_whole >= 57


def test_a_schema_that_refers_to_itself_is_followed(grammars):
    schema = {
        "$ref": "#/$defs/node",
        "$defs": {
            "node": {
                "type": "object",
                "properties": {"v": {"enum": [1, 2]}, "next": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]}},
                "required": ["v", "next"],
                "additionalProperties": False,
            }
        },
    }
    found = [answer for seed in range(20) if (answer := walk(grammars, json_schema_grammar(schema), seed))]
    assert len(found) >= 15
    assert any(answer.count("next") > 2 for answer in found)
    for answer in found:
        jsonschema.validate(json.loads(answer), schema)


def test_an_object_may_have_as_many_optional_properties_as_openai_takes(grammars):
    """Each of them may come next, and each is an item of the library's parser."""
    schema = {"type": "object", "properties": {f"p{i}": {"type": "string"} for i in range(5000)}}
    matcher = grammars.matcher(json_schema_grammar(schema))
    for byte in b'{"p7": "x", "p4999": ""}':
        assert byte in matcher.allowed()
        matcher.push(byte)
    assert matcher.may_end
