"""What Anthropic's official client says a message and the events of a stream are, held to the letter."""

from __future__ import annotations

import json
from typing import Any

from anthropic.pagination import SyncPage
from anthropic.types import ErrorResponse as AnthropicError
from anthropic.types import Message, MessageTokensCount, ModelInfo, RawMessageStreamEvent
from pydantic import BaseModel, TypeAdapter

_EVENT: TypeAdapter[Any] = TypeAdapter(RawMessageStreamEvent)


def checked_message(body: Any) -> Message:
    """`body` as a message; fields that the client does not know, or of a wrong type, fail."""
    message = Message.model_validate_json(json.dumps(body), strict=True)
    _assert_nothing_else(message)
    return message


def checked_count(body: Any) -> int:
    """`body` as a count of tokens."""
    count = MessageTokensCount.model_validate_json(json.dumps(body), strict=True)
    _assert_nothing_else(count)
    return count.input_tokens


def checked_models(body: Any) -> list[ModelInfo]:
    """`body` as a page of models, which is the only one."""
    page = SyncPage[ModelInfo].model_validate_json(json.dumps(body), strict=True)
    for model in page.data:
        _assert_nothing_else(model)
    ids = [model.id for model in page.data]
    assert set(body) == {"data", "has_more", "first_id", "last_id"}
    assert (page.has_more, page.first_id, page.last_id) == (False, ids[0] if ids else None, ids[-1] if ids else None)
    return page.data


def checked_error(body: Any) -> AnthropicError:
    """`body` as an error."""
    error = AnthropicError.model_validate_json(json.dumps(body), strict=True)
    _assert_nothing_else(error)
    return error


def read_stream(text: str) -> list[tuple[str, Any]]:
    """(name, event) of each event in a whole stream, in order; "ping" and "error" as they are, others as the client's
    own types."""
    events = []
    for block in text.split("\n\n"):
        lines = [line for line in block.split("\n") if line and not line.startswith(":")]
        if not lines:
            continue
        assert len(lines) == 2, block
        assert lines[0].startswith("event: ")
        assert lines[1].startswith("data: ")
        name, data = lines[0][7:], json.loads(lines[1][6:])
        assert data["type"] == name
        if name in ("ping", "error"):
            events.append((name, data))
            continue
        event = _EVENT.validate_json(lines[1][6:], strict=True)
        _assert_nothing_else(event)
        events.append((name, event))
    return events


def message_of_stream(events: list[tuple[str, Any]]) -> dict[str, Any]:
    """The message that a stream's events make, whose order is checked: a start; blocks one after the other, none of
    them empty; an end. Calls have their input as JSON text."""
    names = [name for name, _ in events if name != "ping"]
    assert names[0] == "message_start"
    assert names[-2:] == ["message_delta", "message_stop"]
    message = events[0][1].message.model_dump()
    assert message["content"] == []
    opened: int | None = None
    for name, event in events[1:]:
        if name == "content_block_start":
            assert opened is None
            assert event.index == len(message["content"])
            opened, pieces = event.index, []
            block = event.content_block.model_dump()
            assert not any(block.get(name) for name in ("text", "thinking", "input"))
            message["content"].append(block)
        elif name == "content_block_delta":
            assert event.index == opened
            pieces.append(event.delta)
        elif name == "content_block_stop":
            assert event.index == opened
            _close(message["content"][-1], pieces)
            opened = None
        elif name == "message_delta":
            assert opened is None
            message |= {"stop_reason": event.delta.stop_reason, "stop_sequence": event.delta.stop_sequence}
            message["usage"] |= event.usage.model_dump(exclude_none=True)
        else:
            assert name in ("ping", "message_stop")
    return message


def _close(block: dict[str, Any], pieces: list[Any]) -> None:
    kinds = [piece.type for piece in pieces]
    if block["type"] == "text":
        assert set(kinds) == {"text_delta"}
        block["text"] = "".join(piece.text for piece in pieces)
        assert block["text"].strip()
    elif block["type"] == "thinking":
        assert kinds.count("signature_delta") == 1
        assert kinds[-1] == "signature_delta"
        assert set(kinds[:-1]) <= {"thinking_delta"}
        block["thinking"] = "".join(piece.thinking for piece in pieces[:-1])
        block["signature"] = pieces[-1].signature
        assert block["signature"]
    else:
        assert set(kinds) <= {"input_json_delta"}
        block["input"] = "".join(piece.partial_json for piece in pieces)


def _assert_nothing_else(value: Any) -> None:
    if isinstance(value, BaseModel):
        assert not value.model_extra, value
        for name in type(value).model_fields:
            _assert_nothing_else(getattr(value, name))
    elif isinstance(value, list):
        for item in value:
            _assert_nothing_else(item)
