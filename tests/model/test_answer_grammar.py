"""Grammars of whole answers: whatever they let through is read back as what was asked for."""

from __future__ import annotations

import json
import re

import jsonschema
import pytest

from freehold.core.errors import ConfigError, RequestError
from freehold.core.parts import ReasoningPart, TextPart, ToolCallArguments, ToolCallEnd, ToolCallStart
from freehold.model.answer_grammar import (
    AnswerShape,
    Tool,
    json_object_grammar,
    json_schema_grammar,
    tool_call_grammar,
    tool_call_or_json_grammar,
)
from freehold.model.answers.json_calls import JsonCallParser
from freehold.model.answers.m3 import M3Parser
from freehold.model.grammar import Grammars
from support.grammar_walk import NUM_TOKENS, Bytes, walk

PLACE = {
    "type": "object",
    "properties": {
        "city": {"type": "string"},
        "days": {"type": "array", "items": {"type": "integer"}, "maxItems": 3},
        "unit": {"enum": ["C", "F"]},
        "deep": {
            "type": "object",
            "properties": {
                "x": {"type": "number"},
                "list": {
                    "type": "array",
                    "items": {"type": "object", "properties": {"k": {"type": "boolean"}}, "required": ["k"]},
                    "minItems": 1,
                    "maxItems": 2,
                },
            },
            "required": ["list"],
        },
        "maybe": {"anyOf": [{"type": "integer"}, {"type": "null"}]},
        "short": {"type": "string", "minLength": 2, "maxLength": 5},
        "map": {"type": "object", "additionalProperties": {"type": "integer"}, "maxProperties": 2},
        "node": {"$ref": "#/$defs/node"},
        "nested": {
            "type": "array",
            "items": {"type": "array", "items": {"type": "string"}, "maxItems": 2},
            "maxItems": 2,
        },
        "text or null": {"type": ["string", "null"]},
        "pair": {
            "type": "array",
            "prefixItems": [{"type": "string"}, {"type": "integer"}],
            "items": False,
            "minItems": 2,
        },
        "mixed": {"enum": [1, None, True]},
    },
    "required": ["city", "deep", "nested"],
    "additionalProperties": False,
    "$defs": {
        "node": {
            "type": "object",
            "properties": {"v": {"type": "integer"}, "next": {"$ref": "#/$defs/node"}},
            "required": ["v"],
        }
    },
}
NOTHING = {"type": "object", "maxProperties": 0}
SCHEMAS = {"weather": PLACE, "now-1": NOTHING}
TOOLS = [Tool("weather", PLACE), Tool("now-1")]
DECLARED = [
    {"type": "function", "function": {"name": "weather", "parameters": PLACE}},
    {"type": "function", "function": {"name": "now-1"}},
]
FAMILIES = ["minimax_m3", "json_list", "json_objects"]
STARTS = {"none": "text", "enabled": "reasoning", "adaptive": "either"}
MODES = {"none": "disabled", "enabled": "enabled", "adaptive": "adaptive"}


@pytest.fixture(scope="module")
def grammars():
    return Grammars(Bytes(), NUM_TOKENS)


def shape(family):
    return AnswerShape.of(family, Bytes())


def beginning(family, reasoning):
    """What a walk has to begin with: it would hardly ever spell a closing tag that is no token."""
    return b"hm </think>" if reasoning == "enabled" and family != "minimax_m3" else b""


def read(family, reasoning, answer):
    """(calls as (name, arguments), text, reasoning) by the parser of the same format."""
    if family == "minimax_m3":
        parser = M3Parser(tools=DECLARED, thinking_mode=MODES[reasoning])
    else:
        parser = JsonCallParser(start=STARTS[reasoning])
    calls, text, thoughts = [], "", ""
    for part in parser.push(answer) + parser.finish():
        if isinstance(part, ToolCallStart):
            calls.append([part.name, ""])
        elif isinstance(part, ToolCallArguments):
            calls[-1][1] += part.json
        elif isinstance(part, ToolCallEnd):
            assert part.complete
        elif isinstance(part, TextPart):
            text += part.text
        elif isinstance(part, ReasoningPart):
            thoughts += part.text
    return [(name, json.loads(arguments)) for name, arguments in calls], text, thoughts


