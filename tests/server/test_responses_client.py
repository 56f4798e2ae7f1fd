"""The Responses API through the official client, against a real socket."""

from __future__ import annotations

import json

import openai
import pytest

from freehold.model.answers.m3 import M3Parser
from freehold.model.m3_tokens import THINK_CLOSE, THINK_OPEN, TOOL_NAMESPACE
from support.fake_backend import FakeBackend, Script

WEATHER = {
    "type": "function",
    "name": "weather",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    "strict": False,
}
PATCH = {
    "type": "custom",
    "name": "patch",
    "format": {"type": "grammar", "syntax": "lark", "definition": 'start: "*" /.+/'},
}
N = TOOL_NAMESPACE


def call(name, **arguments):
    inside = "".join(f"{N}<{key}>{value}{N}</{key}>" for key, value in arguments.items())
    return f'\n{N}<tool_call>\n{N}<invoke name="{name}">{inside}{N}</invoke>\n{N}</tool_call>'


def m3_backend(*answers, **options):
    """A backend that gives these answers, one after the other, in the format of MiniMax-M3."""
    texts = iter(answers)
    tools = [
        {"type": "function", "function": {"name": "weather", "parameters": WEATHER["parameters"]}},
        {"type": "function", "function": {"name": "patch", "parameters": {"type": "object", "properties": {
            "input": {"type": "string"}}}}},
    ]  # fmt: skip
    return FakeBackend(
        lambda *_: Script([bytes([byte]) for byte in next(texts).encode()]),
        parser=lambda: M3Parser(tools=tools, thinking_mode="adaptive"),
        context_length=100_000,
        **options,
    )


def test_plain_and_streamed(connect):
    client = connect(FakeBackend(cached_tokens=4))
    answer = client.responses.create(model="fake/model", input="hi", instructions="Be brief.", metadata={"a": "b"})
    assert (answer.output_text, answer.status, answer.metadata) == ("Hello, world", "completed", {"a": "b"})
    assert answer.instructions == "Be brief."
    assert answer.usage.input_tokens_details.cached_tokens == 4
    events = list(client.responses.create(model="fake/model", input="hi", stream=True))
    assert "".join(e.delta for e in events if e.type == "response.output_text.delta") == "Hello, world"
    assert events[-1].response.output_text == "Hello, world"


def test_the_client_s_own_stream_helper_understands_the_events(connect):
    text = f"{THINK_OPEN}hm{THINK_CLOSE}Well.{call('weather', city='Rome')}{call('patch', input='* a')}"
    client = connect(m3_backend(text))
    with client.responses.stream(model="fake/model", input="hi", tools=[WEATHER, PATCH]) as stream:
        kinds = {event.type for event in stream}
        final = stream.get_final_response()
    assert "response.custom_tool_call_input.done" in kinds
    assert [item.type for item in final.output] == ["reasoning", "message", "function_call", "custom_tool_call"]
    assert final.output[2].arguments == '{"city":"Rome"}' or json.loads(final.output[2].arguments) == {"city": "Rome"}


def test_signs_of_life_do_not_disturb_the_client(connect):
    backend = FakeBackend(Script([b"a", b"b"], prefill=0.3, prefill_steps=6, delay=0.15))
    client = connect(backend, keepalive_seconds=0.05)
    with client.responses.stream(model="fake/model", input="hi") as stream:
        kinds = [event.type for event in stream]
        assert stream.get_final_response().output_text == "ab"
    assert kinds.count("response.in_progress") > 3


def test_parsed_answers(connect):
    from pydantic import BaseModel

    class City(BaseModel):
        name: str

    backend = FakeBackend(Script([b'{"name":', b'"Rome"}']))
    answer = connect(backend).responses.parse(model="fake/model", input="hi", text_format=City)
    assert answer.output_parsed == City(name="Rome")
    assert backend.conversations[0].json_answer.schema["properties"] == {"name": {"title": "Name", "type": "string"}}


