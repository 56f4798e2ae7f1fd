"""A schema that only endless JSON would fit is refused; one that anything fits never is."""

from __future__ import annotations

import itertools
import json
from functools import cache
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from freehold.core.errors import RequestError
from freehold.model.answer_grammar import PLAIN, AnswerShape, Tool, json_schema_grammar, tool_call_grammar
from freehold.model.grammar import Grammars
from freehold.model.grammar_finite import FiniteValues
from freehold.model.grammar_schema import checked, resolve
from support.grammar_walk import NUM_TOKENS, Bytes, walk

NAMES = ("n0", "n1", "n2")
REF = {"$ref": "#"}


def node(**more: Any) -> dict[str, Any]:
    return {"type": "object", "properties": {"a": REF}, "required": ["a"], **more}


@pytest.mark.parametrize(
    ("schema", "where"),
    [
        (node(), r"reply\.properties\.a"),
        ({"type": "array", "items": REF, "minItems": 1}, r"reply\.items"),
        ({"type": "array", "prefixItems": [{}, REF], "minItems": 2}, r"reply\.prefixItems\[1\]"),
        ({"type": "object", "additionalProperties": REF, "required": ["x"]}, r"reply\.additionalProperties"),
        ({"type": "object", "additionalProperties": REF, "minProperties": 1}, r"reply\.additionalProperties"),
        ({"type": "object", "required": ["a"], "allOf": [{"properties": {"a": REF}}]}, "reply"),
        (node(properties={"a": {"anyOf": [REF, {"type": "array", "items": REF, "minItems": 1}]}}), "reply"),
        ({"$ref": "#/$defs/t", "$defs": {"t": node(properties={"a": {"$ref": "#/$defs/t"}})}}, r"reply\.\$defs\.t"),
    ],
)
def test_what_only_endless_json_fits_is_refused_with_its_path(schema: Any, where: str) -> None:
    with pytest.raises(RequestError, match=rf"^{where}.*: no finite JSON fits it") as refused:
        checked(schema, "reply")
    assert refused.value.field == "reply"


@pytest.mark.parametrize(
    "schema",
    [
        node(required=[]),
        node(properties={"a": {"anyOf": [REF, {"type": "null"}]}}),
        node(type=["object", "null"]),
        {key: value for key, value in node().items() if key != "type"},  # anything that is no object fits
        {"type": "array", "items": REF},
        {"type": "array", "items": REF, "prefixItems": [{}], "minItems": 1},
        {"type": "object", "additionalProperties": REF},
        {"type": "object", "additionalProperties": {"type": ["object", "null"]}, "minProperties": 1},
    ],
)
def test_what_may_end_is_taken_as_it_is(schema: Any) -> None:
    assert checked(schema, "reply") == schema


def test_no_answer_goes_where_it_could_not_end() -> None:
    endless = node(properties={"a": {"$ref": "#/$defs/t"}}, additionalProperties=False)
    schema = {
        "type": "object",
        "properties": {"x": {"$ref": "#/$defs/t"}, "y": {"anyOf": [{"$ref": "#/$defs/t"}, {"const": 1}]}},
        "additionalProperties": False,
        "$defs": {"t": endless},
    }
    grammars = Grammars(Bytes(), NUM_TOKENS)
    for seed in range(20):
        found = walk(grammars, json_schema_grammar(schema), seed)
        assert found is not None
        assert json.loads(found) in ({}, {"y": 1})


def test_a_tool_s_endless_argument_may_be_anything() -> None:
    shape = AnswerShape("json_list", PLAIN.special_ids)
    grammar = tool_call_grammar(shape, [Tool("f", node(additionalProperties=False))])
    call = b'<tool_call>[{"name":"f","arguments":{"a":5}}]</tool_call>'
    assert walk(Grammars(Bytes(), NUM_TOKENS), grammar, 0, begin=call) == call.decode()
    with pytest.raises(RequestError, match="no finite JSON"):
        tool_call_grammar(shape, [Tool("f", node(), strict=True)])


# --- any schema ---------------------------------------------------------------------------------------------

references = st.sampled_from([{"$ref": f"#/$defs/{name}"} for name in NAMES])
objects = st.fixed_dictionaries(
    {"type": st.just("object")},
    optional={
        "properties": st.dictionaries(st.sampled_from("ab"), references, max_size=2),
        "required": st.lists(st.sampled_from("ab"), unique=True),
        "additionalProperties": st.one_of(references, st.booleans()),
        "minProperties": st.integers(0, 1),
    },
)
lists = st.fixed_dictionaries(
    {"type": st.just("array"), "minItems": st.integers(0, 2)},
    optional={"items": references, "prefixItems": st.lists(references, min_size=1, max_size=2)},
)
shapes = st.one_of(objects, lists)
definitions = st.one_of(
    shapes,
    st.sampled_from([{"type": "null"}, {"const": 1}]),
    st.lists(shapes, min_size=1, max_size=2).map(lambda parts: {"anyOf": parts}),
    st.tuples(shapes, shapes).map(lambda parts: {"allOf": list(parts)}),
    st.tuples(objects, st.lists(objects, min_size=1, max_size=2)).map(lambda parts: {**parts[0], "anyOf": parts[1]}),
)
documents = st.fixed_dictionaries(dict.fromkeys(NAMES, definitions)).map(
    lambda defs: {"$ref": "#/$defs/n0", "$defs": defs}
)


