"""Answers in the form of Anthropic's Messages API, whole or as events."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from freehold.core.events import Usage
from freehold.server.answer import Answer, Heard
from freehold.server.event_stream import comment, named_event
from freehold.server.generation import Progress
from freehold.server.messages.content_blocks import ContentBlocks, whole_content
from freehold.server.messages.wire_answer import (
    MessageBody,
    MessageDeltaEvent,
    MessageEnd,
    MessageEvent,
    MessagesErrorBody,
    MessageStartEvent,
    MessageStopEvent,
    MessageUsage,
    OutputTokensDetails,
    PingEvent,
    StopReason,
)
from freehold.server.part_recorder import PartRecorder
from freehold.server.refusals import anthropic_error_body


@dataclass(frozen=True, slots=True)
class MessageForm:
    """What is known of an answer before it begins.

    message_id, model, request_id: as the client is told. prompt_tokens: of the prompt. max_tokens: asked for.
    show_thinking: whether the client gets the reasoning.
    """

    message_id: str
    model: str
    request_id: str
    prompt_tokens: int
    max_tokens: int
    show_thinking: bool = True

    def opening(self) -> MessageBody:
        """The message before anything was sampled. That some of the prompt is in the cache shows only later."""
        usage = MessageUsage(input_tokens=self.prompt_tokens, cache_read_input_tokens=0, output_tokens=0)
        return MessageBody(
            id=self.message_id, model=self.model, content=[], stop_reason=None, stop_sequence=None, usage=usage
        )

    def message(self, answers: Sequence[Answer]) -> MessageBody:
        """The whole answer; there is one."""
        (answer,) = answers
        end = self.end(answer)
        steps = (heard.parts for heard in _recorder(answer).heard(answer))
        return MessageBody(
            id=self.message_id,
            model=self.model,
            content=whole_content(answer, steps, show_thinking=self.show_thinking),
            stop_reason=end.stop_reason,
            stop_sequence=end.stop_sequence,
            usage=self.usage(answer),
        )

    def end(self, answer: Answer) -> MessageEnd:
        """Why an answer ended."""
        stop_text = answer.ended.stop_text
        return MessageEnd(stop_reason=self._stop_reason(answer), stop_sequence=stop_text)

    def _stop_reason(self, answer: Answer) -> StopReason:
        ended = answer.ended
        if ended.stop_text is not None:
            return "stop_sequence"
        if ended.reason == "length" and ended.usage.completion_tokens < self.max_tokens:
            return "model_context_window_exceeded"
        if answer.finish_text == "length":
            return "max_tokens"
        return "tool_use" if answer.calls else "end_turn"

    def usage(self, answer: Answer) -> MessageUsage:
        """Token counts of an answer that has ended."""
        usage: Usage = answer.ended.usage
        return MessageUsage(
            input_tokens=usage.prompt_tokens - usage.cached_tokens,
            cache_read_input_tokens=usage.cached_tokens,
            output_tokens=usage.completion_tokens,
            output_tokens_details=OutputTokensDetails(thinking_tokens=_recorder(answer).reasoning_tokens()),
        )


def _recorder(answer: Answer) -> PartRecorder:
    assert isinstance(answer.parser, PartRecorder), "the answers of these routes are read by one"
    return answer.parser


class MessageEventWriter:
    """The events of a streamed message."""

    def __init__(self, form: MessageForm) -> None:
        self._form = form
        self._blocks = ContentBlocks(show_thinking=form.show_thinking)

    def opening(self) -> list[str]:
        """See EventWriter."""
        return [_event(MessageStartEvent(message=self._form.opening()))]

    def more(self, index: int, answer: Answer, heard: Heard) -> list[str]:
        """See EventWriter."""
        return [_event(event) for event in self._blocks.take(answer, heard.parts)]

    def finish(self, index: int, answer: Answer) -> list[str]:
        """See EventWriter. The counts are of the whole answer, and replace those of the opening."""
        end = MessageDeltaEvent(delta=self._form.end(answer), usage=self._form.usage(answer))
        return [_event(event) for event in (*self._blocks.close(), end)]

    def closing(self, answers: Sequence[Answer]) -> list[str]:
        """See EventWriter."""
        return [_event(MessageStopEvent())]

    def silence(self, progress: Progress | None) -> str:
        """See EventWriter. The comment is for people: clients skip it, and watch for the event."""
        return comment(progress) + _event(PingEvent())

    def failure(self, status: int, message: str, code: str) -> list[str]:
        """See EventWriter."""
        body = MessagesErrorBody.model_validate(anthropic_error_body(status, message, self._form.request_id))
        return [named_event("error", body.model_dump_json())]


def _event(event: MessageEvent) -> str:
    return named_event(event.type, event.model_dump_json())
