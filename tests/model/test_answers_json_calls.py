"""Answers whose calls are JSON between tags: what streams out of them, and that nothing of a broken one is lost."""

from __future__ import annotations

import json
import random
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from freehold.core.parts import (
    Part,
    ReasoningPart,
    TextPart,
    ToolCallArguments,
    ToolCallEnd,
    ToolCallStart,
)
from freehold.model.answers.json_calls import JsonCallParser, Start
from freehold.model.answers.json_scanner import BrokenJsonError, JsonScanner
from freehold.model.answers.plain import PlainParser
from support.answers_whole import Call, parsed, summary, whole_json_calls
from support.tool_calls import cuts

CLOSE = "</tool_call>"


def parts_of(text: str, start: Start = "either") -> list[Part]:
    """The parts of an answer, the same for the whole, for single characters and for every cut in two."""
    whole = parsed(JsonCallParser(start=start), [text])
    assert parsed(JsonCallParser(start=start), text) == whole
    for cut in range(1, len(text)):
        assert parsed(JsonCallParser(start=start), [text[:cut], text[cut:]]) == whole
    return whole


def read(text: str, start: Start = "either") -> list[Any]:
    return summary(parts_of(text, start))


# -- reasoning and text ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("start", "text", "parts"),
    [
        ("either", "<think>\nwhy\n</think>\n\none", [("reasoning", "why"), ("text", "one")]),
        ("either", "\n<think>why</think>one", [("reasoning", "why"), ("text", "one")]),
        ("either", "<think>\n\n</think>\n\none", [("text", "one")]),
        ("either", "<think>\n\na\n\n</think>\n\n\none", [("reasoning", "\na\n"), ("text", "\none")]),
        ("either", "one <think>two</think>", [("text", "one <think>two</think>")]),
        ("either", "<think>open", [("reasoning", "open")]),
        ("either", " <thin", [("text", " <thin")]),
        ("reasoning", "why\n</think>\n\none", [("reasoning", "why"), ("text", "one")]),
        ("reasoning", "<tool_call>[]", [("reasoning", "<tool_call>[]")]),
        ("text", "<think>a</think>\n", [("text", "<think>a</think>\n")]),
        ("text", "a\n<tool_c", [("text", "a\n<tool_c")]),
        ("text", "", []),
    ],
)
def test_the_start_says_where_reasoning_is(start: Start, text: str, parts: list[Any]) -> None:
    assert read(text, start) == parts


# -- calls -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "calls"),
    [
        ('<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>', [Call("f", {"a": 1})]),
        ('<tool_call>{"arguments": {"a": 1}, "name": "f"}</tool_call>', [Call("f", {"a": 1})]),
        ('<tool_call>{"id": [1, {"name": 2}], "name": "f", "type": null}</tool_call>', [Call("f", {})]),
        (
            '<tool_call>{"name": "f", "parameters": {"a": "</tool_call>"}}</tool_call>',
            [Call("f", {"a": "</tool_call>"})],
        ),
        ('<tool_call>{"name": "f", "arguments": "{\\"a\\": 1}"}</tool_call>', [Call("f", {"a": 1})]),
        ('<tool_call>{"arguments": null , "name": "f"}</tool_call>', [Call("f", {})]),
        ('<tool_call>{"name": "gr\\u00f6\\"", "arguments": {}}</tool_call>', [Call('grö"', {})]),
        ('<tool_call>[\n{"name": "f"},\n {"name": "g", "arguments": {}} ]</tool_call>', [Call("f", {}), Call("g", {})]),
        ('<tool_call>{"name": "f"}\n{"name": "g"}</tool_call>', [Call("f", {}), Call("g", {})]),
        ("<tool_call>[]</tool_call>", []),
        ("<tool_call> [ ] \n</tool_call>", []),
        ('<tool_call>[{"name": "f", "arguments": {}}]', [Call("f", {})]),
        ('<tool_call>[{"name": "f", "arguments": {}},', [Call("f", {})]),
        ('<tool_call>{"name": "f", "arguments": {}}\n</tool_', [Call("f", {})]),
    ],
)
def test_calls_are_read_in_every_form(text: str, calls: list[Call]) -> None:
    assert read(text) == calls


def test_text_around_tags_is_content_without_the_line_end_of_the_tag() -> None:
    tag = '<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>'
    f = Call("f", {})
    assert read(f"a\n\n{tag}\n{tag}b\n{tag}\n") == [("text", "a\n"), f, f, ("text", "b"), f, ("text", "\n")]


