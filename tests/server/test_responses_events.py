"""Whatever a model answers, in whatever pieces it becomes known, the events of a response obey the API's laws."""

from __future__ import annotations

import asyncio
import itertools
import json

import httpx
import openai.types.responses as types
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from freehold.core.parts import ReasoningPart, TextPart, ToolCallArguments, ToolCallEnd, ToolCallStart
from freehold.server.app import create_app
from freehold.server.sealed_reasoning import open_reasoning
from support.fake_backend import FakeBackend, Script
from support.response_events import assert_lawful, assert_typed, events_of
from support.scripted_parser import ScriptedParser

TOOLS = [{"type": "function", "name": "f", "parameters": {"type": "object"}}, {"type": "custom", "name": "patch"}]
TEXTS = st.text(min_size=1, max_size=6)


SCRIPTED = FakeBackend(lambda *_: SCRIPTED.script, parser=lambda: SCRIPTED.new_parser(), capacity=1 << 30)
"""One backend and one application for all scripts: they take longer to make than to ask."""
APP = create_app(SCRIPTED)


def ask_scripted(script, **fields):
    _, pushes, last, _, reason = script
    SCRIPTED.script = Script([b"x"] * len(pushes), reason=reason)
    SCRIPTED.new_parser = lambda: ScriptedParser(pushes, last)
    return ask(SCRIPTED, app=APP, **fields)


def ask(backend, *, app=None, keepalive_seconds=15.0, **fields):
    app = app or create_app(backend, keepalive_seconds=keepalive_seconds)

    async def post():
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            body = {"model": "fake/model", "input": "hi", "tools": TOOLS, **fields}
            return await client.post("/v1/responses", json=body)

    return asyncio.run(post())


def pieces(draw, text):
    cuts = sorted(draw(st.sets(st.integers(1, max(1, len(text) - 1)), max_size=3)))
    return [text[a:b] for a, b in itertools.pairwise([0, *cuts, len(text)]) if text[a:b]]


@st.composite
def answers(draw):
    """(what was said, as (kind, text) in order; the parts that tell it; whether it broke off)."""
    said, parts = [], []
    num_calls = 0
    broken = False
    for kind in draw(st.lists(st.sampled_from(["reasoning", "text", "f", "patch"]), max_size=5)):
        text = draw(TEXTS)
        if kind in ("reasoning", "text"):
            part = ReasoningPart if kind == "reasoning" else TextPart
            parts += [part(piece) for piece in pieces(draw, text)]
            if said and said[-1][0] == kind:
                text = said.pop()[1] + text
            said.append((kind, text))
            continue
        arguments = json.dumps({"input": text}, ensure_ascii=draw(st.booleans()))
        broken = draw(st.booleans())
        if broken:
            arguments = arguments[: draw(st.integers(0, len(arguments) - 1))]
        parts.append(ToolCallStart(num_calls, kind))
        parts += [ToolCallArguments(num_calls, piece) for piece in pieces(draw, arguments)]
        parts.append(ToolCallEnd(num_calls, complete=not broken))
        num_calls += 1
        said.append((kind, None if broken and kind == "patch" else text if kind == "patch" else arguments))
        if broken:
            break
    return said, parts, broken


@st.composite
def scripts(draw):
    said, parts, broken = draw(answers())
    pushes = []
    while parts:
        count = draw(st.integers(0, 3))
        pushes.append(parts[:count])
        parts = parts[count:]
    last = pushes.pop() if pushes and draw(st.booleans()) else []
    reason = draw(st.sampled_from(["stop", "length"]))
    return said, pushes, last, broken, reason


def told(item):
    if item["type"] in ("message", "reasoning"):
        kind = "text" if item["type"] == "message" else "reasoning"
        return kind, "".join(part["text"] for part in item["content"])
    return item["name"], item["input"] if item["type"] == "custom_tool_call" else item["arguments"]


def without_names(response):
    """A response without what differs from one to the next: ids and times."""
    items = [{k: v for k, v in item.items() if k not in ("id", "call_id")} for item in response["output"]]
    return {**response, "id": "", "created_at": 0, "completed_at": 0, "output": items}