@pytest.mark.parametrize("streamed", [False, True])
def test_a_loop_of_tool_calls(connect, streamed):
    """Three turns: the client sends back what it got, as objects of its own, and what its tools gave."""
    backend = m3_backend(
        f"{THINK_OPEN}First look.{THINK_CLOSE}I look.{call('weather', city='Rome')}{call('weather', city='Oslo')}",
        f"{THINK_OPEN}Now the patch.{THINK_CLOSE}{call('patch', input='* a <b> &amp; c')}",
        f"{THINK_CLOSE}Done.",
    )
    client = connect(backend)
    items = [{"role": "user", "content": "go"}]

    def turn():
        fields = {"model": "fake/model", "input": items, "tools": [WEATHER, PATCH], "instructions": "Be good.",
                  "store": False, "include": ["reasoning.encrypted_content"]}  # fmt: skip
        if not streamed:
            return client.responses.create(**fields)
        return list(client.responses.create(**fields, stream=True))[-1].response

    for _ in range(3):
        answer = turn()
        assert answer.status == "completed"
        for item in answer.output:
            items.append(item)
            if item.type == "function_call":
                output = f"sun in {json.loads(item.arguments)['city']}"
                items.append({"type": "function_call_output", "call_id": item.call_id, "output": output})
            if item.type == "custom_tool_call":
                assert item.input == "* a <b> &amp; c"
                items.append({"type": "custom_tool_call_output", "call_id": item.call_id, "output": [
                    {"type": "input_text", "text": "patched"}]})  # fmt: skip
    assert answer.output_text == "Done."
    last = backend.conversations[2].messages
    assert [m["role"] for m in last] == [
        "system",
        "user",
        "assistant",
        "tool",
        "assistant",
        "tool",
        "assistant",
        "tool",
    ]
    # What comes back is what was remembered of the answers, as far as it is one message there too.
    _, second, _ = backend.remembered[1]
    assert last[6]["reasoning_content"] == second["reasoning_content"] == "Now the patch."
    assert json.loads(last[6]["tool_calls"][0]["function"]["arguments"]) == json.loads(
        second["tool_calls"][0]["function"]["arguments"]
    )


def test_an_answer_comes_back_as_one_message_that_is_recognised(connect):
    """Calls first and outputs after them, as Codex sends them; ids of items are dropped, as Codex does."""
    text = f"{THINK_OPEN}Both.{THINK_CLOSE}I look.{call('weather', city='Rome')}{call('weather', city='Oslo')}"
    backend = m3_backend(text, "ok")
    client = connect(backend)
    first = client.responses.create(
        model="fake/model", input="go", tools=[WEATHER], include=["reasoning.encrypted_content"]
    )
    items = []
    for item in first.output:
        sent = item.model_dump(exclude={"id", "status", "content"} if item.type == "reasoning" else {"id", "status"})
        items.append(sent)
    calls = [item["call_id"] for item in items if item["type"] == "function_call"]
    # In the order in which tools came to their end; the model sees them in the order of its calls.
    outputs = [{"type": "function_call_output", "call_id": call, "output": call} for call in reversed(calls)]
    client.responses.create(model="fake/model", input=[{"role": "user", "content": "go"}, *items, *outputs])
    _, remembered, _ = backend.remembered[0]
    _, assistant, *tools = backend.conversations[1].messages
    assert assistant == remembered
    assert [message["content"] for message in tools] == calls


def test_an_answer_that_breaks_off_in_a_call(connect):
    backend = m3_backend(f"{THINK_CLOSE}{call('weather', city='Rome')[:-60]}", "ok")
    client = connect(backend)
    first = client.responses.create(model="fake/model", input="go", tools=[WEATHER])
    (item,) = first.output
    assert (first.status, first.incomplete_details.reason, item.status) == (
        "incomplete", "max_output_tokens", "incomplete",
    )  # fmt: skip
    with pytest.raises(ValueError, match=r"Expecting|Unterminated"):
        json.loads(item.arguments)
    # Such a call comes back, with and without an output, and the session goes on.
    history = [{"role": "user", "content": "go"}, item]
    for more in ([], [{"type": "function_call_output", "call_id": item.call_id, "output": "no JSON"}]):
        backend._script = Script()
        client.responses.create(model="fake/model", input=[*history, *more, {"role": "user", "content": "again"}])
        (sent,) = backend.messages[1]["tool_calls"]
        assert sent["function"]["arguments"] == item.arguments


def test_errors_become_the_client_s_exceptions(connect):
    client = connect(FakeBackend(context_length=100))
    create = client.responses.create
    with pytest.raises(openai.BadRequestError) as long:
        create(model="fake/model", input="x" * 200)
    assert long.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError) as stored:
        create(model="fake/model", input="hi", previous_response_id="resp_1")
    assert stored.value.param == "previous_response_id"
    with pytest.raises(openai.NotFoundError):
        create(model="gpt-4o", input="hi")
    for gone in (client.responses.retrieve, client.responses.delete, client.responses.cancel):
        with pytest.raises(openai.NotFoundError, match="stores none"):
            gone("resp_1")
    with pytest.raises(openai.NotFoundError, match="stores none"):
        client.responses.input_items.list("resp_1")


def test_a_failure_within_a_stream_is_told_to_the_client(connect):
    client = connect(FakeBackend(Script(reason="error")))
    events = list(client.responses.create(model="fake/model", input="hi", stream=True))
    assert events[-1].type == "response.failed"
    assert "request id" in events[-1].response.error.message


def test_input_tokens_are_those_that_an_answer_reports(connect):
    client = connect(FakeBackend())
    fields = {"model": "fake/model", "input": "hi", "instructions": "Be brief.", "reasoning": {"effort": "low"}}
    count = client.responses.input_tokens.count(**fields)
    assert count.input_tokens == client.responses.create(**fields).usage.input_tokens
