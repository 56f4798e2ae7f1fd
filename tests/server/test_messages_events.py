"""The laws of a stream's events, whatever an answer is made of and however it is cut."""

from __future__ import annotations

import itertools
import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from freehold.core.events import FinishEvent, TokenEvent, Usage
from freehold.core.parts import ReasoningPart, TextPart, ToolCallArguments, ToolCallEnd, ToolCallStart
from freehold.model.answers.json_calls import JsonCallParser
from freehold.server.answer import Answer
from freehold.server.app import create_app
from freehold.server.generation import Progress
from freehold.server.messages.form import MessageEventWriter, MessageForm
from freehold.server.part_recorder import PartRecorder
from support.anthropic_types import checked_error, checked_message, message_of_stream, read_stream
from support.fake_backend import FakeBackend, Script

SPACED = st.text(st.sampled_from(" \n\tabé😀<"), min_size=1, max_size=6)
OBJECTS = st.dictionaries(st.text(max_size=3), st.none() | st.integers() | st.text(max_size=4), max_size=3)


class Scripted:
    """A parser that gives its steps, one for each token, the last one at the end."""

    def __init__(self, steps):
        self._steps = iter(steps)

    def push(self, text):
        return next(self._steps) if text else []

    def finish(self):
        return next(self._steps)


@st.composite
def pieces_of(draw, text):
    cuts = sorted(draw(st.sets(st.integers(1, max(1, len(text) - 1)), max_size=3))) if len(text) > 1 else []
    edges = [0, *cuts, len(text)]
    return [text[a:b] for a, b in itertools.pairwise(edges)]


@st.composite
def answers(draw):
    """Steps of parts as a parser may give them: calls count up, each in pieces, the last may break off."""
    parts, calls = [], 0
    for kind in draw(st.lists(st.sampled_from(["text", "reasoning", "call"]), max_size=6)):
        if kind == "call":
            body = draw(pieces_of(json.dumps(draw(OBJECTS))))
            parts.append(ToolCallStart(calls, draw(st.sampled_from(["f", "g"]))))
            parts += [ToolCallArguments(calls, piece) for piece in body]
            parts.append(ToolCallEnd(calls))
            calls += 1
        else:
            part = TextPart if kind == "text" else ReasoningPart
            parts += [part(piece) for piece in draw(pieces_of(draw(SPACED)))]
    if draw(st.booleans()):
        parts += [ToolCallStart(calls, "f"), ToolCallArguments(calls, '{"a": "b'), ToolCallEnd(calls, complete=False)]
    cuts = sorted(draw(st.lists(st.integers(0, len(parts)), max_size=4)))
    return [parts[a:b] for a, b in zip([0, *cuts], [*cuts, len(parts)], strict=True)]


def answered(steps, *, show_thinking=True, cached=2, **ending):
    """The events of an answer, and its message. All steps but the last come with a token each."""
    form = MessageForm("msg_1", "m", "id", 9, 100, show_thinking=show_thinking)
    writer = MessageEventWriter(form)
    answer = Answer([1] * 9, PartRecorder(Scripted(steps)))
    events = [*writer.opening()]
    for number in range(len(steps) - 1):
        events += writer.more(0, answer, answer.hear(TokenEvent("r", number, "x")))
    finish = FinishEvent("r", ending.pop("reason", "stop"), Usage(9, cached, len(steps) - 1), **ending)
    events += writer.more(0, answer, answer.hear(finish))
    events += [*writer.finish(0, answer), *writer.closing([answer])]
    return answer, read_stream("".join(events)), form.message([answer]).model_dump(mode="json")


@given(answers(), st.booleans())
@settings(max_examples=150, deadline=None)
def test_a_stream_makes_the_message_that_is_answered_at_once(steps, show_thinking):
    answer, events, body = answered(steps, show_thinking=show_thinking)
    checked_message(body)
    streamed = message_of_stream(events)
    whole = {call.id.removeprefix("call_"): call.complete for call in answer.calls}
    content = []
    for block in streamed["content"]:
        kept = {name: value for name, value in block.items() if value is not None}
        if kept["type"] == "tool_use":
            if not whole[kept["id"].removeprefix("toolu_")]:
                continue
            kept["input"] = json.loads(kept["input"])
        content.append(kept)
    assert content == body["content"]
    assert streamed["stop_reason"] == body["stop_reason"]
    for name, value in body["usage"].items():
        assert streamed["usage"][name] == value


@given(answers())
@settings(max_examples=150, deadline=None)
def test_no_text_is_lost_but_white_space_at_an_end(steps):
    answer, _, body = answered(steps)
    for kind, field, said in (("text", "text", answer.text), ("thinking", "thinking", answer.reasoning)):
        written = "".join(block[field] for block in body["content"] if block["type"] == kind)
        assert said.startswith(written)
        assert said[len(written) :].strip() == ""
    calls = [block["name"] for block in body["content"] if block["type"] == "tool_use"]
    assert calls == [call.name for call in answer.calls if call.complete]


WORDS = st.text(st.sampled_from('ab \n<>{}"é😀/'), max_size=12)


