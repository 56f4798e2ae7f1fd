"""The input items of OpenAI's Responses API.

Fields that only say where an item came from, such as ids and states, are accepted and have no effect; so has every
field that is null. Files and audio are refused by name, as are items that stand for what this server does not have:
references to stored items, and the calls of tools that OpenAI runs itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Discriminator, Tag, model_validator

from freehold.core.errors import RequestError
from freehold.server.sealed_reasoning import open_reasoning
from freehold.server.visual_parts import check_detail, joined
from freehold.server.wire import WireModel, refusal, shown

_LABELS = ("annotations", "logprobs")
_TEXT_KINDS = ("input_text", "output_text", "text", "refusal", "reasoning_text", "summary_text")


class ResponsesModel(WireModel):
    """A JSON object of this API: an unknown field that is null is as good as absent."""

    @model_validator(mode="before")
    @classmethod
    def _drop_unknown_nulls(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        names = {field.alias or name for name, field in cls.model_fields.items()}
        return {name: given for name, given in value.items() if given is not None or name in names}


def _texts(value: Any) -> Any:
    """A string, or the texts of a list of text parts put together without anything between them."""
    if not isinstance(value, list):
        return value
    return "".join(_text_of(part, index) for index, part in enumerate(value))


def _content(value: Any) -> Any:
    """As `_texts`; with images among the parts, the list of parts as a conversation has it."""
    if not isinstance(value, list):
        return value
    return joined([_part(part, index) for index, part in enumerate(value)])


def _part(part: Any, index: int) -> dict[str, Any]:
    if not isinstance(part, dict) or part.get("type") != "input_image":
        return {"type": "text", "text": _text_of(part, index)}
    for other in part:
        if other not in ("type", "image_url", "detail") and part[other] is not None:
            kind: Any = "unsupported" if other == "file_id" else "unknown"
            raise refusal(kind, f"{shown(other)} is not supported; send a data URL", f"[{index}].{other[:80]}")
    if not isinstance(part.get("image_url"), str):
        raise refusal("value", f"content part {index} has no string 'image_url'", f"[{index}].image_url")
    check_detail(part.get("detail"), f"[{index}].detail")
    return {"type": "image", "image": part["image_url"]}


def _text_of(part: Any, index: int) -> str:
    if not isinstance(part, dict):
        raise refusal("value", f"content part {index} is not an object", f"[{index}]")
    kind = part.get("type")
    if kind not in _TEXT_KINDS:
        detail = f"content parts of type {shown(kind)} are not supported; only texts are"
        raise refusal("unsupported", detail, f"[{index}].type")
    name = "refusal" if kind == "refusal" else "text"
    if not isinstance(part.get(name), str):
        raise refusal("value", f"content part {index} has no string {name!r}", f"[{index}].{name}")
    for other in part:
        if other not in ("type", name, *_LABELS) and part[other] is not None:
            raise refusal("unknown", f"unknown field {shown(other)}", f"[{index}].{other[:80]}")
    return str(part[name])


TextContent = Annotated[str, BeforeValidator(_texts, json_schema_input_type=str | list[dict[str, Any]])]
"""A string or a list of text parts; as one string."""

SeenContent = Annotated[
    str | list[dict[str, Any]], BeforeValidator(_content, json_schema_input_type=str | list[dict[str, Any]])
]
"""The same, or parts with images among them."""


class _Item(ResponsesModel):
    id: str | None = None
    status: Literal["in_progress", "completed", "incomplete"] | None = None
    # Codex marks items with these.
    internal_chat_message_metadata_passthrough: dict[str, Any] | None = None
    metadata: dict[str, Any] | None = None


class InputMessage(_Item):
    """`type` may be left out. A message of the assistant is one that a model wrote."""

    type: Literal["message"] = "message"
    role: Literal["user", "system", "developer", "assistant"]
    content: SeenContent
    phase: Literal["commentary", "final_answer"] | None = None
    end_turn: bool | None = None

    @model_validator(mode="after")
    def _images_of_users(self) -> InputMessage:
        if self.role != "user" and isinstance(self.content, list):
            raise refusal("unsupported", f"messages of the role {self.role!r} cannot hold images", "content")
        return self


class _Call(_Item):
    OFF: ClassVar[Mapping[str, tuple[Any, ...]]] = {"async": (False,), "caller": ({"type": "direct"},), "namespace": ()}

    call_id: str
    name: str


class FunctionCallInput(_Call):
    type: Literal["function_call"]
    arguments: str


class CustomCallInput(_Call):
    type: Literal["custom_tool_call"]
    input: str


class CallOutputInput(_Item):
    """What a tool gave."""

    OFF: ClassVar[Mapping[str, tuple[Any, ...]]] = {"caller": ({"type": "direct"},)}

    type: Literal["function_call_output", "custom_tool_call_output"]
    call_id: str
    name: str | None = None
    output: SeenContent


class ReasoningInput(_Item):
    """Reasoning that comes back. What counts is, in this order: our own `encrypted_content`, `content`, `summary`."""

    type: Literal["reasoning"]
    summary: TextContent | None = None
    content: TextContent | None = None
    encrypted_content: str | None = None

    @model_validator(mode="after")
    def _readable(self) -> ReasoningInput:
        try:
            self.text()
        except RequestError as error:
            raise refusal("value", str(error), "encrypted_content") from None
        return self

    def text(self) -> str:
        """The reasoning; nothing where another maker encrypted it and left no text beside it."""
        opened = open_reasoning(self.encrypted_content) if self.encrypted_content else None
        return self.content or self.summary or "" if opened is None else opened


_KINDS = {
    "message": "message",
    "function_call": "function_call",
    "custom_tool_call": "custom_tool_call",
    "function_call_output": "call_output",
    "custom_tool_call_output": "call_output",
    "reasoning": "reasoning",
}


def _kind(value: Any) -> str | None:
    if isinstance(value, dict):
        kind = value.get("type", "message")
        return _KINDS.get(kind) if isinstance(kind, str) else None
    return None


def _known(value: Any) -> Any:
    if not isinstance(value, dict):
        raise refusal("value", "an input item must be an object")
    kind = value.get("type", "message")
    if kind == "item_reference":
        detail = "items of type 'item_reference' are not supported: nothing is stored here; send the item itself"
        raise refusal("unsupported", detail, "type")
    if _kind(value) is None:
        known = ", ".join(map(repr, _KINDS))
        raise refusal("unsupported", f"items of type {shown(kind)} are not supported; these are: {known}", "type")
    return value


InputItem = Annotated[
    Annotated[
        Annotated[InputMessage, Tag("message")]
        | Annotated[FunctionCallInput, Tag("function_call")]
        | Annotated[CustomCallInput, Tag("custom_tool_call")]
        | Annotated[CallOutputInput, Tag("call_output")]
        | Annotated[ReasoningInput, Tag("reasoning")],
        Discriminator(_kind),
    ],
    BeforeValidator(_known),
]