def answers(grammars, grammar, count, begin=b""):
    """Answers of random walks that came to an end; enough of them do."""
    walks = [walk(grammars, grammar, seed, begin=begin) for seed in range(count)]
    found = [answer for answer in walks if answer is not None]
    assert len(found) >= count // 4
    return found


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("reasoning", list(STARTS))
@pytest.mark.parametrize("parallel", [True, False])
def test_what_a_call_grammar_lets_through_is_whole_and_valid_calls(grammars, family, reasoning, parallel):
    grammar = tool_call_grammar(shape(family), TOOLS, parallel=parallel, reasoning=reasoning)
    for answer in answers(grammars, grammar, 8, beginning(family, reasoning)):
        calls, text, thoughts = read(family, reasoning, answer)
        assert calls
        assert text.strip() == ""
        assert parallel or len(calls) == 1
        assert reasoning != "none" or not thoughts
        for name, arguments in calls:
            jsonschema.validate(arguments, SCHEMAS[name])


@pytest.mark.parametrize("family", FAMILIES)
def test_several_calls_are_possible_and_one_function_can_be_named(grammars, family):
    several = [read(family, "none", a)[0] for a in answers(grammars, tool_call_grammar(shape(family), [Tool("f")]), 30)]
    assert {name for calls in several for name, _ in calls} == {"f"}
    assert any(len(calls) > 1 for calls in several)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("reasoning", list(STARTS))
def test_json_comes_after_the_reasoning_and_fits_its_schema(grammars, family, reasoning):
    schema = {
        "type": "object",
        "properties": {"a": {"type": "integer"}},
        "required": ["a"],
        "additionalProperties": False,
    }
    grammar = json_schema_grammar(schema, shape(family), reasoning=reasoning)
    for answer in answers(grammars, grammar, 12, beginning(family, reasoning)):
        calls, text, thoughts = read(family, reasoning, answer)
        assert not calls
        assert reasoning != "none" or not thoughts
        jsonschema.validate(json.loads(text), schema)


@pytest.mark.parametrize("family", FAMILIES)
def test_calls_or_json_gives_one_of_the_two(grammars, family):
    schema = {
        "type": "object",
        "properties": {"a": {"type": "boolean"}},
        "required": ["a"],
        "additionalProperties": False,
    }
    kinds = set()
    for answer in answers(grammars, tool_call_or_json_grammar(shape(family), [Tool("f")], schema), 40):
        calls, text, _ = read(family, "none", answer)
        assert bool(calls) != bool(text.strip())
        kinds.add(bool(calls))
        if not calls:
            jsonschema.validate(json.loads(text), schema)
    assert kinds == {True, False}


def test_reasoning_that_has_begun_must_end_before_the_answer(grammars):
    grammar = json_object_grammar(shape("minimax_m3"), reasoning="enabled")
    matcher = grammars.matcher(grammar)
    for byte in b'{"a": 1} </mm:think':
        matcher.push(byte)
        assert not matcher.may_end
    assert ord(">") not in matcher.allowed()  # the tag as text would end the reasoning for a reader
    assert Bytes().token_id("</mm:think>") in matcher.allowed()


def test_without_reasoning_none_is_possible(grammars):
    first = grammars.matcher(json_object_grammar(shape("minimax_m3"))).allowed()
    assert first.tolist() == [ord("{")]


def test_a_bare_closing_tag_may_open_an_adaptive_answer_of_m3_alone(grammars):
    close, opening = Bytes().token_id("</mm:think>"), Bytes().token_id("<mm:think>")
    first = grammars.matcher(json_object_grammar(shape("minimax_m3"), reasoning="adaptive")).allowed()
    assert set(first.tolist()) == {ord("{"), opening, close}
    other = grammars.matcher(json_object_grammar(shape("json_list"), reasoning="adaptive"))
    for byte in b"<think>x</think>{}":
        other.push(byte)
    assert other.may_end


