"""What holds for every event stream of the Responses API, checked with the official client's own types."""

from __future__ import annotations

import json
from typing import Any

import openai.types.responses as types
from pydantic import BaseModel

_EVENTS: dict[str, type[BaseModel]] = {
    "response.created": types.ResponseCreatedEvent,
    "response.in_progress": types.ResponseInProgressEvent,
    "response.completed": types.ResponseCompletedEvent,
    "response.incomplete": types.ResponseIncompleteEvent,
    "response.failed": types.ResponseFailedEvent,
    "response.output_item.added": types.ResponseOutputItemAddedEvent,
    "response.output_item.done": types.ResponseOutputItemDoneEvent,
    "response.content_part.added": types.ResponseContentPartAddedEvent,
    "response.content_part.done": types.ResponseContentPartDoneEvent,
    "response.output_text.delta": types.ResponseTextDeltaEvent,
    "response.output_text.done": types.ResponseTextDoneEvent,
    "response.reasoning_text.delta": types.ResponseReasoningTextDeltaEvent,
    "response.reasoning_text.done": types.ResponseReasoningTextDoneEvent,
    "response.function_call_arguments.delta": types.ResponseFunctionCallArgumentsDeltaEvent,
    "response.function_call_arguments.done": types.ResponseFunctionCallArgumentsDoneEvent,
    "response.custom_tool_call_input.delta": types.ResponseCustomToolCallInputDeltaEvent,
    "response.custom_tool_call_input.done": types.ResponseCustomToolCallInputDoneEvent,
}
# The API has these, the client's types do not: `store`, and the status of calls of custom tools as they are sent.
_BEYOND_THE_TYPES = {"store", "status"}
# The events that write an item, by its type: (kind of the event, field of its `done`).
_WRITERS = {
    "message": ("output_text", "text"),
    "reasoning": ("reasoning_text", "text"),
    "function_call": ("function_call_arguments", "arguments"),
    "custom_tool_call": ("custom_tool_call_input", "input"),
}


def events_of(text: str) -> list[dict[str, Any]]:
    """The events of a whole stream, comments left out; each carries its own name."""
    events = []
    for block in text.split("\n\n"):
        lines = [line for line in block.split("\n") if line and not line.startswith(":")]
        if not lines:
            continue
        name, data = lines
        event = json.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        events.append(event)
    return events


def assert_typed(kind: type[BaseModel], value: dict[str, Any]) -> None:
    """`value` is a `kind` as the official client has it, and holds nothing that `kind` does not know."""
    found = kind.model_validate_json(json.dumps(value), strict=True)
    _assert_no_extras(found)


def _assert_no_extras(value: Any) -> None:
    if isinstance(value, BaseModel):
        assert set(value.__pydantic_extra__ or {}) <= _BEYOND_THE_TYPES, type(value)
        value = [getattr(value, name) for name in type(value).model_fields]
    if isinstance(value, list):
        for inner in value:
            _assert_no_extras(inner)


def assert_lawful(events: list[dict[str, Any]]) -> dict[str, Any]:
    """Checks a whole stream; gives the last event's response."""
    for event in events:
        assert_typed(_EVENTS[event["type"]], event)
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert [event["type"] for event in events[:2]] == ["response.created", "response.in_progress"]
    ends = [n for n, e in enumerate(events) if e["type"].split(".")[1] in ("completed", "incomplete", "failed")]
    assert ends == [len(events) - 1]
    responses = [event["response"] for event in events if "response" in event]
    assert len({response["id"] for response in responses}) == 1
    last = responses[-1]
    assert events[-1]["type"] == f"response.{last['status']}"
    inner = [event for event in events if "response" not in event]
    done = _assert_items(inner, whole=last["status"] != "failed")
    assert last["output"][: len(done)] == done
    if last["status"] != "failed":
        assert len(last["output"]) == len(done)
    return last


def _assert_items(events: list[dict[str, Any]], *, whole: bool) -> list[dict[str, Any]]:
    """One item after the other: added, written, done. Gives the items as they were when done."""
    items: list[dict[str, Any]] = []
    while events:
        begin = events[0]
        assert begin["type"] == "response.output_item.added"
        assert begin["output_index"] == len(items)
        assert begin["item"]["status"] == "in_progress"
        length = next((n for n, e in enumerate(events) if e["type"] == "response.output_item.done"), None)
        if length is None:
            assert not whole
            return items
        _assert_item(begin["item"], events[1:length], events[length], index=len(items))
        items.append(events[length]["item"])
        events = events[length + 1 :]
    return items


def _assert_item(begun: dict[str, Any], events: list[dict[str, Any]], done: dict[str, Any], *, index: int) -> None:
    item = done["item"]
    assert (item["id"], item["type"], item.get("call_id")) == (begun["id"], begun["type"], begun.get("call_id"))
    assert {event["item_id"] for event in events} <= {item["id"]}
    assert {event["output_index"] for event in [*events, done]} == {index}
    kind, name = _WRITERS[item["type"]]
    if item["type"] in ("message", "reasoning"):
        assert begun["content"] == []
        assert events[0]["type"] == "response.content_part.added"
        assert events[0]["part"]["text"] == ""
        assert events[-1]["type"] == "response.content_part.done"
        assert item["content"] == [events[-1]["part"]]
        written, events = item["content"][0]["text"], events[1:-1]
        assert {event["content_index"] for event in events} == {0}
    else:
        written = item[name]
        assert begun[name] == ""
    *deltas, end = events
    assert {event["type"] for event in deltas} <= {f"response.{kind}.delta"}
    assert all(event["delta"] for event in deltas)
    assert end["type"] == f"response.{kind}.done"
    assert "".join(event["delta"] for event in deltas) == end[name] == written
