"""Messages of Anthropic's API as the one form of a chat: turns of blocks become messages of texts and calls."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterable, Sequence
from typing import Any

from freehold.core.errors import RequestError
from freehold.server.called_tools import CalledTools
from freehold.server.messages.wire_blocks import (
    DocumentBlock,
    ImageBlock,
    Message,
    SearchResultBlock,
    TextBlock,
    TextSource,
    ThinkingBlock,
    ToolReferenceBlock,
    ToolResultBlock,
    ToolUseBlock,
)
from freehold.server.sealed_reasoning import open_reasoning

_BETWEEN = "\n\n"
# Claude Code puts this line in front of its system prompt. It says nothing to a model and changes with every request,
# so that no prompt would ever begin like the one before.
_BILLING = re.compile(r"\Ax-anthropic-billing-header:[^\n]*\n?")
_LEFT_OUT = "[an image was left out here: this model reads text alone]"
_NO_RESULT = "There is no result: the call was not carried out."


def chat_messages(system: Sequence[TextBlock], messages: Sequence[Message]) -> list[dict[str, Any]]:
    """The conversation in the form of `Conversation.messages`.

    System texts come first, as one message: those of the request, then leading messages of the role 'system'. Later
    ones become a part of the user's turn that they stand in, marked as reminders, since chat templates know no system
    message there. Messages of one side that follow each other are one turn.

    A user's turn gives the results of tools first, one message each, in the order in which the tools were called; the
    rest of the turn follows as one message. A call without a result gets one that says so.

    Raises RequestError for results of calls that the assistant's turn before does not have, for two results of one
    call, for two calls of one turn with the same id, and for blocks of reasoning whose text is damaged.
    """
    start = next((i for i, message in enumerate(messages) if message.role != "system"), len(messages))
    texts = [_BILLING.sub("", block.text) for block in system]
    texts += [_text_of(message.content) for message in messages[:start]]
    chat = _one_message("system", texts)
    calls: list[ToolUseBlock] = []
    called = CalledTools()
    numbered = list(enumerate(messages))[start:]
    for by_assistant, turn in itertools.groupby(numbered, key=lambda item: item[1].role == "assistant"):
        if by_assistant:
            blocks = [
                (f"messages[{number}].content[{index}]", block)
                for number, message in turn
                for index, block in enumerate(message.content)
            ]
            calls = [block for _, block in blocks if isinstance(block, ToolUseBlock)]
            for place, block in blocks:
                if isinstance(block, ToolUseBlock):
                    called.call(block.id, f"{place}.id")
            chat.append(_assistant(blocks, calls))
        else:
            chat += _user(list(turn), calls, called)
            calls, called = [], CalledTools()
    return chat


def _one_message(role: str, texts: Iterable[str]) -> list[dict[str, Any]]:
    text = _BETWEEN.join(text for text in texts if text.strip())
    return [{"role": role, "content": text}] if text else []


def _assistant(blocks: Sequence[tuple[str, Any]], calls: Sequence[ToolUseBlock]) -> dict[str, Any]:
    # Nothing stands between the texts: this is how an answer was cut into blocks.
    message: dict[str, Any] = {
        "role": "assistant",
        "content": "".join(block.text for _, block in blocks if isinstance(block, TextBlock)),
    }
    if reasoning := "".join(_reasoning(place, block) for place, block in blocks if isinstance(block, ThinkingBlock)):
        message["reasoning_content"] = reasoning
    if calls:
        message["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": json.dumps(call.input, ensure_ascii=False)},
            }
            for call in calls
        ]
    return message


def _reasoning(place: str, block: ThinkingBlock) -> str:
    """The text, or what the signature of a block without text carries; see `ContentBlocks`."""
    try:
        return block.thinking or open_reasoning(block.signature or "") or ""
    except RequestError as error:
        raise RequestError(f"{place}.signature: {error}", field=f"{place}.signature") from None


def _user(
    turn: Sequence[tuple[int, Message]], calls: Sequence[ToolUseBlock], called: CalledTools
) -> list[dict[str, Any]]:
    results: dict[str, Any] = {}
    pieces: list[Any] = []
    for number, message in turn:
        if message.role == "system":
            pieces.append(_reminder(_text_of(message.content)))
            continue
        for index, block in enumerate(message.content):
            place = f"messages[{number}].content[{index}]"
            if isinstance(block, ToolResultBlock):
                called.result(block.tool_use_id, f"{place}.tool_use_id")
                results[block.tool_use_id] = _result(block, place)
            else:
                pieces.append(_image(block, place) if isinstance(block, ImageBlock) else _text(block))
    tools = [{"role": "tool", "tool_call_id": call.id, "content": results.get(call.id, _NO_RESULT)} for call in calls]
    content = _content([piece for piece in pieces if not isinstance(piece, str) or piece.strip()])
    said = [{"role": "user", "content": content}] if content else []
    return [*tools, *said] if tools or said else [{"role": "user", "content": ""}]


def _content(pieces: Sequence[Any]) -> str | list[dict[str, Any]]:
    """Texts and images with an empty line between each two: as one text, if they are nothing but texts."""
    if all(isinstance(piece, str) for piece in pieces):
        return _BETWEEN.join(pieces)
    parts: list[dict[str, Any]] = []
    for piece in pieces:
        if parts:
            parts.append({"type": "text", "text": _BETWEEN})
        parts.append({"type": "text", "text": piece} if isinstance(piece, str) else piece)
    return parts


def _image(block: ImageBlock, place: str) -> dict[str, Any]:
    return {"type": "image", "image": block.url, "where": place}


def _reminder(text: str) -> str:
    return f"<system-reminder>\n{text}\n</system-reminder>" if text.strip() else ""


def _result(block: ToolResultBlock, place: str) -> str | list[dict[str, Any]]:
    pieces: list[Any] = []
    for index, inner in enumerate(block.content or ()):
        if isinstance(inner, ImageBlock):
            pieces.append({**_image(inner, f"{place}.content[{index}]"), "otherwise": _LEFT_OUT})
        elif text := _text(inner):
            pieces.append(text)
    content = _content(pieces)
    # No chat template has a place for the mark itself.
    if not block.is_error:
        return content
    return f"Error: {content}" if isinstance(content, str) else [{"type": "text", "text": "Error: "}, *content]


def _text_of(blocks: Iterable[Any]) -> str:
    return _BETWEEN.join(text for block in blocks if (text := _text(block)))


def _text(block: Any) -> str:
    """What a model reads of a block."""
    if isinstance(block, TextBlock):
        return block.text
    if isinstance(block, DocumentBlock):
        source = block.source
        text = source.data if isinstance(source, TextSource) else _text_of(source.content)
        return _titled("document", {"title": block.title, "context": block.context}, text)
    if isinstance(block, SearchResultBlock):
        return _titled("search_result", {"title": block.title, "source": block.source}, _text_of(block.content))
    assert isinstance(block, ToolReferenceBlock)
    return f"[tool: {block.tool_name}]"


def _titled(tag: str, labels: dict[str, str | None], text: str) -> str:
    head = "".join(f"{name}: {value}\n" for name, value in labels.items() if value)
    return f"<{tag}>\n{head}{text}\n</{tag}>"