def test_the_text_of_arguments_is_passed_on_unchanged() -> None:
    written = '{ "a":1.50,\n"b" : ["\\u00e9\\n", null,[]] }'
    for order in (f'"name":"f", "arguments" : {written}', f'"arguments":{written},"name":"f"'):
        parts = parts_of(f"<tool_call>{{{order}}}</tool_call>")
        assert parts == [ToolCallStart(0, "f"), ToolCallArguments(0, written), ToolCallEnd(0)]


def test_arguments_stream_while_they_are_written() -> None:
    parser = JsonCallParser()
    steps = [
        ("why\n<tool_", [TextPart("why")]),
        ('call>\n{"name": "f', []),
        ('", ', [ToolCallStart(0, "f")]),
        ('"arguments": {"a', [ToolCallArguments(0, '{"a')]),
        ('": 1', [ToolCallArguments(0, '": 1')]),
        ("}}\n", [ToolCallArguments(0, "}"), ToolCallEnd(0)]),
        ("</tool_call>", []),
        ("\nx", [TextPart("\nx")]),
    ]
    assert [parser.push(text) for text, _ in steps] == [parts for _, parts in steps]
    assert parser.finish() == []


# -- what is no call -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "<tool_call>hello</tool_call>",
        "<tool_call></tool_call>",
        "<tool_call>[1]</tool_call>",
        '<tool_call>{"arguments": {"a": 1}}</tool_call>',
        '<tool_call>{"name": ""}</tool_call>',
        '<tool_call>{"name": 3}</tool_call>',
        '<tool_call>{"nam": tru}</tool_call> and more <tool_call>',
        "<tool_call>[] x</tool_call>",
        "<tool_call>{'name': 'f'}</tool_call>",
        "the tag is <tool_call>",
    ],
)
def test_a_tag_without_a_call_is_text(text: str) -> None:
    assert read(text) == [("text", text)]


@pytest.mark.parametrize("cut", ['<tool_call>\n{"na', "<tool_call>[", '<tool_call>[{"name": "f"'])
def test_the_beginning_of_a_call_that_is_cut_off_is_no_text(cut: str) -> None:
    assert [entry for entry in read(f"before\n{cut}") if not isinstance(entry, Call)] == [("text", "before")]


def test_what_follows_a_call_and_is_cut_off_is_no_text() -> None:
    whole = '<tool_call>[{"name": "f", "arguments": {}}'
    assert read(whole + ',\n{\n "name": "') == read(whole)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        (
            '<tool_call>{"name": "f", "arguments": {"a": x}}</tool_call>',
            [ToolCallArguments(0, '{"a": x'), ToolCallEnd(0, complete=False), TextPart("}}</tool_call>")],
        ),
        (
            '<tool_call>{"name": "f", "arguments": {"a": "line\nend"}}</tool_call>',
            [ToolCallArguments(0, '{"a": "line'), ToolCallEnd(0, complete=False), TextPart('\nend"}}</tool_call>')],
        ),
        (
            '<tool_call>{"name": "f", "arguments": "x"}</tool_call>',
            [ToolCallEnd(0, complete=False), TextPart(', "arguments": "x"}</tool_call>')],
        ),
        (
            '<tool_call>{"name": "f", "arguments": {}} so</tool_call>',
            [ToolCallArguments(0, "{}"), ToolCallEnd(0), TextPart(" so</tool_call>")],
        ),
        (
            '<tool_call>{"name": "f", "arguments": {"a": [1',
            [ToolCallArguments(0, '{"a": [1'), ToolCallEnd(0, complete=False)],
        ),
        ('<tool_call>{"name": "f", "argum', [ToolCallEnd(0, complete=False)]),
    ],
)
def test_a_call_that_breaks_ends_incomplete_and_the_rest_is_text(text: str, parts: list[Part]) -> None:
    assert parts_of(text) == [ToolCallStart(0, "f"), *parts]


# -- against readers of whole texts ----------------------------------------------------------------------------

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
SIGNS = st.text(alphabet='{}[]",:\\u0123eE+-. tfn\n', max_size=12)


@settings(max_examples=150, deadline=None)
@given(value=JSON, indent=st.sampled_from([None, 0, 2]), ascii_only=st.booleans(), seed=st.integers(0, 2**32))
def test_the_scanner_takes_all_json_and_knows_its_end(value: Any, indent: Any, ascii_only: bool, seed: int) -> None:
    text = json.dumps(value, indent=indent, ensure_ascii=ascii_only)
    scanner, taken = JsonScanner(), 0
    for piece in cuts(random.Random(seed), text + " x"):
        taken += scanner.feed(piece, 0)
        if scanner.done:
            break
    assert scanner.done
    assert taken == len(text)


