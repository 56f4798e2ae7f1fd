"""The messages of OpenAI's chat requests, and the names of functions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BeforeValidator, model_validator

from freehold.server.visual_parts import KINDS, joined, url_part
from freehold.server.wire import WireModel, refusal, shown

MAX_TOOLS = 512
_FORBIDDEN_IN_NAMES = frozenset("\"'<>&\\`{}")
_MAX_NAME = 128


def _content(value: Any) -> Any:
    """A string: also the texts of a list of text parts, put together without anything between them. With images or
    videos among them, the list of parts as a conversation has it."""
    if not isinstance(value, list):
        return value
    parts: list[dict[str, Any]] = []
    for index, part in enumerate(value):
        if not isinstance(part, dict):
            raise refusal("value", f"content part {index} is not an object", f"[{index}]")
        kind = part.get("type")
        if isinstance(kind, str) and kind in KINDS:
            parts.append(url_part(part, index))
            continue
        if kind != "text":
            detail = (
                f"content parts of type {shown(kind)} are not supported; these are: 'text', 'image_url', 'video_url'"
            )
            raise refusal("unsupported", detail, f"[{index}].type")
        if not isinstance(part.get("text"), str):
            raise refusal("value", f"content part {index} has no string 'text'", f"[{index}].text")
        for name in part:
            if name not in ("type", "text"):
                raise refusal("unknown", f"unknown field {shown(name)}", f"[{index}].{name[:80]}")
        parts.append(part)
    return joined(parts)


def tool_name(name: str) -> str:
    """A function's name as it may stand in any model's format. Raises the wire's own refusal otherwise."""
    if not 1 <= len(name) <= _MAX_NAME or any(c.isspace() or not c.isprintable() for c in name):
        raise refusal("value", f"it must have 1 to {_MAX_NAME} characters without white space")
    if bad := sorted(_FORBIDDEN_IN_NAMES.intersection(name)):
        raise refusal("value", f"it must not contain {bad[0]!r}")
    return name


ToolName = Annotated[str, AfterValidator(tool_name)]


class CalledFunction(WireModel):
    name: ToolName
    arguments: str


class MessageToolCall(WireModel):
    OFF: ClassVar[Mapping[str, tuple[Any, ...]]] = {"index": tuple(range(MAX_TOOLS))}

    id: str | None = None
    type: Literal["function"] = "function"
    function: CalledFunction


class ChatMessage(WireModel):
    OFF: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "annotations": (None, []),
        "audio": (None,),
        "function_call": (None,),
        "refusal": (None,),
    }

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Annotated[
        str | list[dict[str, Any]] | None,
        BeforeValidator(_content, json_schema_input_type=str | list[dict[str, Any]] | None),
    ] = None
    name: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[MessageToolCall] | None = None
    tool_call_id: str | None = None

    @model_validator(mode="after")
    def _fields_of_the_role(self) -> ChatMessage:
        given = {name for name in ("reasoning_content", "tool_calls") if getattr(self, name)}
        if self.role != "assistant" and given:
            name = min(given)
            raise refusal("value", f"{name!r} belongs to messages of the assistant", name)
        if self.role != "tool" and self.tool_call_id is not None:
            raise refusal("value", "'tool_call_id' belongs to messages of the role 'tool'", "tool_call_id")
        if self.role == "tool" and not self.tool_call_id:
            raise refusal("value", "it has no 'tool_call_id'; name the call that this is the result of", "tool_call_id")
        if self.role == "assistant" and isinstance(self.content, list):
            raise refusal("unsupported", "a message of the assistant cannot hold images or videos", "content")
        if self.content is None and not (self.role == "assistant" and given):
            raise refusal("value", "it has no 'content'", "content")
        return self

    def for_template(self) -> dict[str, Any]:
        """The message as chat templates take it; what was not given is left out."""
        message = self.model_dump(exclude_none=True)
        if not message.get("tool_calls"):
            message.pop("tool_calls", None)
        message.setdefault("content", "")
        return message
