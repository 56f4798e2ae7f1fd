"""POST /v1/responses and /v1/responses/input_tokens; and what the paths of stored responses answer, of which there are
none."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NoReturn, TypeVar

from anyio.to_thread import run_sync
from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic_core import to_json
from starlette.exceptions import HTTPException

from freehold.core.conversation import Conversation
from freehold.core.errors import UnsupportedFieldError
from freehold.server.answer import Answer, Heard
from freehold.server.event_stream import comment, named_event
from freehold.server.generation import Ask, Progress
from freehold.server.json_body import decode_json
from freehold.server.openai.logprobs import chat_logprobs
from freehold.server.part_recorder import PartRecorder
from freehold.server.responses.output import Event, ResponseOutput
from freehold.server.responses.wire import InputFields, ResponsesRequest
from freehold.server.responses.wire_body import (
    IncompleteDetails,
    InputTokensBody,
    InputTokensDetails,
    OutputItem,
    OutputTokensDetails,
    ResponseBody,
    ResponseFailure,
    ResponseUsage,
)
from freehold.server.service import PreparedChat, Service, http_request_id
from freehold.server.wire import parse_request, shown

logger = logging.getLogger("freehold.server")

PromptT = TypeVar("PromptT")


def responses_routes(service: Service) -> APIRouter:
    """The routes of this file, serving `service`."""
    router = APIRouter()

    @router.post("/v1/responses", responses=service.documented_answers(ResponseBody))
    async def create_response(http: Request) -> Response:
        body = await http.body()
        request, chat, reasons = await run_sync(_prepare, service, body, http)
        form = _ResponseForm(service, request, service.new_head("resp_"), reasons=reasons)
        asks = [_recorded(ask) for ask in chat.asks]
        if request.stream:
            return service.stream(http, asks, ResponseEventWriter(form))
        return await service.answer(http, asks, form.response)

    @router.post("/v1/responses/input_tokens", responses=service.documented_answers(InputTokensBody))
    async def count_input_tokens(http: Request) -> InputTokensBody:
        body = await http.body()
        return await run_sync(_count, service, body, http)

    @router.get("/v1/responses/{response_id}", response_model=None, status_code=404)
    @router.delete("/v1/responses/{response_id}", response_model=None, status_code=404)
    @router.get("/v1/responses/{response_id}/input_items", response_model=None, status_code=404)
    @router.post("/v1/responses/{response_id}/cancel", response_model=None, status_code=404)
    async def stored_response(response_id: str) -> NoReturn:
        raise HTTPException(404, f"there is no response {response_id[:80]!r}: this server stores none")

    return router


def _prepare(service: Service, body: bytes, http: Request) -> tuple[ResponsesRequest, PreparedChat, bool]:
    """All that takes time before the engine has the request; runs in a worker thread. The last value tells whether the
    effort of reasoning that was asked for has a meaning here."""
    request = parse_request(ResponsesRequest, decode_json(body))
    service.check_model(request.model)
    if request.hosted_types:
        types = ", ".join(map(shown, request.hosted_types))
        logger.info("request %s: tools that are not run here were left out: %s", http_request_id(http), types)
    conversation = request.conversation(service.backend.sampling_defaults)
    chat, reasons = _prompted(conversation, lambda asked: service.prepare_chat(http, asked))
    return request, chat, reasons


def _count(service: Service, body: bytes, http: Request) -> InputTokensBody:
    request = parse_request(InputFields, decode_json(body))
    service.check_model(request.model)
    prompt, _ = _prompted(request.conversation(), lambda asked: service.chat_prompt(http, asked))
    return InputTokensBody(input_tokens=len(prompt.ids))


def _prompted(conversation: Conversation, prompt: Callable[[Conversation], PromptT]) -> tuple[PromptT, bool]:
    """What `prompt` makes of the conversation, and whether the model can be told how much to reason. Clients such as
    Codex ask every model for an effort, so one that cannot gets the conversation without."""
    try:
        return prompt(conversation), True
    except UnsupportedFieldError as error:
        if error.field != "thinking":
            raise
        return prompt(replace(conversation, thinking=None)), False


def _recorded(ask: Ask) -> Ask:
    """The same, with an answer that knows which of its parts came when."""
    return replace(ask, parser=lambda: PartRecorder(ask.parser()))


class _ResponseForm:
    """Answers in the form of this API. head: see Service.new_head. reasons: whether an effort has a meaning here."""

    def __init__(self, service: Service, request: ResponsesRequest, head: dict[str, Any], *, reasons: bool) -> None:
        self._service, self._request = service, request
        self._fields = {
            "id": head["id"],
            "created_at": head["created"],
            "model": head["model"],
            **request.echo(reasons=reasons, defaults=service.backend.sampling_defaults),
        }

    def new_output(self) -> ResponseOutput:
        """The items of an answer, none yet."""
        request = self._request
        token_bytes = self._service.backend.token_bytes
        return ResponseOutput(
            custom_tools=request.custom_tools,
            seals_reasoning=request.seals_reasoning,
            logprobs=lambda tokens: chat_logprobs(tokens, token_bytes).content,
        )

    def response(self, answers: Sequence[Answer]) -> ResponseBody:
        """The whole answer, built as its stream would have been."""
        (answer,) = answers
        output = self.new_output()
        for heard in _recorder(answer).heard(answer):
            output.take(answer, heard)
        output.end(answer)
        return self.ended(answer, output.items())

    def unfinished(self) -> ResponseBody:
        """A response of which nothing is known yet."""
        return ResponseBody(**self._fields, status="in_progress", output=[])

    def failed(self, output: list[OutputItem], message: str) -> ResponseBody:
        """A response that broke off."""
        return ResponseBody(**self._fields, status="failed", output=output, error=ResponseFailure(message=message))

    def ended(self, answer: Answer, output: list[OutputItem]) -> ResponseBody:
        """A response that came to its end, or to the most tokens that it may have."""
        cut_off = answer.finish_text == "length"
        return ResponseBody(
            **self._fields,
            completed_at=None if cut_off else int(time.time()),
            status="incomplete" if cut_off else "completed",
            incomplete_details=IncompleteDetails() if cut_off else None,
            output=output,
            usage=_usage(answer),
        )


def _recorder(answer: Answer) -> PartRecorder:
    assert isinstance(answer.parser, PartRecorder), "every answer of this API is recorded"
    return answer.parser


def _usage(answer: Answer) -> ResponseUsage:
    usage = answer.ended.usage
    return ResponseUsage(
        input_tokens=usage.prompt_tokens,
        input_tokens_details=InputTokensDetails(
            cached_tokens=usage.cached_tokens, cache_write_tokens=usage.prompt_tokens - usage.cached_tokens
        ),
        output_tokens=usage.completion_tokens,
        output_tokens_details=OutputTokensDetails(reasoning_tokens=_recorder(answer).reasoning_tokens()),
        total_tokens=usage.prompt_tokens + usage.completion_tokens,
    )


class ResponseEventWriter:
    """Events of a streamed response. They are numbered without gaps, and the last one tells how it ended."""

    def __init__(self, form: _ResponseForm) -> None:
        self._form = form
        self._output = form.new_output()
        self._num_events = 0

    def opening(self) -> list[str]:
        """See EventWriter."""
        return [self._whole("created", self._form.unfinished()), self._whole("in_progress", self._form.unfinished())]

    def more(self, index: int, answer: Answer, heard: Heard) -> list[str]:
        """See EventWriter."""
        return self._numbered(self._output.take(answer, heard))

    def finish(self, index: int, answer: Answer) -> list[str]:
        """See EventWriter."""
        return self._numbered(self._output.end(answer))

    def closing(self, answers: Sequence[Answer]) -> list[str]:
        """See EventWriter."""
        response = self._form.ended(answers[0], self._output.items())
        return [self._whole(response.status, response)]

    def silence(self, progress: Progress | None) -> str:
        """See EventWriter. A comment for people, and an event, because clients' clocks may not count comments."""
        return comment(progress) + self._whole("in_progress", self._form.unfinished())

    def failure(self, status: int, message: str, code: str) -> list[str]:
        """See EventWriter."""
        return [self._whole("failed", self._form.failed(self._output.items(), message))]

    def _whole(self, kind: str, response: ResponseBody) -> str:
        return self._numbered([{"type": f"response.{kind}", "response": response.model_dump()}])[0]

    def _numbered(self, events: Sequence[Event]) -> list[str]:
        first, self._num_events = self._num_events, self._num_events + len(events)
        return [
            named_event(event["type"], to_json({**event, "sequence_number": number}).decode())
            for number, event in enumerate(events, first)
        ]
