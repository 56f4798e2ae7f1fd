"""Anthropic's official client against a real socket."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timezone

import anthropic
import pytest

from freehold.model.answers.json_calls import JsonCallParser
from freehold.server.app import create_app
from support.anthropic_types import checked_error, checked_models
from support.fake_backend import FakeBackend, Script

HI = [{"role": "user", "content": "hi"}]
WEATHER = {
    "name": "weather",
    "description": "Tells the weather.",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}


def said(text: str, size: int = 3, **options) -> Script:
    """An answer in small tokens."""
    data = text.encode()
    return Script([data[at : at + size] for at in range(0, len(data), size)], **options)


def call(name: str, arguments: str) -> str:
    return f'<tool_call>{{"name": "{name}", "arguments": {arguments}}}</tool_call>'


def reasoning_backend(*answers: str | Script, **options) -> FakeBackend:
    """Gives one answer after the other."""
    scripts = iter([said(answer) if isinstance(answer, str) else answer for answer in answers])
    return FakeBackend(lambda *_: next(scripts), parser=JsonCallParser, **options)


@pytest.fixture
def connect(running) -> Iterator[object]:
    """`connect(backend)` serves it and gives a client."""
    open_things = []

    def start(backend, **options):
        server = running(create_app(backend, api_key="key", **options))
        url = server.__enter__()
        client = anthropic.Anthropic(base_url=url, api_key="key", max_retries=0)
        open_things.append((client, server))
        return client

    yield start
    for client, server in open_things:
        client.close()
        server.__exit__(None, None, None)


def test_models_are_listed_in_the_form_of_the_client(connect):
    client = connect(FakeBackend(), aliases=["other"])
    (model,) = client.models.list()
    assert (model.id, model.type, model.display_name) == ("fake/model", "model", "fake/model")
    assert model.created_at == datetime.fromtimestamp(1_700_000_000, timezone.utc)
    assert (model.lifecycle, model.max_input_tokens) == ("active", 4096)
    for name in ("fake/model", "other"):
        assert client.models.retrieve(name).model_dump() == model.model_dump()
    assert checked_models(client.models.with_raw_response.list(limit=1).http_response.json()) == [model]
    assert list(client.models.list(after_id="fake/model")) == list(client.models.list(before_id="other")) == []


@pytest.mark.parametrize("ask", ["retrieve", "list"])
def test_errors_about_models_have_the_form_of_the_client(connect, ask):
    client = connect(FakeBackend())
    with pytest.raises(anthropic.NotFoundError) as missing:
        client.models.retrieve("claude-x") if ask == "retrieve" else client.models.list(after_id="claude-x")
    checked_error(missing.value.body)
    assert missing.value.request_id == missing.value.body["request_id"] != ""
    with pytest.raises(anthropic.AuthenticationError) as unknown:
        client.with_options(api_key="other").models.list()
    checked_error(unknown.value.body)


def test_a_message_and_its_counts(connect):
    backend = FakeBackend(cached_tokens=3)
    client = connect(backend)
    answer = client.messages.create(
        model="fake/model", max_tokens=20, messages=HI, system="be brief", metadata={"user_id": "me"}
    )
    assert (answer.type, answer.role, answer.model) == ("message", "assistant", "fake/model")
    assert answer.id.startswith("msg_")
    assert [block.model_dump(exclude_none=True) for block in answer.content] == [
        {"type": "text", "text": "Hello, world"}
    ]
    assert (answer.stop_reason, answer.stop_sequence) == ("end_turn", None)
    prompt = len("system: be brief\nuser: hi\n")
    usage = answer.usage
    assert (usage.input_tokens, usage.cache_read_input_tokens, usage.output_tokens) == (prompt - 3, 3, 3)
    assert usage.cache_creation_input_tokens == 0
    assert answer._request_id is not None
    assert backend.streams[0].client == ("key api-key", "user me")


def test_a_user_s_name_of_any_length_is_kept_short(connect):
    backend = FakeBackend(Script([b"x"]))
    client = connect(backend)
    for end in "aab":
        client.messages.create(model="fake/model", max_tokens=2, messages=HI, metadata={"user_id": "u" * 100_000 + end})
    first, second, other = (stream.client[1] for stream in backend.streams)
    assert first == second != other
    assert len(first) < 300


def test_the_stream_helper_ends_with_the_same_message(connect):
    text = "<think>\nhm, well\n</think>\n\nSunny." + call("weather", '{"city": "Oslo"}')
    client = connect(reasoning_backend(text, text, cached_tokens=2))
    plain = client.messages.create(model="fake/model", max_tokens=200, messages=HI, tools=[WEATHER])
    with client.messages.stream(model="fake/model", max_tokens=200, messages=HI, tools=[WEATHER]) as stream:
        events = [event.type for event in stream]
        streamed = stream.get_final_message()
    assert [block.type for block in plain.content] == ["thinking", "text", "tool_use"]
    for message in (plain, streamed):
        thinking, text, tool = message.content
        assert (thinking.thinking, text.text) == ("hm, well", "Sunny.")
        assert (tool.name, tool.input) == ("weather", {"city": "Oslo"})
        assert tool.id.startswith("toolu_")
        assert message.stop_reason == "tool_use"
    assert plain.content[0].signature == streamed.content[0].signature != ""
    assert plain.usage.to_dict() == streamed.usage.to_dict()
    assert plain.usage.output_tokens_details.thinking_tokens > 3
    assert {"thinking", "signature", "text", "input_json", "message_stop"} <= set(events)


def test_tools_over_several_turns(connect):
    first = (
        "<think>\nask both\n</think>\n\n" + call("weather", '{"city": "Oslo"}') + call("weather", '{"city": "Rome"}')
    )
    backend = reasoning_backend(first, call("weather", '{"city": "Bonn"}'), "All sunny.")
    client = connect(backend)
    messages = [{"role": "user", "content": "Where is the sun?"}]
    while True:
        answer = client.messages.create(
            model="fake/model", max_tokens=500, messages=messages, tools=[WEATHER], thinking={"type": "adaptive"}
        )
        messages.append({"role": "assistant", "content": answer.content})
        if answer.stop_reason != "tool_use":
            break
        results = [
            {"type": "tool_result", "tool_use_id": block.id, "content": f"sun in {block.input['city']}"}
            for block in reversed(answer.content)
            if block.type == "tool_use"
        ]
        messages.append({"role": "user", "content": [*results, {"type": "text", "text": "go on"}]})
    assert answer.content[0].text == "All sunny."
    assert [m["role"] for m in backend.messages] == "user assistant tool tool user assistant tool user".split()
    asked, oslo, rome, more = backend.messages[1:5]
    assert asked["reasoning_content"] == "ask both"
    ids = [call["id"] for call in asked["tool_calls"]]
    # In the order of the calls, as many templates name no ids.
    assert [oslo["tool_call_id"], rome["tool_call_id"]] == ids
    assert [oslo["content"], rome["content"]] == ["sun in Oslo", "sun in Rome"]
    assert more == {"role": "user", "content": "go on"}


def test_an_answer_comes_back_as_it_was_remembered(connect):
    """What the engine is told of an answer and what the client sends back have the same meaning."""
    text = "<think>\nhm\n</think>\n\nWell." + call("weather", '{"city": "Oslo"}')
    backend = reasoning_backend(text, "ok")
    client = connect(backend)
    answer = client.messages.create(model="fake/model", max_tokens=500, messages=HI, tools=[WEATHER])
    result = {"type": "tool_result", "tool_use_id": answer.content[-1].id, "content": "sun"}
    messages = [*HI, {"role": "assistant", "content": answer.content}, {"role": "user", "content": [result]}]
    client.messages.create(model="fake/model", max_tokens=500, messages=messages, tools=[WEATHER])
    remembered, back = backend.remembered[0][1], backend.messages[1]
    assert {name: back[name] for name in ("content", "reasoning_content")} == {
        name: remembered[name] for name in ("content", "reasoning_content")
    }
    assert back["tool_calls"][0]["function"] == remembered["tool_calls"][0]["function"]


def test_thinking_that_is_omitted_comes_back_all_the_same(connect):
    backend = reasoning_backend("<think>\nsecret\n</think>\n\nHi.", "<think>\nsecret\n</think>\n\nHi.", "ok", "ok")
    client = connect(backend)
    options = {"model": "fake/model", "max_tokens": 99, "thinking": {"type": "adaptive", "display": "omitted"}}
    plain = client.messages.create(messages=HI, **options)
    with client.messages.stream(messages=HI, **options) as stream:
        streamed = stream.get_final_message()
    for answer in (plain, streamed):
        assert [block.type for block in answer.content] == ["thinking", "text"]
        assert answer.content[0].thinking == ""
        client.messages.create(messages=[*HI, {"role": "assistant", "content": answer.content}, *HI], **options)
        assert backend.messages[1]["reasoning_content"] == "secret"


def test_counting_agrees_with_what_an_answer_counts(connect):
    client = connect(FakeBackend(cached_tokens=4))
    asked = {"model": "fake/model", "messages": HI, "system": "be brief", "tools": [WEATHER]}
    usage = client.messages.create(max_tokens=5, **asked).usage
    counted = client.messages.count_tokens(**asked).input_tokens
    assert counted == usage.input_tokens + usage.cache_read_input_tokens


def test_the_beta_client_is_served_too(connect):
    client = connect(FakeBackend())
    answer = client.beta.messages.create(
        model="fake/model",
        max_tokens=9,
        messages=HI,
        betas=["context-management-2025-06-27"],
        context_management={"edits": [{"type": "clear_tool_uses_20250919"}]},
    )
    assert answer.content[0].text == "Hello, world"
    assert client.beta.messages.count_tokens(model="fake/model", messages=HI).input_tokens == len("user: hi\n")


def test_errors_become_the_client_s_exceptions(connect):
    client = connect(FakeBackend(context_length=100, capacity=0), max_body_bytes=10_000)
    ask = client.messages.create
    usual = {"model": "fake/model", "max_tokens": 5}
    with pytest.raises(anthropic.RateLimitError) as full:
        ask(messages=HI, **usual)
    assert int(full.value.response.headers["retry-after"]) >= 1
    with pytest.raises(anthropic.BadRequestError, match="context") as long:
        ask(messages=[{"role": "user", "content": "x" * 200}], **usual)
    assert long.value.body["error"]["type"] == "invalid_request_error"
    assert long.value.request_id == long.value.body["request_id"] != ""
    with pytest.raises(anthropic.NotFoundError) as missing:
        ask(messages=HI, model="claude-x", max_tokens=5)
    assert missing.value.body["error"]["type"] == "not_found_error"
    with pytest.raises(anthropic.AuthenticationError) as unknown:
        client.with_options(api_key="other").messages.create(messages=HI, **usual)
    assert unknown.value.body["error"]["type"] == "authentication_error"
    with pytest.raises(anthropic.APIStatusError) as large:
        ask(messages=[{"role": "user", "content": "x" * 30_000}], **usual)
    assert (large.value.status_code, large.value.body["error"]["type"]) == (413, "request_too_large")


@pytest.mark.parametrize("reason", ["error", "cancelled"])
def test_a_failure_within_a_stream_is_raised_by_the_client(connect, reason):
    client = connect(FakeBackend(Script(reason=reason, error="SECRET")))
    got = []
    with pytest.raises(anthropic.APIStatusError) as failure:  # noqa: SIM117
        with client.messages.stream(model="fake/model", max_tokens=9, messages=HI) as stream:
            got.extend(stream.text_stream)
    assert "".join(got) == "Hello, world"
    body = failure.value.body
    assert body["error"]["type"] == {"error": "api_error", "cancelled": "overloaded_error"}[reason]
    assert "SECRET" not in str(body)


def test_tokens_are_sent_when_they_are_sampled(connect):
    backend = FakeBackend(Script([b"a", b"b"], delay=0.3))
    client = connect(backend)
    ended_at = {}
    with client.messages.stream(model="fake/model", max_tokens=9, messages=HI) as stream:
        for event in stream:
            ended_at[event.type] = backend.streams[0].ended
            if event.type == "text" and event.text == "a":
                assert not backend.streams[0].ended
    assert ended_at["message_start"] is False
    assert ended_at["message_stop"] is True
