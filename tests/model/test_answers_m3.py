"""Answers of MiniMax-M3: what streams out of them, against rules stated one by one and a reader of whole texts."""

from __future__ import annotations

import json
import random
import time
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from freehold.core.errors import ArgumentError
from freehold.core.parts import ReasoningPart, TextPart, ToolCallArguments, ToolCallEnd, ToolCallStart
from freehold.model.answers.m3 import M3Parser
from freehold.model.chat import ChatFormat, built_in_template
from support.answers_whole import Call, parsed, summary, whole_m3
from support.tool_calls import cuts, tool_and_call

NS = "]<]minimax[>["


def tags(text: str) -> str:
    """The text with the namespace marker where it has a ~."""
    return text.replace("~", NS)


def tool(name: str = "f", **properties: Any) -> list[dict[str, Any]]:
    parameters = {"type": "object", "properties": properties}
    return [{"type": "function", "function": {"name": name, "parameters": parameters}}]


def read(text: str, mode: str | None = None, tools: Any = None) -> list[Any]:
    """The summary of an answer, the same for the whole, for single characters and for every cut in two."""
    text = tags(text)
    whole = parsed(M3Parser(tools=tools, thinking_mode=mode), [text])
    assert parsed(M3Parser(tools=tools, thinking_mode=mode), text) == whole
    for cut in range(1, len(text)):
        assert parsed(M3Parser(tools=tools, thinking_mode=mode), [text[:cut], text[cut:]]) == whole
    return summary(whole)


def arguments(text: str, *, declared: Any = None, name: str = "x") -> Any:
    """The value that the tags of one call give the argument x."""
    (call,) = read(f'~<tool_call>\n~<invoke name="f">{text}~</invoke>\n~</tool_call>', tools=declared)
    return call.arguments[name] if name else call.arguments


def value(text: str, schema: Any) -> Any:
    return arguments(f"~<x>{text}~</x>", declared=tool(x=schema))


# -- reasoning ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "text", "parts"),
    [
        ("enabled", "why\n\n</mm:think>\n\none", [("reasoning", "why\n\n"), ("text", "\n\none")]),
        ("enabled", "never closed <b>", [("reasoning", "never closed <b>")]),
        ("enabled", "<mm:think>why</mm:think>one", [("reasoning", "why"), ("text", "one")]),
        ("enabled", "</mm:think>one", [("text", "one")]),
        ("disabled", "one\n", [("text", "one\n")]),
        ("disabled", "<mm:think>a</mm:think>", [("text", "<mm:think>a</mm:think>")]),
        ("adaptive", "<mm:think>why</mm:think>one", [("reasoning", "why"), ("text", "one")]),
        (None, "<mm:think>why</mm:think>one", [("reasoning", "why"), ("text", "one")]),
        (None, "\n<mm:think>why</mm:think>one", [("reasoning", "why"), ("text", "one")]),
        ("adaptive", "</mm:think>one", [("text", "one")]),
        ("adaptive", "one</mm:think>two", [("text", "one</mm:think>two")]),
        ("adaptive", " <mm:thin", [("text", " <mm:thin")]),
        ("adaptive", "", []),
        ("enabled", "a</mm:think>b</mm:think>c", [("reasoning", "a"), ("text", "b</mm:think>c")]),
    ],
)
def test_the_mode_says_where_reasoning_begins(mode: str | None, text: str, parts: list[Any]) -> None:
    assert read(text, mode) == parts


def test_another_mode_is_refused() -> None:
    with pytest.raises(ArgumentError, match="thinking_mode is 'on'; it must be one of 'enabled'"):
        M3Parser(thinking_mode="on")


def test_a_tool_block_ends_reasoning_and_a_later_closing_tag_is_dropped() -> None:
    text = 'why~<tool_call>\n~<invoke name="f">~</invoke>\n~</tool_call>then</mm:think>more'
    assert read(text, "enabled") == [("reasoning", "why"), Call("f", {}), ("text", "thenmore")]


# -- text and blocks ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["<tool_call>", "a <b> c", "]<]", "]<]minimax", "]<]minimax[>", "x\n", "</invoke>\n"])
def test_what_merely_looks_like_a_tag_stays_text(text: str) -> None:
    assert read(text) == [("text", text)]


