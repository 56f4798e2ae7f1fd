"""The wire types of messages and their content blocks, as requests of Anthropic's Messages API carry them.

Fields that are not known here are accepted: clients mark blocks for purposes of their own, as for caching. What a
block says is either understood or refused by name.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, FailFast, Field, model_validator

from freehold.server.openai.wire_message import ToolName
from freehold.server.wire import refusal, shown

_IN_MESSAGES = {
    "user": ("text", "document", "search_result", "image", "tool_result"),
    "assistant": ("text", "thinking", "redacted_thinking", "tool_use"),
    "system": ("text",),
}
_IN_TOOL_RESULTS = ("text", "document", "search_result", "image", "tool_reference")
_KNOWN = frozenset(name for names in (*_IN_MESSAGES.values(), _IN_TOOL_RESULTS) for name in names)


class TolerantModel(BaseModel):
    """A JSON object that may have fields which are not known here; they are kept in `model_extra`."""

    model_config = ConfigDict(extra="allow", strict=True)


# --- blocks -------------------------------------------------------------------------------------------------


class TextBlock(TolerantModel):
    type: Literal["text"]
    text: str


class ThinkingBlock(TolerantModel):
    """Reasoning of an earlier answer. The signature is not looked at: the text is taken, whoever wrote it."""

    type: Literal["thinking"]
    thinking: str
    signature: str | None = None


class RedactedThinkingBlock(TolerantModel):
    """Reasoning that only its maker can read; it is left out."""

    type: Literal["redacted_thinking"]
    data: str


class ToolUseBlock(TolerantModel):
    type: Literal["tool_use"]
    id: str
    name: ToolName
    input: dict[str, Any]


class TextSource(TolerantModel):
    type: Literal["text"]
    data: str


class ContentSource(TolerantModel):
    type: Literal["content"]
    content: Annotated[list[TextBlock], FailFast(), BeforeValidator(lambda value: as_blocks(value))]


def _readable_source(value: Any) -> Any:
    kind = value.get("type") if isinstance(value, dict) else None
    if isinstance(kind, str) and kind not in ("text", "content"):
        detail = f"sources of type {shown(kind)} are not supported: models here read text; send a source of type 'text'"
        raise refusal("unsupported", detail, "type")
    return value


class DocumentBlock(TolerantModel):
    """A document whose text is in the request."""

    type: Literal["document"]
    source: Annotated[TextSource | ContentSource, Field(discriminator="type"), BeforeValidator(_readable_source)]
    title: str | None = None
    context: str | None = None


class SearchResultBlock(TolerantModel):
    type: Literal["search_result"]
    source: str
    title: str
    content: Annotated[list[TextBlock], FailFast()]


class Base64Source(TolerantModel):
    type: Literal["base64"]
    media_type: str
    data: str


def _sent_source(value: Any) -> Any:
    kind = value.get("type") if isinstance(value, dict) else None
    if isinstance(kind, str) and kind != "base64":
        detail = f"sources of type {shown(kind)} are not supported: nothing is fetched; send a source of type 'base64'"
        raise refusal("unsupported", detail, "type")
    return value


class ImageBlock(TolerantModel):
    """An image whose data are in the request. In a tool's result, a model that sees nothing is told that there was
    one."""

    type: Literal["image"]
    source: Annotated[Base64Source, BeforeValidator(_sent_source)]

    @property
    def url(self) -> str:
        """The image as a data URL."""
        return f"data:{self.source.media_type};base64,{self.source.data}"


class ToolReferenceBlock(TolerantModel):
    """What a search among tools found; all tools of a request are known to the model anyway."""

    type: Literal["tool_reference"]
    tool_name: str


def as_blocks(value: Any) -> Any:
    """A string stands for one text block."""
    return [{"type": "text", "text": value}] if isinstance(value, str) else value


def _known_block(value: Any) -> Any:
    kind = value.get("type") if isinstance(value, dict) else None
    if isinstance(kind, str) and kind not in _KNOWN:
        raise refusal("unsupported", f"content blocks of type {shown(kind)} are not supported", "type")
    return value


ResultBlock = Annotated[
    TextBlock | DocumentBlock | SearchResultBlock | ImageBlock | ToolReferenceBlock | ThinkingBlock
    | RedactedThinkingBlock | ToolUseBlock,
    Field(discriminator="type"),
    BeforeValidator(_known_block),
]  # fmt: skip


class ToolResultBlock(TolerantModel):
    type: Literal["tool_result"]
    tool_use_id: str
    content: Annotated[list[ResultBlock] | None, FailFast(), BeforeValidator(as_blocks)] = None
    is_error: bool | None = None

    @model_validator(mode="after")
    def _blocks_of_results(self) -> ToolResultBlock:
        _check_kinds(self.content or (), _IN_TOOL_RESULTS, "results of tools")
        return self


Block = Annotated[
    TextBlock | ThinkingBlock | RedactedThinkingBlock | ToolUseBlock | ToolResultBlock | DocumentBlock
    | SearchResultBlock | ImageBlock | ToolReferenceBlock,
    Field(discriminator="type"),
    BeforeValidator(_known_block),
]  # fmt: skip


def _check_kinds(blocks: Sequence[Any], allowed: Sequence[str], where: str) -> None:
    for index, block in enumerate(blocks):
        if block.type in allowed:
            continue
        place = f"content[{index}].type"
        if block.type == "image":
            raise refusal("unsupported", f"images are not supported in {where}", place)
        raise refusal("value", f"blocks of type {shown(block.type)} do not belong into {where}", place)


# --- messages -----------------------------------------------------------------------------------------------


class Message(TolerantModel):
    """One message. The role 'system' inside a conversation is Claude's way to give instructions later on."""

    role: Literal["user", "assistant", "system"]
    content: Annotated[list[Block], FailFast(), BeforeValidator(as_blocks, json_schema_input_type=str | list[Block])]

    @model_validator(mode="after")
    def _blocks_of_the_role(self) -> Message:
        _check_kinds(self.content, _IN_MESSAGES[self.role], f"messages of the role {self.role!r}")
        return self
