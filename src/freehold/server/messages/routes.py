"""POST /v1/messages and /v1/messages/count_tokens."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from anyio.to_thread import run_sync
from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel

from freehold.core.conversation import Conversation
from freehold.core.errors import RequestError
from freehold.server.json_body import decode_json
from freehold.server.messages.form import MessageEventWriter, MessageForm
from freehold.server.messages.unheeded import Unheeded
from freehold.server.messages.wire import CountTokensRequest, MessagesRequest, unheeded_fields
from freehold.server.messages.wire_answer import MessageBody, MessagesErrorBody, TokenCount
from freehold.server.part_recorder import PartRecorder
from freehold.server.service import PreparedChat, Service, http_request_id
from freehold.server.wire import parse_request


def messages_routes(service: Service) -> APIRouter:
    """The routes of this file, serving `service`."""
    router = APIRouter()
    unheeded = Unheeded("/v1/messages")

    @router.post("/v1/messages", responses=_documented(MessageBody))
    async def create_message(http: Request) -> Response:
        body = await http.body()
        request, chat = await run_sync(_prepare, service, unheeded, body, http)
        (ask,) = chat.asks
        form = MessageForm(
            message_id=service.new_head("msg_")["id"],
            model=service.backend.model_name,
            request_id=http_request_id(http),
            prompt_tokens=len(ask.prompt_ids),
            max_tokens=request.max_tokens,
            show_thinking=request.shows_thinking,
        )
        asks = [replace(ask, parser=lambda: PartRecorder(chat.prompt.parser()))]
        if request.stream:
            return _named(http, service.stream(http, asks, MessageEventWriter(form)))
        return _named(http, await service.answer(http, asks, form.message))

    @router.post("/v1/messages/count_tokens", responses=_documented(TokenCount))
    async def count_tokens(http: Request) -> Response:
        body = await http.body()
        count = await run_sync(_count, service, unheeded, body, http)
        return _named(http, JSONResponse(count.model_dump()))

    return router


def _prepare(service: Service, unheeded: Unheeded, body: bytes, http: Request) -> tuple[MessagesRequest, PreparedChat]:
    """All that takes time before the engine has the request; runs in a worker thread."""
    request = parse_request(MessagesRequest, decode_json(body))
    service.check_model(request.model)
    unheeded.note(unheeded_fields(request))
    conversation = request.conversation(service.backend.sampling_defaults)
    try:
        return request, service.prepare_chat(http, conversation)
    except RequestError as error:
        return request, service.prepare_chat(http, _without_thinking(conversation, error))


def _count(service: Service, unheeded: Unheeded, body: bytes, http: Request) -> TokenCount:
    request = parse_request(CountTokensRequest, decode_json(body))
    service.check_model(request.model)
    unheeded.note(unheeded_fields(request))
    conversation = request.conversation()
    try:
        prompt = service.chat_prompt(http, conversation)
    except RequestError as error:
        prompt = service.chat_prompt(http, _without_thinking(conversation, error))
    return TokenCount(input_tokens=len(prompt.ids))


def _without_thinking(conversation: Conversation, error: RequestError) -> Conversation:
    """The conversation as a model can take it that cannot be told how much to reason: clients such as Claude Code ask
    every model for it. Raises `error` if it is about something else."""
    if conversation.thinking is None or error.field != "thinking":
        raise error
    return replace(conversation, thinking=None)


def _named(http: Request, response: Response) -> Response:
    """`response` with the request's id where this API's clients look for it."""
    response.headers["request-id"] = http_request_id(http)
    return response


def _documented(answer: type[BaseModel]) -> dict[int | str, dict[str, Any]]:
    """The answers of a route, for /openapi.json."""
    statuses = (400, 401, 403, 404, 413, 415, 429, 500, 503, 504)
    refusals: dict[int | str, dict[str, Any]] = {status: {"model": MessagesErrorBody} for status in statuses}
    return {200: {"model": answer}, **refusals}