@pytest.mark.parametrize(
    ("text", "left"),
    [("a~b", "ab"), ("a~<b>c", "a<b>c"), ("a\n~", "a"), ("a~</tool_call>b", "ab"), ("a~</invoke>~</tool_call>", "a")],
)
def test_markers_never_reach_the_text(text: str, left: str) -> None:
    assert read(text) == [("text", left)]


def test_text_before_and_between_blocks_is_content_without_the_line_end_of_the_block() -> None:
    block = '~<tool_call>\n~<invoke name="f">~</invoke>\n~</tool_call>'
    found = read(f"a\n\n{block}b\n{block}\n{block}c\n")
    f = Call("f", {})
    assert found == [("text", "a\n"), f, ("text", "b"), f, f, ("text", "c\n")]


def test_several_calls_in_a_block_and_text_among_them() -> None:
    text = '~<tool_call>\n~<invoke name="f">~</invoke>\n ~<invoke name="g">~</invoke> so \n~</tool_call>'
    assert read(text) == [Call("f", {}), Call("g", {}), ("text", "so")]


def test_a_call_without_a_block_counts() -> None:
    assert read('a\n~<invoke name="f">~<x>1~</x>~</invoke>') == [("text", "a"), Call("f", {"x": 1})]


@pytest.mark.parametrize("name", ["get-weather", "größe", "mcp.files/read", "a b", "日本"])
def test_names_of_any_letters_work(name: str) -> None:
    declared = tool(name, **{name: {"type": "string"}})
    text = f'~<tool_call>~<invoke name="{name}">~<{name}>1~</{name}>~</invoke>~</tool_call>'
    assert read(text, tools=declared) == [Call(name, {name: "1"})]


# -- values ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "schema", "expected"),
    [
        ("12", {"type": "integer"}, 12),
        (" 12\n", {"type": "integer"}, 12),
        ("12.0", {"type": "integer"}, 12),
        ("abc", {"type": "integer"}, "abc"),
        ("1.5", {"type": "integer"}, "1.5"),
        ("9" * 40, {"type": "integer"}, int("9" * 40)),
        ("1e3", {"type": "number"}, 1000.0),
        ("NaN", {"type": "number"}, "NaN"),
        ("True", {"type": "boolean"}, True),
        ("yes", {"type": "boolean"}, "yes"),
        ("12", {"type": "string"}, "12"),
        (" a\n", {"type": "string"}, " a\n"),
        ("null", {"type": "string"}, "null"),
        ("null", {"type": ["string", "null"]}, None),
        ("nullable", {"type": ["string", "null"]}, "nullable"),
        ("nul", {"anyOf": [{"type": "string"}, {"type": "null"}]}, "nul"),
        ("null", {"type": "integer"}, None),
        ("null", {"type": "array"}, None),
        ("null", {"type": "object"}, None),
        ("7", {"enum": ["7", "8"]}, "7"),
        ("7", {"enum": [7, 8]}, 7),
        ("7", {"const": 7}, 7),
        ("5", {"oneOf": [{"type": "string"}, {"type": "integer"}]}, 5),
        ("x", {"oneOf": [{"type": "string"}, {"type": "integer"}]}, "x"),
        ("12", {"allOf": [{"type": "string"}, {"minLength": 1}]}, "12"),
        ("", {"type": "string"}, ""),
        ("", {"type": "array"}, []),
        ("", {"type": "object"}, {}),
        ("", {"type": "integer"}, ""),
        ("[1, 2]", {"type": "array", "items": {"type": "integer"}}, [1, 2]),
        ("a", {"type": "array", "items": {"type": "string"}}, ["a"]),
        ('{"a": 1}', {"type": "object"}, {"a": 1}),
        ("{a", {"type": "object"}, "{a"),
        ("a~<b>c~</b>", {"type": "string"}, f"a{NS}<b>c{NS}</b>"),
        ("~", {"type": "string"}, NS),
        ("~<a>1~</a>~<b>2~</b>", {"properties": {"a": {"type": "string"}}}, {"a": "1", "b": 2}),
        ("~<a>1~</a>", {"type": "object", "additionalProperties": {"type": "string"}}, {"a": "1"}),
        ("hi ~<a>1~</a> there", {"type": "object"}, {"a": 1, "$text": "hi  there"}),
        ("~<item>1~</item>~<item>null~</item>", {"type": "array", "items": {"type": "string"}}, ["1", "null"]),
        ("~<item>1~</item>~<item>~<item>2~</item>~</item>", {}, [1, [2]]),
        ("~<a>1~</a>~<b>x~</b>~<a>2~</a>", {}, {"a": [1, 2], "b": "x"}),
        ("hi~<a>1~</a>", {}, {"a": 1, "$text": "hi"}),
        (" \n~<item>1~</item>\n~<item>2~</item>\n", {"type": "array"}, [1, 2]),
        ("[1, {}]", {}, [1, {}]),
        ("[1,", {}, "[1,"),
        ("-0.5", {}, -0.5),
        ("007", {}, "007"),
        ("true", {}, True),
        ("null", {}, None),
    ],
)
def test_the_declared_type_decides(text: str, schema: Any, expected: Any) -> None:
    found = value(text, schema)
    assert found == expected
    assert type(found) is type(expected)


