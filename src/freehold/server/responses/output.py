"""The output items of a response, as the parts of an answer build them, and the events that tell of it."""

from __future__ import annotations

import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, Literal

from freehold.core.parts import Part, ReasoningPart, TextPart, ToolCallArguments, ToolCallEnd, ToolCallStart
from freehold.server.answer import Answer, Heard, ToolCall
from freehold.server.openai.wire_chat import TokenLogprob
from freehold.server.responses.freeform import FreeformInput
from freehold.server.responses.wire_body import (
    CustomCallItem,
    FunctionCallItem,
    ItemStatus,
    MessageItem,
    OutputItem,
    OutputText,
    ReasoningItem,
    ReasoningText,
)
from freehold.server.sealed_reasoning import seal_reasoning

Event = dict[str, Any]
"""An event without its sequence number."""

End = Literal["completed", "incomplete"]


class _OpenItem(ABC):
    """An item that still grows: the one at `index`, which has begun."""

    def __init__(self, index: int, prefix: str) -> None:
        self.index = index
        self.id = prefix + uuid.uuid4().hex

    def event(self, kind: str, **fields: Any) -> Event:
        return {"type": f"response.{kind}", "item_id": self.id, "output_index": self.index, **fields}

    @abstractmethod
    def item(self, status: ItemStatus) -> OutputItem:
        """The item as it is now."""

    def begin(self) -> list[Event]:
        """To be called before anything is added."""
        item = self.item("in_progress").model_dump()
        return [{"type": "response.output_item.added", "output_index": self.index, "item": item}]

    def end(self, status: End) -> list[Event]:
        """To be called once, when nothing more will be added."""
        item = self.item(status).model_dump()
        return [{"type": "response.output_item.done", "output_index": self.index, "item": item}]


class _OpenMessage(_OpenItem):
    def __init__(self, index: int) -> None:
        super().__init__(index, "msg_")
        self._content: list[OutputText] = []

    def item(self, status: ItemStatus) -> MessageItem:
        return MessageItem(id=self.id, status=status, content=self._content)

    def begin(self) -> list[Event]:
        events = super().begin()
        self._content.append(OutputText(text=""))
        return [*events, self._part_event("added")]

    def more(self, text: str, logprobs: Sequence[TokenLogprob]) -> list[Event]:
        part = self._content[0]
        part.text += text
        part.logprobs.extend(logprobs)
        return [self.event("output_text.delta", content_index=0, delta=text, logprobs=_without_bytes(logprobs))]

    def end(self, status: End) -> list[Event]:
        part = self._content[0]
        logprobs = _without_bytes(part.logprobs)
        text = self.event("output_text.done", content_index=0, text=part.text, logprobs=logprobs)
        return [text, self._part_event("done"), *super().end(status)]

    def _part_event(self, what: str) -> Event:
        return self.event(f"content_part.{what}", content_index=0, part=self._content[0].model_dump())


class _OpenReasoning(_OpenItem):
    def __init__(self, index: int, *, sealed: bool) -> None:
        super().__init__(index, "rs_")
        self._sealed = sealed
        self._content: list[ReasoningText] = []

    def item(self, status: ItemStatus) -> ReasoningItem:
        sealed = seal_reasoning(self._content[0].text) if self._sealed and self._content else None
        return ReasoningItem(id=self.id, status=status, content=self._content, encrypted_content=sealed)

    def begin(self) -> list[Event]:
        events = super().begin()
        self._content.append(ReasoningText(text=""))
        return [*events, self._part_event("added")]

    def more(self, text: str) -> list[Event]:
        self._content[0].text += text
        return [self.event("reasoning_text.delta", content_index=0, delta=text)]

    def end(self, status: End) -> list[Event]:
        text = self.event("reasoning_text.done", content_index=0, text=self._content[0].text)
        return [text, self._part_event("done"), *super().end(status)]

    def _part_event(self, what: str) -> Event:
        return self.event(f"content_part.{what}", content_index=0, part=self._content[0].model_dump())


class _OpenCall(_OpenItem):
    def __init__(self, index: int, call: ToolCall) -> None:
        super().__init__(index, "fc_")
        self._call_id, self._name = call.id, call.name
        self._arguments = ""

    def item(self, status: ItemStatus) -> FunctionCallItem:
        return FunctionCallItem(
            id=self.id, status=status, call_id=self._call_id, name=self._name, arguments=self._arguments
        )

    def more(self, json: str) -> list[Event]:
        self._arguments += json
        return [self.event("function_call_arguments.delta", delta=json)]

    def end(self, status: End) -> list[Event]:
        return [self.event("function_call_arguments.done", arguments=self._arguments), *super().end(status)]


