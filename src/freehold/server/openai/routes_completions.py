"""POST /v1/completions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from anyio.to_thread import run_sync
from fastapi import APIRouter, Request
from fastapi.responses import Response

from freehold.core.errors import RequestError
from freehold.core.logprobs import TokenLogprobs
from freehold.core.parts import TextPart
from freehold.server.answer import Answer, Heard
from freehold.server.errors import error_body
from freehold.server.event_stream import comment, data_event
from freehold.server.generation import Ask, Progress, total_usage
from freehold.server.json_body import decode_json
from freehold.server.openai.logprobs import TextOffsets, text_logprobs
from freehold.server.openai.wire import CompletionRequest, TextChoice, TextCompletion, TextLogprobs
from freehold.server.service import Service, client_names, request_priority, usage_body
from freehold.server.wire import parse_request


def completion_routes(service: Service) -> APIRouter:
    """The routes of this file, serving `service`."""
    router = APIRouter()

    @router.post("/v1/completions", responses=service.documented_answers(TextCompletion))
    async def create_completion(http: Request) -> Response:
        body = await http.body()
        request, asks = await run_sync(_prepare, service, body, http)
        form = _TextForm(service, request, service.new_head("cmpl-"))
        if request.stream:
            return service.stream(http, asks, TextEventWriter(form, asks))
        return await service.answer(http, asks, form.completion)

    return router


def _prepare(service: Service, body: bytes, http: Request) -> tuple[CompletionRequest, list[Ask]]:
    """All that takes time before the engine has the request; runs in a worker thread."""
    request = parse_request(CompletionRequest, decode_json(body))
    service.check_model(request.model)
    defaults = service.backend.sampling_defaults
    params = [request.sampling(choice, defaults) for choice in range(request.num_choices)]
    client, priority = client_names(http, request.user), request_priority(http, request.priority)
    asks = []
    for prompt in request.prompt:
        prompt_ids = service.encode(prompt, request) if isinstance(prompt, str) else prompt
        if not prompt_ids:
            raise RequestError("prompt: a text became no tokens; it must have at least one", field="prompt")
        asks += [Ask(prompt_ids, choice_params, client, priority) for choice_params in params]
    return request, asks


class _TextForm:
    """Answers in the form of this API. head: what an answer and every chunk begin with."""

    def __init__(self, service: Service, request: CompletionRequest, head: dict[str, Any]) -> None:
        self.request, self.head = request, head
        self.token_bytes = service.backend.token_bytes

    def completion(self, answers: Sequence[Answer]) -> TextCompletion:
        """The whole answer."""
        choices = [
            TextChoice(
                index=index,
                text=self.prompt_text(answer.prompt_ids) + answer.text,
                logprobs=self._logprobs(answer),
                finish_reason=answer.finish_text,
            )
            for index, answer in enumerate(answers)
        ]
        usage = total_usage(answers, answers_per_prompt=self.request.num_choices)
        return TextCompletion(**self.head, choices=choices, usage=usage_body(usage))

    def prompt_text(self, prompt_ids: Sequence[int]) -> str:
        """The prompt as the answer repeats it, if it does."""
        if not self.request.echo:
            return ""
        return b"".join(map(self.token_bytes, prompt_ids)).decode(errors="replace")

    def _logprobs(self, answer: Answer) -> TextLogprobs | None:
        if self.request.logprobs is None:
            return None
        tokens: list[tuple[int, TokenLogprobs | None]] = []
        if self.request.echo:
            tokens += zip(answer.prompt_ids, [None, *answer.prompt_logprobs], strict=True)
        return text_logprobs([*tokens, *answer.tokens], self.token_bytes)


class TextEventWriter:
    """Chunks of a streamed completion. An echoed prompt is the first chunk, before the answer's first text."""

    def __init__(self, form: _TextForm, asks: Sequence[Ask]) -> None:
        self._form = form
        self._asks = asks
        self._offsets = [TextOffsets() for _ in asks]
        self._prompt_logprobs: list[list[TokenLogprobs]] = [[] for _ in asks]
        self._echoed = [not form.request.echo] * len(asks)

    def opening(self) -> list[str]:
        """See EventWriter."""
        return []

    def more(self, index: int, answer: Answer, heard: Heard) -> list[str]:
        """See EventWriter."""
        self._prompt_logprobs[index].extend(heard.prompt_logprobs)
        text = "".join(part.text for part in heard.parts if isinstance(part, TextPart))
        chunks = self._echo(index) if text or heard.tokens else []
        if text or heard.tokens:
            chunks.append(self._chunk([self._choice(index, text, heard.tokens)]))
        return chunks

    def _echo(self, index: int) -> list[str]:
        if self._echoed[index]:
            return []
        self._echoed[index] = True
        prompt_ids = self._asks[index].prompt_ids
        scored = [None, *self._prompt_logprobs[index]] if self._form.request.logprobs is not None else []
        tokens = list(zip(prompt_ids, scored, strict=True)) if scored else []
        return [self._chunk([self._choice(index, self._form.prompt_text(prompt_ids), tokens)])]

    def _choice(self, index: int, text: str, tokens: Sequence[tuple[int, TokenLogprobs | None]]) -> TextChoice:
        logprobs = None
        if self._form.request.logprobs is not None and tokens:
            logprobs = text_logprobs(tokens, self._form.token_bytes, self._offsets[index])
        return TextChoice(index=index, text=text, logprobs=logprobs, finish_reason=None)

    def finish(self, index: int, answer: Answer) -> list[str]:
        """See EventWriter."""
        last = TextChoice(index=index, text="", finish_reason=answer.finish_text)
        return [*self._echo(index), self._chunk([last])]

    def closing(self, answers: Sequence[Answer]) -> list[str]:
        """See EventWriter."""
        events = []
        if self._form.request.include_usage:
            usage = total_usage(answers, answers_per_prompt=self._form.request.num_choices)
            chunk = TextCompletion(**self._form.head, choices=[], usage=usage_body(usage))
            events.append(data_event(chunk.model_dump_json()))
        return [*events, data_event("[DONE]")]

    def silence(self, progress: Progress | None) -> str:
        """See EventWriter."""
        return comment(progress)

    def failure(self, status: int, message: str, code: str) -> list[str]:
        """See EventWriter."""
        return [data_event(error_body(status, message, code=code).model_dump_json())]

    def _chunk(self, choices: list[TextChoice]) -> str:
        chunk = TextCompletion(**self._form.head, choices=choices)
        # Clients that asked for the counts expect a null `usage` in all chunks but the last; others none.
        return data_event(chunk.model_dump_json(exclude=None if self._form.request.include_usage else {"usage"}))