def test_repeated_tags_of_one_name_are_a_list() -> None:
    repeated = "~<x>1~</x>~<x>2~</x>~<y>~</y>"
    assert arguments(repeated) == [1, 2]
    assert arguments(repeated, declared=tool(x={"type": "array", "items": {"type": "string"}})) == ["1", "2"]
    assert arguments(repeated, declared=tool(x={"type": "string"})) == "1"  # it was passed on already
    mixed = "~<x>~<item>~<path>a~</path>~</item>~<more>~<path>b~</path>~</more>~</x>"
    edits = "~<x>~<path>a~</path>~<n>1~</n>~</x>~<x>~<path>b~</path>~</x>"
    items = {"type": "object", "properties": {"path": {"type": "string"}}}
    for schema in ({"type": "array", "items": items}, {"type": "array"}):
        declared = tool(x=schema)
        assert arguments(edits, declared=declared) == [{"path": "a", "n": 1}, {"path": "b"}]
        assert arguments(mixed, declared=declared) == [{"path": "a"}, {"path": "b"}]


def test_references_are_followed_through_definitions_and_into_themselves() -> None:
    node = {"type": "object", "properties": {"name": {"type": "string"}, "next": {"$ref": "#/$defs/Node"}}}
    parameters = {"type": "object", "properties": {"x": {"$ref": "#/$defs/Node"}}, "$defs": {"Node": node}}
    declared = [{"name": "f", "parameters": parameters}]
    text = "~<x>~<name>1~</name>~<next>~<name>2~</name>~</next>~</x>"
    assert arguments(text, declared=declared) == {"name": "1", "next": {"name": "2"}}
    endless = {"type": "object", "properties": {"x": {"$ref": "#/$defs/A"}}, "$defs": {"A": {"$ref": "#/$defs/A"}}}
    assert arguments("~<x>1~</x>", declared=[{"name": "f", "parameters": endless}]) == 1


def test_tags_left_open_are_closed_with_what_they_stand_in() -> None:
    declared = tool(o={"type": "object", "properties": {"s": {"type": "string"}}}, x={"type": "string"})
    assert arguments("~<o>~<s>a~</o>~<x>b", declared=declared, name="") == {"o": {"s": "a"}, "x": "b"}
    assert arguments("~<o>~</nothing>~</o>", declared=declared, name="") == {"o": {}}
    text = '~<tool_call>~<invoke name="f">~<x>1~</x>~<invoke name="g">~<x>2~</tool_call>after'
    assert read(text) == [Call("f", {"x": 1}), Call("g", {"x": 2}), ("text", "after")]


def test_deep_nesting_ends_in_text_and_not_in_an_error() -> None:
    text = tags('~<invoke name="f">' + "~<a>" * 5000 + "~</invoke>")
    (call,) = summary(parsed(M3Parser(), [text]))
    assert call.arguments["a"]["a"]["a"]


# -- streaming ------------------------------------------------------------------------------------------------