@given(WORDS, WORDS, st.lists(OBJECTS, max_size=2), st.sampled_from([1, 2, 7, 1000]))
@settings(max_examples=100, deadline=None)
def test_the_cut_of_tokens_changes_nothing(reasoning, text, inputs, size):
    source = f"<think>{reasoning}</think>{text}"
    source += "".join(f'<tool_call>{{"name": "f", "arguments": {json.dumps(given)}}}</tool_call>' for given in inputs)

    def message(chunk):
        form = MessageForm("msg_1", "m", "id", 9, 100)
        writer = MessageEventWriter(form)
        answer = Answer([1] * 9, PartRecorder(JsonCallParser()))
        events = [*writer.opening()]
        for at in range(0, len(source), chunk):
            events += writer.more(0, answer, answer.hear(TokenEvent("r", 1, source[at : at + chunk])))
        events += writer.more(0, answer, answer.hear(FinishEvent("r", "stop", Usage(9, 0, 1))))
        events += [*writer.finish(0, answer), *writer.closing([answer])]
        return [
            {name: value for name, value in block.items() if name != "id"}
            for block in message_of_stream(read_stream("".join(events)))["content"]
        ]

    assert message(size) == message(len(source))


@pytest.mark.parametrize(
    ("steps", "ending", "reason", "sequence"),
    [
        ([[TextPart("a")], []], {}, "end_turn", None),
        ([[TextPart("a")], []], {"stop_text": "X"}, "stop_sequence", "X"),
        ([[ToolCallStart(0, "f"), ToolCallArguments(0, "{}"), ToolCallEnd(0)], []], {}, "tool_use", None),
        ([[ToolCallStart(0, "f"), ToolCallEnd(0, complete=False)], []], {}, "max_tokens", None),
        ([[TextPart("a")]] + [[]] * 100, {"reason": "length"}, "max_tokens", None),
        ([[TextPart("a")], []], {"reason": "length"}, "model_context_window_exceeded", None),
    ],
)  # fmt: skip
def test_why_an_answer_ended(steps, ending, reason, sequence):
    _, events, body = answered(steps, **ending)
    for message in (body, message_of_stream(events)):
        assert (message["stop_reason"], message["stop_sequence"]) == (reason, sequence)


def test_a_call_that_broke_off_stays_open_json_in_a_stream_and_is_left_out_of_a_message():
    """A client that closes the JSON itself would run half a call."""
    parts = [ToolCallStart(0, "f"), ToolCallArguments(0, '{"text": "hal'), ToolCallEnd(0, complete=False)]
    _, events, body = answered([[TextPart("Well."), *parts], []])
    assert message_of_stream(events)["content"][1]["input"] == '{"text": "hal'
    assert [block["type"] for block in body["content"]] == ["text"]


@pytest.mark.parametrize("number", ["1e999", "-1e999", "9" * 5000, "1.50", "12345678901234567890"])
def test_any_number_in_a_call_can_be_answered(ask, number):
    text = f'<tool_call>{{"name": "f", "arguments": {{"n": {number}}}}}</tool_call>'
    app = create_app(FakeBackend(Script([text.encode()]), parser=JsonCallParser))
    response = post(ask(app))
    assert response.status_code == 200
    value = checked_message(response.json()).content[0].input["n"]
    assert value == (number if number in ("1e999", "-1e999", "9" * 5000) else json.loads(number))


def post(asker, path="/v1/messages", **fields):
    body = {"model": "fake/model", "max_tokens": 99, "messages": [{"role": "user", "content": "hi"}], **fields}
    return asker.post(path, body)


def test_the_counts_of_the_opening_are_the_prompt_s_and_those_of_the_end_replace_them(ask):
    events = read_stream(post(ask(create_app(FakeBackend(cached_tokens=3))), stream=True).text)
    start, end = events[0][1].message.usage, events[-2][1].usage
    prompt = len("user: hi\n")
    assert (start.input_tokens, start.cache_read_input_tokens, start.output_tokens) == (prompt, 0, 0)
    assert (end.input_tokens, end.cache_read_input_tokens, end.output_tokens) == (prompt - 3, 3, 3)


def test_silence_is_filled_with_pings_by_the_clock(ask):
    script = Script(prefill=0.5, prefill_steps=25)
    response = post(ask(create_app(FakeBackend(script), keepalive_seconds=0.1)), stream=True)
    assert response.headers["content-type"].startswith("text/event-stream")
    names = [name for name, _ in read_stream(response.text)]
    assert names[0] == "message_start"
    assert 3 <= names.count("ping") <= 5
    assert names[1 : 1 + names.count("ping")] == ["ping"] * names.count("ping")
    assert re.search(r"^: still working, \d+ of 9 prompt tokens read$", response.text, re.MULTILINE)


def test_reasoning_that_is_not_shown_is_no_silence(ask):
    script = Script([b"<think>"] + [b"x"] * 20 + [b"</think>", b"hi"], delay=0.02)
    app = create_app(FakeBackend(script, parser=JsonCallParser), keepalive_seconds=0.1)
    thinking = {"type": "adaptive", "display": "omitted"}
    names = [name for name, _ in read_stream(post(ask(app), stream=True, thinking=thinking).text)]
    assert names.count("ping") >= 2


def test_a_failure_ends_a_stream_with_an_error(ask):
    response = post(ask(create_app(FakeBackend(Script(reason="error", error="SECRET")))), stream=True)
    *before, (name, body) = read_stream(response.text)
    assert name == "error"
    assert checked_error(body).request_id == response.headers["request-id"]
    assert "message_stop" not in [name for name, _ in before]
    assert "SECRET" not in response.text


def test_a_progress_without_numbers_is_a_ping_as_well():
    writer = MessageEventWriter(MessageForm("msg_1", "m", "id", 9, 100))
    for progress in (None, Progress(1, 9)):
        assert read_stream(writer.silence(progress)) == [("ping", {"type": "ping"})]
