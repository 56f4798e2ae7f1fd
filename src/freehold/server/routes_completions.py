"""POST /v1/completions."""

from __future__ import annotations

from typing import Any

from anyio.to_thread import run_sync
from fastapi import APIRouter, Request
from fastapi.responses import Response

from freehold.core.errors import RequestError
from freehold.core.events import FinishEvent, Usage
from freehold.server.generation import Answer, Ask, total_usage
from freehold.server.json_body import decode_json
from freehold.server.service import Service, client_name, finish_text, usage_body
from freehold.server.wire_openai import CompletionRequest, TextChoice, TextCompletion, parse_request


def completion_routes(service: Service) -> APIRouter:
    """The routes of this file, serving `service`."""
    router = APIRouter()

    @router.post("/v1/completions", responses=service.documented_answers(TextCompletion))
    async def create_completion(http: Request) -> Response:
        body = await http.body()
        request, asks = await run_sync(_prepare, service, body, http)
        head = service.new_head("cmpl-")
        per_prompt = request.num_choices
        if request.stream:
            writer = TextChunkWriter(head, include_usage=request.include_usage)
            return service.stream(http, asks, writer, answers_per_prompt=per_prompt)
        return await service.answer(http, asks, lambda answers: _completion(head, answers, per_prompt))

    return router


def _prepare(service: Service, body: bytes, http: Request) -> tuple[CompletionRequest, list[Ask]]:
    """All that takes time before the engine has the request; runs in a worker thread."""
    request = parse_request(CompletionRequest, decode_json(body))
    service.check_model(request.model)
    params = [request.sampling(choice) for choice in range(request.num_choices)]
    client = client_name(http, request.user)
    asks = []
    for prompt in request.prompt:
        prompt_ids = service.backend.encode(prompt) if isinstance(prompt, str) else prompt
        if not prompt_ids:
            raise RequestError("prompt: a text became no tokens; it must have at least one", field="prompt")
        asks += [Ask(prompt_ids, choice_params, client, request.priority or 0) for choice_params in params]
    return request, asks


def _completion(head: dict[str, Any], answers: list[Answer], answers_per_prompt: int) -> TextCompletion:
    choices = [
        TextChoice(index=index, text=answer.text, finish_reason=finish_text(answer.finish))
        for index, answer in enumerate(answers)
    ]
    usage = total_usage([answer.finish.usage for answer in answers], answers_per_prompt=answers_per_prompt)
    return TextCompletion(**head, choices=choices, usage=usage_body(usage))


class TextChunkWriter:
    """Chunks of a streamed completion."""

    def __init__(self, head: dict[str, Any], *, include_usage: bool) -> None:
        self._head = head
        self._include_usage = include_usage

    def opening(self, index: int) -> list[str]:
        return []

    def text(self, index: int, text: str) -> list[str]:
        return [self._chunk([TextChoice(index=index, text=text, finish_reason=None)])]

    def finish(self, index: int, event: FinishEvent) -> list[str]:
        return [self._chunk([TextChoice(index=index, text="", finish_reason=finish_text(event))])]

    def usage(self, usage: Usage) -> list[str]:
        return [self._chunk([], usage)] if self._include_usage else []

    def _chunk(self, choices: list[TextChoice], usage: Usage | None = None) -> str:
        chunk = TextCompletion(**self._head, choices=choices, usage=usage_body(usage) if usage else None)
        # Clients that asked for the counts expect a null `usage` in all chunks but the last; others none.
        return chunk.model_dump_json(exclude=None if self._include_usage else {"usage"})