def test_m3_calls_are_written_as_its_template_writes_them(grammars):
    tool = Tool("get", {"type": "object", "properties": {"city": {"type": "string"}, "n": {"type": "integer"}}})
    matcher = grammars.matcher(tool_call_grammar(shape("minimax_m3"), [tool]))
    namespace = Bytes().token_id("]<]minimax[>[")
    written = "N<tool_call>\nN<invoke name=\"get\">N<city>A <b> & 'c'N</city>N<n>-4N</n>N</invoke>\nN</tool_call>"
    for character in re.findall(".", written, re.DOTALL):
        matcher.push(namespace if character == "N" else ord(character))
    assert matcher.is_done


def test_text_of_an_argument_cannot_spell_the_namespace_marker(grammars):
    tool = Tool("f", {"type": "object", "properties": {"s": {"type": "string"}}, "required": ["s"]})
    matcher = grammars.matcher(tool_call_grammar(shape("minimax_m3"), [tool]))
    namespace = Bytes().token_id("]<]minimax[>[")
    for character in 'N<tool_call>\nN<invoke name="f">N<s>]<]minimax[>':
        matcher.push(namespace if character == "N" else ord(character))
    assert ord("[") not in matcher.allowed()


def test_a_tool_that_cannot_be_enforced_is_relaxed_unless_it_is_strict(grammars):
    schema = {
        "type": "object",
        "properties": {
            "tags": {
                "type": "array",
                "items": {"type": "string", "format": "color"},
                "uniqueItems": True,
                "maxItems": 1,
            },
            "n": {"type": "integer", "x-order": 1},
            "odd": {"not": {"type": "string"}},
        },
        "required": ["n"],
        "additionalProperties": False,
    }
    for family in FAMILIES:
        grammar = tool_call_grammar(shape(family), [Tool("f", schema)], parallel=False)
        for answer in answers(grammars, grammar, 12):
            ((_, arguments),) = read(family, "none", answer)[0]
            assert "n" in arguments
            assert set(arguments) <= {"tags", "n", "odd"}
        with pytest.raises(RequestError, match=r"tools\.f\.parameters\.properties\.tags"):
            tool_call_grammar(shape(family), [Tool("f", schema, strict=True)])


@pytest.mark.parametrize(
    "schema", [5, {}, True, {"properties": [1]}, {"properties": {"a": {"pattern": "("}}}, {"required": ["a", "b"]}]
)
@pytest.mark.parametrize("family", FAMILIES)
def test_any_schema_of_a_tool_that_is_not_strict_gives_objects(grammars, family, schema):
    found = answers(grammars, tool_call_grammar(shape(family), [Tool("f", schema)], parallel=False), 8)
    assert all(isinstance(read(family, "none", answer)[0][0][1], dict) for answer in found)


def test_what_cannot_be_asked_for_is_refused():
    with pytest.raises(RequestError, match="no tools"):
        tool_call_grammar(shape("minimax_m3"), [])
    with pytest.raises(RequestError, match="has no tool calls"):
        tool_call_grammar(AnswerShape("plain"), TOOLS)
    with pytest.raises(RequestError, match="no tag of this model can be called 'a>b'"):
        tool_call_grammar(shape("minimax_m3"), [Tool("f", {"type": "object", "required": ["a>b"]})])
    with pytest.raises(RequestError, match="a tool is called"):
        tool_call_grammar(shape("minimax_m3"), [Tool('a"b')])

    with pytest.raises(RequestError, match="this is a schema of array"):
        tool_call_grammar(shape("json_list"), [Tool("f", {"type": "array"})])

    class Nothing:
        special_ids: frozenset[int] = frozenset()

        def token_id(self, token: str) -> None:
            return None

    with pytest.raises(ConfigError, match="minimax"):
        AnswerShape.of("minimax_m3", Nothing())