def test_values_stream_while_they_are_written() -> None:
    declared = tool(
        s={"type": "string"}, n={"type": "integer"}, o={"type": "object", "properties": {"t": {"type": "string"}}}
    )
    parser = M3Parser(tools=declared)
    steps = [
        ('~<tool_call>\n~<invoke name="f">', [ToolCallStart(0, "f")]),
        ("~<s>", [ToolCallArguments(0, '{"s": "')]),
        ('a"\n', [ToolCallArguments(0, 'a\\"\\n')]),
        ("b]<", [ToolCallArguments(0, "b")]),
        ("c", [ToolCallArguments(0, "]<c")]),
        ("~</s>~<n>1", [ToolCallArguments(0, '", "n": ')]),
        ("2~</n>", [ToolCallArguments(0, "12")]),
        ("~<o>~<t>x", [ToolCallArguments(0, ', "o": {"t": "x')]),
        ("~</t>~</o>~</invoke>", [ToolCallArguments(0, '"}}'), ToolCallEnd(0)]),
        ("\n~</tool_call>", []),
        ("done", [TextPart("done")]),
    ]
    assert [parser.push(tags(text)) for text, _ in steps] == [parts for _, parts in steps]
    assert parser.finish() == []


def test_only_what_may_become_a_marker_is_held_back() -> None:
    parser = M3Parser(thinking_mode="enabled")
    assert parser.push("why </mm") == [ReasoningPart("why ")]
    assert parser.push(": no</mm:think>a\n") == [ReasoningPart("</mm: no"), TextPart("a")]
    assert parser.push("b") == [TextPart("\nb")]
    assert parser.push("]<]min") == []
    assert parser.finish() == [TextPart("]<]min")]


def test_a_call_that_breaks_off_keeps_what_was_certain() -> None:
    text = tags('~<tool_call>\n~<invoke name="f">~<s>abc~</s>~<n>12~</n>~</invoke>')
    declared = tool(s={"type": "string"}, n={"type": "integer"})
    whole = '{"s": "abc", "n": 12}'
    for cut in range(len(text)):
        parts = parsed(M3Parser(tools=declared), text[:cut])
        begun = text[:cut].count('name="f">')
        kinds = [type(part) for part in parts if isinstance(part, (ToolCallStart, ToolCallEnd))]
        assert kinds == [ToolCallStart, ToolCallEnd] * begun
        if begun:
            assert parts[-1] == ToolCallEnd(0, complete=False)
            said = "".join(p.json for p in parts if isinstance(p, ToolCallArguments))
            assert whole.startswith(said.split("]")[0])
    assert parsed(M3Parser(tools=declared), text)[-1] == ToolCallEnd(0, complete=True)


@pytest.mark.parametrize(
    ("before", "again"),
    [
        ("", "a"),
        ("", " "),
        ("", NS),
        ("", "\n]<]"),
        ("~<tool_call>", " "),
        ("~<tool_call>", "x "),
        ('~<invoke name="f">~<s>', "b"),
        ('~<invoke name="f">~<s>', NS),
        ('~<invoke name="f">', "~<x>1~</x>"),
        ('~<invoke name="f">~<x>', "~<item>1~</item>"),
        ('~<invoke name="f">', "~<a>"),
    ],
)
def test_time_is_in_proportion_to_the_text(before: str, again: str) -> None:
    def seconds(times: int) -> float:
        text = tags(before + again * times)
        pieces = [text[at : at + 4] for at in range(0, len(text), 4)]
        best = 1e9
        for _ in range(3):
            parser = M3Parser(tools=tool(s={"type": "string"}), thinking_mode="adaptive")
            begun = time.thread_time()
            for piece in pieces:
                parser.push(piece)
            parser.finish()
            best = min(best, time.thread_time() - begun)
        return best

    small = 400 if len(again) > 3 else 4000
    assert seconds(8 * small) < 8 * seconds(small) * 3 + 0.02  # quadratic: 64 times


# -- against a reader of whole texts ---------------------------------------------------------------------------