@cache
def small_values(depth: int) -> tuple[Any, ...]:
    """All values of nulls, ones, lists of at most two items and objects of `a`, `b`, so deep."""
    if depth == 0:
        return (None, 1)
    inner = small_values(depth - 1)
    absent = object()
    found: list[Any] = [*small_values(0), []]
    found += [list(items) for length in (1, 2) for items in itertools.product(inner, repeat=length)]
    for a, b in itertools.product((absent, *inner), repeat=2):
        found.append({name: value for name, value in (("a", a), ("b", b)) if value is not absent})
    return tuple(found)


def witness(schema: Any, root: Any, depth: int) -> bool:
    """Whether some small value fits, tried one by one."""
    validator = jsonschema.Draft202012Validator({**schema, "$defs": root["$defs"]})
    return any(validator.is_valid(value) for value in small_values(depth))


def assert_as_tried(document: Any) -> None:
    finite = FiniteValues(document, resolve)
    for schema in document["$defs"].values():
        if not finite.exist(schema):
            assert not witness(schema, document, 2)


@given(documents)
@settings(max_examples=8, deadline=None)
def test_nothing_that_a_value_fits_is_called_impossible(document: Any) -> None:
    assert_as_tried(document)


@pytest.mark.slow
@given(documents)
@settings(max_examples=500, deadline=None)
def test_nothing_that_a_value_fits_is_called_impossible_many_times(document: Any) -> None:
    assert_as_tried(document)


def built(schema: Any, root: Any, depth: int) -> Any:
    """A value that fits, built from the outside in, `depth` levels at most; raises LookupError where there is none.

    For schemas without parts that hold together.
    """
    if "$ref" in schema:
        return built(resolve(schema["$ref"], root), root, depth)
    if "const" in schema:
        return schema["const"]
    if "anyOf" in schema:
        for each in schema["anyOf"]:
            try:
                return built(each, root, depth)
            except LookupError:
                continue
        raise LookupError
    if depth == 0:
        raise LookupError
    if schema["type"] == "array":
        first = schema.get("prefixItems", [])
        every = [*first, *([schema.get("items", {"const": 0})] * schema["minItems"])][: schema["minItems"]]
        return [built(each, root, depth - 1) for each in every]
    properties, others = schema.get("properties", {}), schema.get("additionalProperties", True)
    others = {"const": 0} if others is True else {"anyOf": []} if others is False else others
    value = {name: built(properties.get(name, others), root, depth - 1) for name in schema.get("required", [])}
    if len(value) < schema.get("minProperties", 0):
        for name in (*properties, "other"):
            try:
                return {name: built(properties.get(name, others), root, depth - 1)}
            except LookupError:
                continue
        raise LookupError
    return value


apart = st.fixed_dictionaries(
    {
        name: st.one_of(shapes, st.just({"const": 1}), st.lists(shapes, max_size=2).map(lambda parts: {"anyOf": parts}))
        for name in NAMES
    }
).map(lambda defs: {"$ref": "#/$defs/n0", "$defs": defs})


@given(apart)
@settings(max_examples=100, deadline=None)
def test_values_exist_exactly_where_one_can_be_built(document: Any) -> None:
    finite = FiniteValues(document, resolve)
    for name, schema in document["$defs"].items():
        try:
            # A smallest value is nested no deeper than there are schemas that can be inside each other.
            value = built(schema, document, 9)
        except LookupError:
            assert not finite.exist(schema), name
        else:
            assert finite.exist(schema), name
            jsonschema.Draft202012Validator({**schema, "$defs": document["$defs"]}).validate(value)


def test_each_of_many_required_members_is_looked_at_a_few_times(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not all of them again for each: that would take seconds for a thousand, and hold other requests up."""
    names = [f"p{number}" for number in range(1000)]
    schema = {"type": "object", "properties": {name: {"type": "string"} for name in names}, "required": names}
    asked, known = [], FiniteValues._known

    def counted(self: FiniteValues, schemas: Any, asking: Any) -> bool:
        asked.append(asking)
        return known(self, schemas, asking)

    monkeypatch.setattr(FiniteValues, "_known", counted)
    assert FiniteValues(schema, resolve).exist(schema)
    assert len(asked) <= 4 * len(names)