@settings(max_examples=300, deadline=None)
@given(
    text=st.text(alphabet='{}[]",:\\u0123eE+-. tfn\n', max_size=12) | st.from_regex(r"[-0-9.eE+]{1,8}", fullmatch=True)
)
def test_the_scanner_refuses_what_is_no_json(text: str) -> None:
    scanner = JsonScanner()
    try:
        end = scanner.feed(text + "\n", 0)
        taken = scanner.done and not text[end:].strip(" \t\r\n")
    except BrokenJsonError:
        taken = False
    try:
        json.loads(text.strip(" \t\r\n") or "x")
        valid = True
    except ValueError:
        valid = False
    assert taken == valid


def test_an_escape_has_four_digits() -> None:
    with pytest.raises(BrokenJsonError):
        JsonScanner().feed(r'"\u00eg"', 0)


@st.composite
def answers(draw: st.DrawFn) -> str:
    words = st.sampled_from(["a", "\n", " ", "<", "<tool", "</think>", "<think>", "</tool_call>", "é", "{}"])
    text = draw(st.sampled_from(["", "<think>\nr\n</think>\n\n", "<think>", "\n<think>r</think>"]))
    for _ in range(draw(st.integers(0, 3))):
        text += "".join(draw(st.lists(words, max_size=4)))
        found = []
        for _ in range(draw(st.integers(0, 2))):
            arguments = draw(st.dictionaries(st.text(), JSON, max_size=3))
            pairs = [("name", draw(st.sampled_from(["f", "größe", '"']))), ("arguments", arguments), ("id", [1])]
            found.append(json.dumps(dict(draw(st.permutations(pairs))), ensure_ascii=draw(st.booleans())))
        in_list = draw(st.booleans()) or not found
        text += "<tool_call>" + ("[" + ",".join(found) + "]" if in_list else "\n".join(found)) + "\n</tool_call>"
    return text + "".join(draw(st.lists(words, max_size=4)))


@settings(max_examples=100, deadline=None)
@given(text=answers(), start=st.sampled_from(["either", "reasoning", "text"]), seed=st.integers(0, 2**32))
def test_answers_are_read_as_a_reader_of_the_whole_reads_them(text: str, start: Start, seed: int) -> None:
    whole = parsed(JsonCallParser(start=start), [text])
    assert parsed(JsonCallParser(start=start), text) == whole
    assert parsed(JsonCallParser(start=start), cuts(random.Random(seed), text)) == whole
    assert summary(whole) == whole_json_calls(text, start)


NOISE = [
    *("{", "}", "[", "]", '"', ":", ",", "\n", " ", "1", "\\", "null", '"name"', '"f"', '"arguments"', '{"name":"f",'),
    *("<tool_call>", "</tool_call>", "<think>", "</think>", '{"a":', "</tool"),
]


@settings(max_examples=400, deadline=None)
@given(
    pieces=st.lists(st.sampled_from(NOISE), max_size=25),
    seed=st.integers(0, 2**32),
)
def test_any_text_is_read_the_same_however_it_is_cut(pieces: list[str], seed: int) -> None:
    text = "".join(["<tool_call>", *pieces])
    whole = parsed(JsonCallParser(), [text])
    summary(whole)
    assert parsed(JsonCallParser(), text) == whole
    assert parsed(JsonCallParser(), cuts(random.Random(seed), text)) == whole


@pytest.mark.parametrize(
    ("before", "again"),
    [
        ("", "a\n"),
        ("", " "),
        ("<think>", "</thin"),
        ("<tool_call>", " "),
        ("<tool_call>[", '{"name":"f","arguments":{}},'),
        ('<tool_call>{"name":"f","arguments":{"a":"', "b"),
        ('<tool_call>{"name":"f","arguments":', '{"a":'),
        ('<tool_call>{"arguments":{"a":"', "b"),
        ('<tool_call>{"name":"', "b"),
    ],
)
def test_time_is_in_proportion_to_the_text(before: str, again: str) -> None:
    def seconds(times: int) -> float:
        text = before + again * times
        best = 1e9
        for _ in range(3):
            parser = JsonCallParser()
            begun = time.thread_time()
            for at in range(0, len(text), 4):
                parser.push(text[at : at + 4])
            parser.finish()
            best = min(best, time.thread_time() - begun)
        return best

    small = 4000 // len(again)
    assert seconds(8 * small) < 8 * seconds(small) * 3 + 0.02  # quadratic: 64 times


# -- no format at all ------------------------------------------------------------------------------------------


def test_without_a_format_everything_is_text() -> None:
    parser = PlainParser()
    text = "<think>a</think><tool_call>[]</tool_call>]<]minimax[>[<tool_call>"
    assert [part for character in text for part in parser.push(character)] == [TextPart(c) for c in text]
    assert parser.push("") == parser.finish() == []
    assert ReasoningPart not in {type(part) for part in parser.push(text)}
