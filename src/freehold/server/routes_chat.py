"""POST /v1/chat/completions."""

from __future__ import annotations

from typing import Any

from anyio.to_thread import run_sync
from fastapi import APIRouter, Request
from fastapi.responses import Response

from freehold.core.events import FinishEvent, Usage
from freehold.server.generation import Answer, Ask, total_usage
from freehold.server.json_body import decode_json
from freehold.server.service import Service, client_name, finish_text, usage_body
from freehold.server.wire_openai import (
    AnswerMessage,
    ChatChoice,
    ChatChunk,
    ChatChunkChoice,
    ChatCompletion,
    ChatRequest,
    Delta,
    parse_request,
)


def chat_routes(service: Service) -> APIRouter:
    """The routes of this file, serving `service`."""
    router = APIRouter()

    @router.post("/v1/chat/completions", responses=service.documented_answers(ChatCompletion))
    async def create_chat_completion(http: Request) -> Response:
        body = await http.body()
        request, asks = await run_sync(_prepare, service, body, http)
        head = service.new_head("chatcmpl-")
        if request.stream:
            writer = ChatChunkWriter(head, include_usage=request.include_usage)
            return service.stream(http, asks, writer, answers_per_prompt=request.num_choices)
        return await service.answer(http, asks, lambda answers: _completion(head, answers))

    return router


def _prepare(service: Service, body: bytes, http: Request) -> tuple[ChatRequest, list[Ask]]:
    """All that takes time before the engine has the request; runs in a worker thread."""
    request = parse_request(ChatRequest, decode_json(body))
    service.check_model(request.model)
    params = [request.sampling(choice) for choice in range(request.num_choices)]
    messages = [message.model_dump(exclude_none=True) for message in request.messages]
    prompt_ids = service.backend.render_chat(messages, **(request.chat_template_kwargs or {}))
    client = client_name(http, request.safety_identifier or request.user)
    return request, [Ask(prompt_ids, choice_params, client, request.priority or 0) for choice_params in params]


def _completion(head: dict[str, Any], answers: list[Answer]) -> ChatCompletion:
    choices = [
        ChatChoice(
            index=index,
            message=AnswerMessage(content=answer.text),
            finish_reason=finish_text(answer.finish),
        )
        for index, answer in enumerate(answers)
    ]
    usage = total_usage([answer.finish.usage for answer in answers], answers_per_prompt=len(answers))
    return ChatCompletion(**head, choices=choices, usage=usage_body(usage))


class ChatChunkWriter:
    """Chunks of a streamed chat: a role, texts, a finish reason; for the whole, token counts if asked for."""

    def __init__(self, head: dict[str, Any], *, include_usage: bool) -> None:
        self._head = head
        self._include_usage = include_usage

    def opening(self, index: int) -> list[str]:
        return [self._chunk(index, Delta(role="assistant", content=""))]

    def text(self, index: int, text: str) -> list[str]:
        return [self._chunk(index, Delta(content=text))]

    def finish(self, index: int, event: FinishEvent) -> list[str]:
        return [self._chunk(index, Delta(), event)]

    def usage(self, usage: Usage) -> list[str]:
        if not self._include_usage:
            return []
        chunk = ChatChunk(**self._head, object="chat.completion.chunk", choices=[], usage=usage_body(usage))
        return [chunk.model_dump_json(exclude_unset=True)]

    def _chunk(self, index: int, delta: Delta, finish: FinishEvent | None = None) -> str:
        reason = finish_text(finish) if finish else None
        choice = ChatChunkChoice(index=index, delta=delta, logprobs=None, finish_reason=reason)
        # Clients that asked for the counts expect a null `usage` in all chunks but the last; others none.
        usage: dict[str, Any] = {"usage": None} if self._include_usage else {}
        chunk = ChatChunk(**self._head, object="chat.completion.chunk", choices=[choice], **usage)
        return chunk.model_dump_json(exclude_unset=True)
