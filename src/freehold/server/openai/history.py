"""From the messages of a chat request to those of a conversation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from freehold.server.called_tools import CalledTools
from freehold.server.openai.wire_message import ChatMessage
from freehold.server.visual_parts import placed_parts


def chat_messages(messages: Sequence[ChatMessage]) -> list[dict[str, Any]]:
    """The messages of a request, in the form of `Conversation.messages`.

    Results of tools follow the calls that they belong to, with nothing but other results between; they are put into the
    order of the calls, since templates tell them apart by order. Messages of the assistant that follow each other are
    one turn.

    Raises RequestError for a result without a call, for two results of one call and for two calls of one turn with the
    same id.
    """
    said: list[dict[str, Any]] = []
    called, before = CalledTools(), ""
    for number, message in enumerate(messages):
        if message.role == "assistant":
            called = called if before == "assistant" else CalledTools()
            for index, call in enumerate(message.tool_calls or ()):
                if call.id is not None:
                    called.call(call.id, f"messages[{number}].tool_calls[{index}].id")
        elif message.role != "tool":
            called = CalledTools()
        if message.role == "tool" and message.tool_call_id is not None:
            called.result(message.tool_call_id, f"messages[{number}].tool_call_id")
            _insert(said, _placed(message, number), called)
        else:
            said.append(_placed(message, number))
        before = message.role
    return said


def _placed(message: ChatMessage, number: int) -> dict[str, Any]:
    given = message.for_template()
    return {**given, "content": placed_parts(given["content"], f"messages[{number}].content")}


def _insert(said: list[dict[str, Any]], result: dict[str, Any], called: CalledTools) -> None:
    """Puts a result where its call stands among those of the results before it."""
    at = len(said)
    own = called.position(result["tool_call_id"])
    while said[at - 1]["role"] == "tool" and called.position(said[at - 1]["tool_call_id"]) > own:
        at -= 1
    said.insert(at, result)
