"""One choice of an answer: what has been heard of it so far, as parts, and what it is in the end."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from freehold.core.events import Event, FinishEvent, PromptLogprobsEvent, TokenEvent
from freehold.core.logprobs import TokenLogprobs
from freehold.core.parts import Part, ReasoningPart, TextPart, ToolCallArguments, ToolCallEnd, ToolCallStart
from freehold.model.answers.parser import AnswerParser

FinishText = Literal["stop", "length", "tool_calls"]


@dataclass(slots=True)
class ToolCall:
    """A call as it goes to the client. arguments: JSON text; a whole object only if `complete`."""

    id: str
    name: str
    arguments: str = ""
    complete: bool = False


@dataclass(frozen=True, slots=True)
class Heard:
    """What one event added: parts, and the tokens that were sampled, with log-probabilities if those were asked for."""

    parts: Sequence[Part] = ()
    tokens: Sequence[tuple[int, TokenLogprobs]] = ()
    prompt_logprobs: Sequence[TokenLogprobs] = ()


@dataclass(slots=True, eq=False)
class Answer:
    """One choice. prompt_ids: of its prompt. finish: None until it has ended."""

    prompt_ids: Sequence[int]
    parser: AnswerParser
    text: str = ""
    reasoning: str = ""
    calls: list[ToolCall] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    tokens: list[tuple[int, TokenLogprobs]] = field(default_factory=list)
    prompt_logprobs: list[TokenLogprobs] = field(default_factory=list)
    finish: FinishEvent | None = None

    def hear(self, event: Event) -> Heard:
        """Takes in the next event of the choice's stream."""
        if isinstance(event, PromptLogprobsEvent):
            self.prompt_logprobs.extend(event.logprobs)
            return Heard(prompt_logprobs=event.logprobs)
        if isinstance(event, TokenEvent):
            self.token_ids.append(event.token_id)
            tokens = [] if event.logprobs is None else [(event.token_id, event.logprobs)]
            self.tokens += tokens
            return Heard(self._take(self.parser.push(event.text)), tokens)
        if isinstance(event, FinishEvent):
            parts = [*self.parser.push(event.text), *self.parser.finish()]
            self.finish = event
            return Heard(self._take(parts))
        return Heard()

    def _take(self, parts: Sequence[Part]) -> Sequence[Part]:
        for part in parts:
            if isinstance(part, TextPart):
                self.text += part.text
            elif isinstance(part, ReasoningPart):
                self.reasoning += part.text
            elif isinstance(part, ToolCallStart):
                self.calls.append(ToolCall(f"call_{uuid.uuid4().hex[:24]}", part.name))
            elif isinstance(part, ToolCallArguments):
                self.calls[part.index].arguments += part.json
            elif isinstance(part, ToolCallEnd):
                self.calls[part.index].complete = part.complete
        return parts

    @property
    def ended(self) -> FinishEvent:
        """How it ended."""
        assert self.finish is not None, "the answer has not ended"
        return self.finish

    @property
    def finish_text(self) -> FinishText:
        """OpenAI's word for why it ended. A call that was cut off makes it "length"."""
        reason = self.ended.reason
        assert reason == "stop" or reason == "length", "other ends are failures, not answers"
        if reason == "length" or any(not call.complete for call in self.calls):
            return "length"
        return "tool_calls" if self.calls else "stop"

    def message(self) -> dict[str, Any]:
        """The assistant's message in the form of OpenAI's chat API, as clients send it back."""
        message: dict[str, Any] = {"role": "assistant", "content": self.text or None}
        if self.reasoning:
            message["reasoning_content"] = self.reasoning
        if self.calls:
            message["tool_calls"] = [
                {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
                for call in self.calls
            ]
        return message