def assert_told(script):
    said, _, _, broken, reason = script
    response = assert_lawful(events_of(ask_scripted(script, stream=True).text))
    for (kind, text), item in zip(said, response["output"], strict=True):
        assert told(item)[0] == kind
        assert text is None or told(item)[1] == text
    cut_off = broken or reason == "length"
    assert response["status"] == ("incomplete" if cut_off else "completed")
    assert response["incomplete_details"] == ({"reason": "max_output_tokens"} if cut_off else None)
    statuses = [item["status"] for item in response["output"]]
    assert set(statuses[:-1]) <= {"completed"}
    if broken:
        assert statuses[-1] == "incomplete"


@given(scripts())
@settings(max_examples=30, deadline=None)
def test_any_stream_is_lawful_and_tells_what_was_said(script):
    assert_told(script)


@pytest.mark.slow
@given(scripts())
@settings(max_examples=1000, deadline=None)
def test_a_thousand_streams_are_lawful_and_tell_what_was_said(script):
    assert_told(script)


@given(scripts())
@settings(max_examples=15, deadline=None)
def test_a_whole_answer_is_what_its_stream_ends_with(script):
    whole = ask_scripted(script, include=["reasoning.encrypted_content"]).json()
    assert_typed(types.Response, whole)
    stream = ask_scripted(script, include=["reasoning.encrypted_content"], stream=True)
    assert without_names(events_of(stream.text)[-1]["response"]) == without_names(whole)


@given(scripts())
@settings(max_examples=10, deadline=None)
def test_sealed_reasoning_opens_to_the_reasoning(script):
    for item in ask_scripted(script, include=["reasoning.encrypted_content"]).json()["output"]:
        if item["type"] == "reasoning":
            assert open_reasoning(item["encrypted_content"]) == item["content"][0]["text"]


def test_reasoning_is_sealed_only_where_that_is_asked_for():
    backend = FakeBackend(parser=lambda: ScriptedParser([[ReasoningPart("r")]]))
    assert ask(backend).json()["output"][0]["encrypted_content"] is None


@pytest.mark.parametrize(
    ("pushes", "last", "count"),
    [
        ([[ReasoningPart("a")], [ReasoningPart("b")], [TextPart("c")]], [], 2),
        ([[], [ReasoningPart("a")], [], [TextPart("c")]], [], 2),
        ([[ReasoningPart("a"), TextPart("b")], [TextPart("c")]], [], 1),
        ([[ReasoningPart("a")], [], []], [ReasoningPart("b")], 3),
        ([[TextPart("a")], []], [], 0),
        ([], [], 0),
    ],
)
def test_tokens_of_reasoning_are_counted(pushes, last, count):
    backend = FakeBackend(Script([b"x"] * len(pushes)), parser=lambda: ScriptedParser(pushes, last))
    usage = ask(backend).json()["usage"]
    assert usage["output_tokens_details"] == {"reasoning_tokens": count}
    assert usage["output_tokens"] == len(pushes)


def test_silence_is_broken_by_events_that_count():
    backend = FakeBackend(Script(prefill=0.3, prefill_steps=6))
    events = events_of(ask(backend, stream=True, keepalive_seconds=0.05).text)
    assert_lawful(events)
    assert [event["type"] for event in events].count("response.in_progress") >= 4


def test_progress_is_told_to_people_too():
    text = ask(FakeBackend(Script(prefill=0.3, prefill_steps=6)), stream=True, keepalive_seconds=0.05).text
    assert "prompt tokens read" in text


@pytest.mark.parametrize("reason", ["error", "cancelled", "timeout"])
def test_a_stream_that_breaks_off_says_so(reason):
    pushes = [[TextPart("a")], [TextPart("b")]]
    backend = FakeBackend(Script([b"x"] * 2, reason=reason), parser=lambda: ScriptedParser(pushes))
    response = assert_lawful(events_of(ask(backend, stream=True).text))
    assert response["status"] == "failed"
    assert response["error"]["code"] == "server_error"
    assert [(told(item), item["status"]) for item in response["output"]] == [(("text", "ab"), "incomplete")]


def test_a_whole_answer_that_breaks_off_has_an_error_body():
    response = ask(FakeBackend(Script(reason="error")))
    assert (response.status_code, response.json()["error"]["code"]) == (500, "internal_error")