class _OpenCustomCall(_OpenItem):
    def __init__(self, index: int, call: ToolCall) -> None:
        super().__init__(index, "ctc_")
        self._call_id, self._name = call.id, call.name
        self._input = FreeformInput()

    def item(self, status: ItemStatus) -> CustomCallItem:
        return CustomCallItem(id=self.id, status=status, call_id=self._call_id, name=self._name, input=self._input.text)

    def more(self, json: str) -> list[Event]:
        return self._delta(self._input.feed(json))

    def end(self, status: End) -> list[Event]:
        rest = self._delta(self._input.end())
        done = self.event("custom_tool_call_input.done", input=self._input.text)
        return [*rest, done, *super().end(status)]

    def _delta(self, text: str) -> list[Event]:
        return [self.event("custom_tool_call_input.delta", delta=text)] if text else []


class ResponseOutput:
    """The items of one answer. Reasoning, text and calls become items in the order in which they come.

    custom_tools: names of the tools that take free text. seals_reasoning: put the reasoning into `encrypted_content`
    too. logprobs: how log-probabilities of tokens are written.
    """

    def __init__(
        self,
        *,
        custom_tools: frozenset[str],
        seals_reasoning: bool,
        logprobs: Callable[[Sequence[Any]], list[TokenLogprob]],
    ) -> None:
        self._custom_tools = custom_tools
        self._seals_reasoning = seals_reasoning
        self._logprobs = logprobs
        self._ended: list[OutputItem] = []
        self._open: _OpenItem | None = None
        self._waiting: list[Any] = []

    def items(self) -> list[OutputItem]:
        """All items; one that still grows as "incomplete"."""
        return [*self._ended, *([self._open.item("incomplete")] if self._open else [])]

    def take(self, answer: Answer, heard: Heard) -> list[Event]:
        """What was `heard` of `answer` last."""
        self._waiting += heard.tokens
        events: list[Event] = []
        for part in heard.parts:
            events += self._take(answer, part)
        if heard.parts:
            # Tokens belong to what became certain with them, or next; those of reasoning and calls are not told.
            self._waiting.clear()
        return events

    def end(self, answer: Answer) -> list[Event]:
        """`answer` has ended."""
        return self._close("incomplete" if answer.ended.reason == "length" else "completed")

    def _take(self, answer: Answer, part: Part) -> list[Event]:
        if isinstance(part, TextPart):
            return self._text(part.text)
        if isinstance(part, ReasoningPart):
            return self._reasoning(part.text)
        if isinstance(part, ToolCallStart):
            call = answer.calls[part.index]
            is_custom = call.name in self._custom_tools
            index = self._next_index()
            return self._begin(_OpenCustomCall(index, call) if is_custom else _OpenCall(index, call))
        if isinstance(part, ToolCallArguments):
            assert isinstance(self._open, (_OpenCall, _OpenCustomCall)), "arguments come between a call's start and end"
            return self._open.more(part.json)
        assert isinstance(part, ToolCallEnd)
        return self._close("completed" if part.complete else "incomplete")

    def _text(self, text: str) -> list[Event]:
        events: list[Event] = []
        if not isinstance(message := self._open, _OpenMessage):
            message = _OpenMessage(self._next_index())
            events = self._begin(message)
        logprobs = self._logprobs(self._waiting)
        self._waiting.clear()
        return [*events, *message.more(text, logprobs)]

    def _reasoning(self, text: str) -> list[Event]:
        events: list[Event] = []
        if not isinstance(reasoning := self._open, _OpenReasoning):
            reasoning = _OpenReasoning(self._next_index(), sealed=self._seals_reasoning)
            events = self._begin(reasoning)
        return [*events, *reasoning.more(text)]

    def _next_index(self) -> int:
        return len(self._ended) + (self._open is not None)

    def _begin(self, item: _OpenItem) -> list[Event]:
        events = self._close("completed")
        self._open = item
        return [*events, *item.begin()]

    def _close(self, status: End) -> list[Event]:
        if self._open is None:
            return []
        events = self._open.end(status)
        self._ended.append(self._open.item(status))
        self._open = None
        return events


def _without_bytes(logprobs: Sequence[TokenLogprob]) -> list[dict[str, Any]]:
    """As events have them, which leave the bytes to the item."""
    return [found.model_dump(exclude={"bytes": True, "top_logprobs": {"__all__": {"bytes"}}}) for found in logprobs]
