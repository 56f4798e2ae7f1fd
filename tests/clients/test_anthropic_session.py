"""The official anthropic client through a session with tools: plain, async, streamed; and token counts."""

from __future__ import annotations

import asyncio
from typing import Any

import anthropic
import pytest

from support.scripted_answers import ScriptedAnswer, ScriptedTalk, call

MARKER = "What lies on the table?"
ANSWERS = [
    ScriptedAnswer("I look.", "Look first.", [call("look", place="table"), call("look", place="floor")]),
    ScriptedAnswer("A key lies there.", "Now I know."),
]
SCRIPT = [ScriptedTalk(MARKER, ANSWERS)]
TOOL: Any = {"name": "look", "input_schema": {"type": "object", "properties": {"place": {"type": "string"}}}}


@pytest.fixture
def client(served: Any) -> Any:
    with anthropic.Anthropic(base_url=served.url, api_key="none", max_retries=0) as client:
        yield client


def history(message: Any) -> list[Any]:
    blocks = [block.model_dump(exclude_none=True, exclude={"parsed_output"}) for block in message.content]
    assert [block["type"] for block in blocks] == ["thinking", "text", "tool_use", "tool_use"]
    results = [
        {"type": "tool_result", "tool_use_id": block["id"], "content": f"the {block['input']['place']}: a key"}
        for block in blocks
        if block["type"] == "tool_use"
    ]
    return [
        {"role": "user", "content": MARKER},
        {"role": "assistant", "content": blocks},
        {"role": "user", "content": results},
    ]


def total(usage: Any) -> int:
    return int(usage.input_tokens + usage.cache_read_input_tokens + usage.output_tokens)


def test_messages_with_tools(client: Any, served: Any, found_everything: Any) -> None:
    asked: dict[str, Any] = {"model": served.model, "tools": [TOOL], "max_tokens": 500}
    first = client.messages.create(messages=[{"role": "user", "content": MARKER}], **asked)
    assert first.stop_reason == "tool_use"
    second = client.messages.create(messages=history(first), **asked)
    assert (second.stop_reason, second.content[-1].text.strip()) == ("end_turn", "A key lies there.")
    assert found_everything(total(first.usage), second.usage.cache_read_input_tokens)


def test_the_stream_helper(client: Any, served: Any, found_everything: Any) -> None:
    asked: dict[str, Any] = {"model": served.model, "tools": [TOOL], "max_tokens": 500}
    with client.messages.stream(messages=[{"role": "user", "content": MARKER}], **asked) as stream:
        kinds = {event.type for event in stream}
        first = stream.get_final_message()
    assert {"thinking", "text", "input_json", "content_block_stop", "message_stop"} <= kinds
    with client.messages.stream(messages=history(first), **asked) as stream:
        assert "".join(stream.text_stream).strip() == "A key lies there."
        second = stream.get_final_message()
    assert found_everything(total(first.usage), second.usage.cache_read_input_tokens)


def test_token_counts_are_those_of_the_prompt(client: Any, served: Any) -> None:
    asked: dict[str, Any] = {"model": served.model, "tools": [TOOL], "system": "Be brief."}
    messages = [{"role": "user", "content": MARKER}]
    counted = client.messages.count_tokens(messages=messages, **asked).input_tokens
    usage = client.messages.create(messages=messages, max_tokens=500, **asked).usage
    assert counted == usage.input_tokens + usage.cache_read_input_tokens


def test_the_async_client(served: Any, found_everything: Any) -> None:
    async def ask() -> tuple[Any, Any]:
        async with anthropic.AsyncAnthropic(base_url=served.url, api_key="none", max_retries=0) as client:
            asked: dict[str, Any] = {"model": served.model, "tools": [TOOL], "max_tokens": 500}
            first = await client.messages.create(messages=[{"role": "user", "content": MARKER}], **asked)
            async with client.messages.stream(messages=history(first), **asked) as stream:
                return first, await stream.get_final_message()

    first, second = asyncio.run(ask())
    assert second.content[-1].text.strip() == "A key lies there."
    assert found_everything(total(first.usage), second.usage.cache_read_input_tokens)