SCHEMAS = {
    "f": {
        "type": "object",
        "properties": {
            "s": {"type": "string"},
            "n": {"type": "integer"},
            "l": {"type": "array", "items": {"type": "string"}},
            "m": {"type": "array", "items": {"type": "object", "properties": {"s": {"type": "string"}}}},
            "o": {"type": "object", "properties": {"s": {"type": "string"}, "l": {"type": "array"}}},
        },
    }
}
TOOLS = [{"type": "function", "function": {"name": name, "parameters": schema}} for name, schema in SCHEMAS.items()]
NOISE = [
    *("a", "1", " ", "\n", "null", "true", '"', "[1]", "{}", "<", ">", NS, NS[:5], NS[:11], "<tool_call>"),
    *(
        "<mm:think>",
        "</mm:think>",
        "</mm:th",
        NS + "<",
        NS + "</",
        NS + "<inv",
        NS + "<tool_call>",
        NS + "</tool_call>",
    ),
    *(NS + '<invoke name="f">', NS + '<invoke name="g">', NS + "</invoke>"),
    *(f"{NS}<{slash}{name}>" for name in ("s", "n", "l", "m", "o", "x", "item") for slash in ("", "/")),
]
CALL_TAGS = [piece for piece in NOISE if piece.startswith(NS + "<") and len(piece) > 14 and "tool_call" not in piece]


@settings(max_examples=400, deadline=None)
@given(
    pieces=st.lists(st.sampled_from(NOISE), max_size=20),
    tagged=st.lists(st.sampled_from([*CALL_TAGS, "a", "1", "\n"]), max_size=30),
    mode=st.sampled_from(["enabled", "disabled", "adaptive", None]),
    seed=st.integers(0, 2**32),
)
@example(
    pieces=[NS + '<invoke name="f">', NS + "<l>", "null", NS + "<s>", NS + "</l>"], tagged=[], mode="enabled", seed=0
)
def test_any_text_is_read_as_a_reader_of_the_whole_reads_it(
    pieces: list[str], tagged: list[str], mode: str | None, seed: int
) -> None:
    call = [NS + '<invoke name="f">', *tagged] if tagged else []
    text = "".join([*pieces, *call])
    whole = parsed(M3Parser(tools=TOOLS, thinking_mode=mode), [text])
    assert parsed(M3Parser(tools=TOOLS, thinking_mode=mode), text) == whole
    assert parsed(M3Parser(tools=TOOLS, thinking_mode=mode), cuts(random.Random(seed), text)) == whole
    assert summary(whole) == whole_m3(text, mode, SCHEMAS)


# -- written by the template and read back ---------------------------------------------------------------------


def check_round_trips(count: int, seed: int) -> None:
    chat = ChatFormat(built_in_template("minimax_m3"))
    user = {"role": "user", "content": "hi"}
    start = chat.render([user])
    chance = random.Random(seed)
    for _ in range(count):
        pairs = [tool_and_call(chance) for _ in range(chance.randint(1, 2))]
        tools, calls = [pairs[0][0]], [pairs[0][1]]
        if len(pairs) > 1 and pairs[1][0]["function"]["name"] != tools[0]["function"]["name"]:
            tools, calls = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
        content = chance.choice(["", "I look.", "a\n"])
        reasoning = chance.choice(["", "because"])
        message = {"role": "assistant", "content": content, "reasoning_content": reasoning, "tool_calls": calls}
        text = chat.render([user, message], add_generation_prompt=False).removeprefix(start[: -len("]~b]ai\n")])
        answer = text.removeprefix("]~b]ai\n").removesuffix("[e~[\n")
        whole = parsed(M3Parser(tools=tools), [answer])
        for pieces in (answer, cuts(chance, answer), cuts(chance, answer)):
            assert parsed(M3Parser(tools=tools), pieces) == whole
        wanted = [Call(c["function"]["name"], json.loads(c["function"]["arguments"])) for c in calls]
        said = [("reasoning", reasoning)] * bool(reasoning) + [("text", content)] * bool(content)
        assert summary(whole) == [*said, *wanted]


def test_calls_written_by_the_template_come_back() -> None:
    check_round_trips(200, seed=1)


@pytest.mark.slow
def test_ten_thousand_calls_written_by_the_template_come_back() -> None:
    check_round_trips(10_000, seed=2)
