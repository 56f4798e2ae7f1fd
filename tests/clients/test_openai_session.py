"""The official openai client through a session with tools: chats, completions, responses; plain, async, streamed."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import openai
import pytest

from support.scripted_answers import ScriptedAnswer, ScriptedTalk, call

MARKER = "How warm is it in Bergen?"
ANSWERS = [
    ScriptedAnswer("I look it up.", "The tool knows.", [call("weather", city="Bergen", days=[1, 2])]),
    ScriptedAnswer("It has 7 degrees.", "Simple."),
]
SCRIPT = [ScriptedTalk(MARKER, ANSWERS)]
PARAMETERS = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "days": {"type": "array", "items": {"type": "integer"}}},
}
CHAT_TOOL: Any = {"type": "function", "function": {"name": "weather", "parameters": PARAMETERS}}
RESPONSES_TOOL: Any = {"type": "function", "name": "weather", "parameters": PARAMETERS, "strict": False}
RESULT = '{"degrees": 7}'


@pytest.fixture
def client(served: Any) -> Any:
    with openai.OpenAI(base_url=served.openai, api_key="none", max_retries=0) as client:
        yield client


def chat_history(message: Any) -> list[Any]:
    made = message.tool_calls[0]
    assert json.loads(made.function.arguments) == {"city": "Bergen", "days": [1, 2]}
    answer = message.model_dump(exclude_none=True, exclude={"parsed"})
    for one in answer["tool_calls"]:
        one["function"].pop("parsed_arguments", None)
        one.pop("index", None)
    return [
        {"role": "user", "content": MARKER},
        answer,
        {"role": "tool", "tool_call_id": made.id, "content": RESULT},
    ]


def test_chat_with_a_tool(client: Any, served: Any, found_everything: Any) -> None:
    asked: dict[str, Any] = {"model": served.model, "tools": [CHAT_TOOL]}
    first = client.chat.completions.create(messages=[{"role": "user", "content": MARKER}], **asked)
    assert first.choices[0].finish_reason == "tool_calls"
    message = first.choices[0].message
    assert (message.content, message.reasoning_content) == ("\nI look it up.", "The tool knows.")
    second = client.chat.completions.create(messages=chat_history(message), **asked, extra_body={"provenance": True})
    assert second.choices[0].message.content.strip() == "It has 7 degrees."
    assert found_everything(first.usage.total_tokens, second.usage.prompt_tokens_details.cached_tokens)
    assert second.choices[0].provenance["block_tokens"] == served.block_tokens


def test_the_stream_helper_of_chats(client: Any, served: Any, found_everything: Any) -> None:
    asked: dict[str, Any] = {
        "model": served.model,
        "tools": [CHAT_TOOL],
        "stream_options": {"include_usage": True},
    }
    with client.chat.completions.stream(messages=[{"role": "user", "content": MARKER}], **asked) as stream:
        kinds = {event.type for event in stream}
        first = stream.get_final_completion()
    assert {"content.delta", "tool_calls.function.arguments.delta", "tool_calls.function.arguments.done"} <= kinds
    with client.chat.completions.stream(messages=chat_history(first.choices[0].message), **asked) as stream:
        second = stream.get_final_completion()
    assert second.choices[0].message.content.strip() == "It has 7 degrees."
    assert found_everything(first.usage.total_tokens, second.usage.prompt_tokens_details.cached_tokens)


def test_completions(client: Any, served: Any) -> None:
    whole = client.completions.create(model=served.model, prompt="The rain", max_tokens=3)
    pieces = client.completions.create(model=served.model, prompt="The rain", max_tokens=3, stream=True)
    text = "".join(piece.choices[0].text for piece in pieces)
    assert whole.choices[0].text == text
    assert text
    assert "Fine.".startswith(text)
    assert whole.usage.completion_tokens == 3
    assert [model.id for model in client.models.list()] == [served.model]


def responses_history(response: Any) -> list[Any]:
    items = [item.model_dump(exclude_none=True, exclude={"parsed_arguments"}) for item in response.output]
    for item in items:
        for part in item.get("content") or ():
            part.pop("parsed", None)
    made = next(item for item in response.output if item.type == "function_call")
    assert json.loads(made.arguments) == {"city": "Bergen", "days": [1, 2]}
    output = {"type": "function_call_output", "call_id": made.call_id, "output": RESULT}
    return [{"role": "user", "content": MARKER}, *items, output]


@pytest.mark.parametrize("include", [[], ["reasoning.encrypted_content"]])
def test_responses_with_a_tool(client: Any, served: Any, found_everything: Any, include: list[Any]) -> None:
    asked: dict[str, Any] = {"model": served.model, "tools": [RESPONSES_TOOL], "include": include, "store": False}
    first = client.responses.create(input=MARKER, **asked)
    assert [item.type for item in first.output] == ["reasoning", "message", "function_call"]
    with client.responses.stream(input=responses_history(first), **asked) as stream:
        kinds = {event.type for event in stream}
        second = stream.get_final_response()
    assert {"response.created", "response.output_text.delta", "response.completed"} <= kinds
    assert second.output_text.strip() == "It has 7 degrees."
    assert found_everything(first.usage.total_tokens, second.usage.input_tokens_details.cached_tokens)


def test_async_clients_side_by_side(served: Any) -> None:
    async def ask() -> tuple[Any, Any, str]:
        async with openai.AsyncOpenAI(base_url=served.openai, api_key="none", max_retries=0) as client:
            asked: dict[str, Any] = {"model": served.model}
            chat = client.chat.completions.create(
                messages=[{"role": "user", "content": MARKER}], tools=[CHAT_TOOL], **asked
            )
            response = client.responses.create(input=MARKER, tools=[RESPONSES_TOOL], **asked)
            first, second = await asyncio.gather(chat, response)
            stream = await client.chat.completions.create(
                messages=chat_history(first.choices[0].message), tools=[CHAT_TOOL], stream=True, **asked
            )
            text = "".join([chunk.choices[0].delta.content or "" async for chunk in stream if chunk.choices])
            return first, second, text

    chat, response, text = asyncio.run(ask())
    assert chat.choices[0].message.tool_calls[0].function.name == "weather"
    assert response.output[-1].name == "weather"
    assert text.strip() == "It has 7 degrees."


def test_a_forced_tool_and_the_grammar(client: Any, served: Any) -> None:
    answer = client.chat.completions.create(
        model=served.model,
        messages=[{"role": "user", "content": MARKER}],
        tools=[CHAT_TOOL],
        tool_choice={"type": "function", "function": {"name": "weather"}},
    )
    assert answer.choices[0].message.tool_calls[0].function.name == "weather"
