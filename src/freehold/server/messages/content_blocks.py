"""The parts of an answer as content blocks of Anthropic's Messages API: one after the other, as they become certain."""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections.abc import Iterable, Sequence
from typing import Any, Literal

from freehold.core.parts import Part, ReasoningPart, TextPart, ToolCallArguments, ToolCallEnd, ToolCallStart
from freehold.server.answer import Answer, ToolCall
from freehold.server.messages.wire_answer import (
    BlockDeltaEvent,
    BlockEvent,
    BlockStartEvent,
    BlockStopEvent,
    Content,
    InputJsonDelta,
    SignatureDelta,
    TextContent,
    TextDelta,
    ThinkingContent,
    ThinkingDelta,
    ToolUseContent,
)
from freehold.server.sealed_reasoning import seal_reasoning

_SIGNATURE = "freehold-thinking.1."


class ContentBlocks:
    """Cuts parts into blocks.

    A block opens with its first character that is no white space: such blocks other servers refuse when they are sent
    back. White space before it is held until then; at the end what is held is dropped.

    show_thinking: False: blocks of reasoning have no text, and their signature carries it instead.
    """

    def __init__(self, *, show_thinking: bool = True) -> None:
        self._show_thinking = show_thinking
        self._index = -1
        self._open: Literal["text", "thinking", "tool_use"] | None = None
        self._held = {"text": "", "thinking": ""}
        self._thought: list[str] = []

    def take(self, answer: Answer, parts: Iterable[Part]) -> list[BlockEvent]:
        """What `parts`, which `answer` has taken in already, add."""
        events: list[BlockEvent] = []
        for part in parts:
            if isinstance(part, TextPart):
                events += self._write("text", part.text)
            elif isinstance(part, ReasoningPart):
                events += self._write("thinking", part.text)
            elif isinstance(part, ToolCallStart):
                call = answer.calls[part.index]
                events += self._begin("tool_use", ToolUseContent(id=block_id(call), name=part.name, input={}))
            elif isinstance(part, ToolCallArguments):
                events.append(BlockDeltaEvent(index=self._index, delta=InputJsonDelta(partial_json=part.json)))
            elif isinstance(part, ToolCallEnd):
                events += self.close()
        return events

    def close(self) -> list[BlockEvent]:
        """Ends the block that is open, if one is."""
        if self._open is None:
            return []
        events: list[BlockEvent] = [BlockStopEvent(index=self._index)]
        if self._open == "thinking":
            text, self._thought = "".join(self._thought), []
            signature = _sign(text) if self._show_thinking else seal_reasoning(text)
            events.insert(0, BlockDeltaEvent(index=self._index, delta=SignatureDelta(signature=signature)))
        self._open = None
        return events

    def _begin(self, kind: Literal["text", "thinking", "tool_use"], content: Content) -> list[BlockEvent]:
        closed = self.close()
        self._open, self._index = kind, self._index + 1
        return [*closed, BlockStartEvent(index=self._index, content_block=content)]

    def _write(self, kind: Literal["text", "thinking"], text: str) -> list[BlockEvent]:
        events: list[BlockEvent] = []
        if self._open != kind:
            text, self._held[kind] = self._held[kind] + text, ""
            if not text.strip():
                self._held[kind] = text
                return []
            empty = TextContent(text="") if kind == "text" else ThinkingContent(thinking="", signature="")
            events = self._begin(kind, empty)
        if kind == "text":
            return [*events, BlockDeltaEvent(index=self._index, delta=TextDelta(text=text))]
        self._thought.append(text)
        if self._show_thinking:
            events.append(BlockDeltaEvent(index=self._index, delta=ThinkingDelta(thinking=text)))
        return events


def whole_content(answer: Answer, steps: Iterable[Sequence[Part]], *, show_thinking: bool) -> list[Content]:
    """The blocks of an answer that has ended, in the order in which a stream has them. steps: its parts.

    A call that broke off is left out: its input is no JSON object.
    """
    blocks = ContentBlocks(show_thinking=show_thinking)
    events = [event for parts in steps for event in blocks.take(answer, parts)] + blocks.close()
    calls = {block_id(call): call for call in answer.calls}
    pieces: list[list[str]] = []
    content: list[Content] = []
    for event in events:
        if isinstance(event, BlockStartEvent):
            content.append(event.content_block)
            pieces.append([])
        elif isinstance(event, BlockDeltaEvent):
            _add(content[-1], pieces[-1], event)
    found: list[Content] = []
    for block, texts in zip(content, pieces, strict=True):
        if isinstance(block, TextContent):
            block.text = "".join(texts)
        elif isinstance(block, ThinkingContent):
            block.thinking = "".join(texts)
        elif (arguments := parsed_input(calls[block.id])) is None:
            continue
        else:
            block.input = arguments
        found.append(block)
    return found


def _add(block: Content, texts: list[str], event: BlockDeltaEvent) -> None:
    delta = event.delta
    if isinstance(delta, TextDelta):
        texts.append(delta.text)
    elif isinstance(delta, ThinkingDelta):
        texts.append(delta.thinking)
    elif isinstance(delta, SignatureDelta):
        assert isinstance(block, ThinkingContent)
        block.signature = delta.signature


def block_id(call: ToolCall) -> str:
    """A call's id as this API's clients know it."""
    return "toolu_" + call.id.removeprefix("call_")


def parsed_input(call: ToolCall) -> dict[str, Any] | None:
    """A call's arguments; None if it broke off. Numbers that no client can read are texts of their digits."""
    if not call.complete:
        return None
    try:
        value = json.loads(call.arguments, parse_float=_number, parse_int=_number)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _number(digits: str) -> int | float | str:
    try:
        number = int(digits) if digits.lstrip("-").isdigit() else float(digits)
    except ValueError:
        return digits  # more digits than Python converts
    return number if math.isfinite(number) else digits


def _sign(text: str) -> str:
    """What the API calls a signature: clients want one, send it back, and here nobody asks for it again."""
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=18).digest()
    return _SIGNATURE + base64.urlsafe_b64encode(digest).decode("ascii")
