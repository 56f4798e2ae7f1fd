"""POST /v1/chat/completions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from anyio.to_thread import run_sync
from fastapi import APIRouter, Request
from fastapi.responses import Response

from freehold.core.parts import Part, ReasoningPart, TextPart, ToolCallArguments, ToolCallStart
from freehold.server.answer import Answer, Heard
from freehold.server.errors import error_body
from freehold.server.event_stream import comment, data_event
from freehold.server.generation import Progress, total_usage
from freehold.server.json_body import decode_json
from freehold.server.openai.logprobs import chat_logprobs
from freehold.server.openai.provenance import ProvenanceBody, provenance_body
from freehold.server.openai.wire_chat import (
    AnswerMessage,
    ChatChoice,
    ChatChunk,
    ChatChunkChoice,
    ChatCompletion,
    ChatRequest,
    Delta,
    FunctionBody,
    FunctionDelta,
    ToolCallBody,
    ToolCallDelta,
)
from freehold.server.service import PreparedChat, Service, usage_body
from freehold.server.wire import parse_request


def chat_routes(service: Service) -> APIRouter:
    """The routes of this file, serving `service`."""
    router = APIRouter()

    @router.post("/v1/chat/completions", responses=service.documented_answers(ChatCompletion))
    async def create_chat_completion(http: Request) -> Response:
        body = await http.body()
        request, chat = await run_sync(_prepare, service, body, http)
        form = _ChatForm(service, chat, service.new_head("chatcmpl-"))
        if request.stream:
            return service.stream(http, chat.asks, ChatEventWriter(form, include_usage=request.include_usage))
        return await service.answer(http, chat.asks, form.completion)

    return router


def _prepare(service: Service, body: bytes, http: Request) -> tuple[ChatRequest, PreparedChat]:
    """All that takes time before the engine has the request; runs in a worker thread."""
    request = parse_request(ChatRequest, decode_json(body))
    service.check_model(request.model)
    return request, service.prepare_chat(http, request.conversation(service.backend.sampling_defaults))


class _ChatForm:
    """Answers in the form of this API. head: what an answer and every chunk begin with."""

    def __init__(self, service: Service, chat: PreparedChat, head: dict[str, Any]) -> None:
        self.service, self.chat, self.head = service, chat, head

    def completion(self, answers: Sequence[Answer]) -> dict[str, Any]:
        """The whole answer. Fields that not every answer has are left out where there is nothing in them."""
        choices = [
            ChatChoice(
                index=index,
                message=_message(answer),
                logprobs=self.logprobs(answer.tokens) if answer.tokens else None,
                finish_reason=answer.finish_text,
                provenance=self.provenance(answer),
            )
            for index, answer in enumerate(answers)
        ]
        usage = total_usage(answers, answers_per_prompt=len(answers))
        body = ChatCompletion(**self.head, choices=choices, usage=usage_body(usage)).model_dump()
        for choice in body["choices"]:
            _drop_none(choice, "provenance")
            _drop_none(choice["message"], "reasoning_content", "tool_calls")
        return body

    def logprobs(self, tokens: Sequence[Any]) -> Any:
        """Log-probabilities of sampled tokens."""
        return chat_logprobs(tokens, self.service.backend.token_bytes)

    def provenance(self, answer: Answer) -> ProvenanceBody | None:
        """Which blocks an answer was made from, if that was asked for."""
        found = answer.ended.provenance
        return None if found is None else provenance_body(found, self.chat.prompt.message_ranges())


def _message(answer: Answer) -> AnswerMessage:
    calls = [
        ToolCallBody(id=call.id, function=FunctionBody(name=call.name, arguments=call.arguments))
        for call in answer.calls
    ]
    return AnswerMessage(
        content=answer.text or (None if calls else ""),
        reasoning_content=answer.reasoning or None,
        tool_calls=calls or None,
    )


def _drop_none(body: dict[str, Any], *names: str) -> None:
    for name in names:
        if body[name] is None:
            del body[name]


def _delta(answer: Answer, part: Part) -> Delta | None:
    """What a part adds to a chunk; the end of a call adds nothing."""
    if isinstance(part, TextPart):
        return Delta(content=part.text)
    if isinstance(part, ReasoningPart):
        return Delta(reasoning_content=part.text)
    if isinstance(part, ToolCallStart):
        call, function = answer.calls[part.index].id, FunctionDelta(name=part.name, arguments="")
        return Delta(tool_calls=[ToolCallDelta(index=part.index, id=call, type="function", function=function)])
    if isinstance(part, ToolCallArguments):
        return Delta(tool_calls=[ToolCallDelta(index=part.index, function=FunctionDelta(arguments=part.json))])
    return None


class ChatEventWriter:
    """Chunks of a streamed chat: a role, what is added, a finish reason; for the whole, token counts if asked for."""

    def __init__(self, form: _ChatForm, *, include_usage: bool) -> None:
        self._form = form
        self._include_usage = include_usage

    def opening(self) -> list[str]:
        """See EventWriter."""
        choices = range(len(self._form.chat.asks))
        return [self._chunk(index, Delta(role="assistant", content="")) for index in choices]

    def more(self, index: int, answer: Answer, heard: Heard) -> list[str]:
        """See EventWriter. A token's log-probability comes with it, even while its text is held back."""
        deltas = [delta for part in heard.parts if (delta := _delta(answer, part)) is not None]
        if heard.tokens and not deltas:
            deltas = [Delta()]
        return [self._chunk(index, delta, tokens=() if number else heard.tokens) for number, delta in enumerate(deltas)]

    def finish(self, index: int, answer: Answer) -> list[str]:
        """See EventWriter."""
        return [self._chunk(index, Delta(), answer)]

    def closing(self, answers: Sequence[Answer]) -> list[str]:
        """See EventWriter."""
        events = []
        if self._include_usage:
            usage = total_usage(answers, answers_per_prompt=len(answers))
            chunk = ChatChunk(**self._form.head, object="chat.completion.chunk", choices=[], usage=usage_body(usage))
            events.append(data_event(chunk.model_dump_json(exclude_unset=True)))
        return [*events, data_event("[DONE]")]

    def silence(self, progress: Progress | None) -> str:
        """See EventWriter."""
        return comment(progress)

    def failure(self, status: int, message: str, code: str) -> list[str]:
        """See EventWriter."""
        return [data_event(error_body(status, message, code=code).model_dump_json())]

    def _chunk(self, index: int, delta: Delta, ended: Answer | None = None, *, tokens: Sequence[Any] = ()) -> str:
        fields: dict[str, Any] = {}
        if ended is not None and (provenance := self._form.provenance(ended)) is not None:
            fields["provenance"] = provenance
        choice = ChatChunkChoice(
            index=index,
            delta=delta,
            logprobs=self._form.logprobs(tokens) if tokens else None,
            finish_reason=ended.finish_text if ended else None,
            **fields,
        )
        # Clients that asked for the counts expect a null `usage` in all chunks but the last; others none.
        usage: dict[str, Any] = {"usage": None} if self._include_usage else {}
        chunk = ChatChunk(**self._form.head, object="chat.completion.chunk", choices=[choice], **usage)
        return data_event(chunk.model_dump_json(exclude_unset=True))
