"""What all generating routes share: one backend, and the two ways to answer."""

from __future__ import annotations

import hashlib
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from fastapi import Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel

from freehold.core.clients import Client
from freehold.core.conversation import Conversation
from freehold.core.errors import ModelNotFoundError
from freehold.core.events import Usage
from freehold.server.answer import Answer
from freehold.server.backend import Backend, ChatPrompt
from freehold.server.board import Board, Entry
from freehold.server.errors import broken_answer
from freehold.server.event_stream import EventStreamResponse, EventWriter
from freehold.server.generation import Ask, Broken, ClientGone, Generation, collect
from freehold.server.openai.wire import ErrorBody, PlainPrompt, PromptTokensDetails, UsageBody
from freehold.server.operation.observation import CURRENT
from freehold.server.operation.principal import principal_of
from freehold.server.refusals import refuse

_CLIENT_CLOSED_REQUEST = 499
_MOST_NAME = 200
_MOST_USER = 256


@dataclass(frozen=True, slots=True)
class PreparedChat:
    """A conversation, ready for the engine: an `Ask` for each answer, and the prompt they share."""

    asks: tuple[Ask, ...]
    prompt: ChatPrompt


@dataclass(frozen=True, slots=True)
class Service:
    """A backend as it is served.

    aliases: further names that clients may ask for.
    keepalive_seconds: longest silence in a stream.
    """

    backend: Backend
    aliases: tuple[str, ...]
    keepalive_seconds: float
    board: Board = field(default_factory=Board)

    def check_model(self, name: str) -> None:
        """Raises ModelNotFoundError unless `name` is the served model."""
        observation = CURRENT.get()
        if observation is not None:
            observation.model_asked = name[:_MOST_NAME]
        if name not in (self.backend.model_name, *self.aliases):
            shown = name if len(name) <= 80 else name[:77] + "..."
            served = self.backend.model_name
            raise ModelNotFoundError(f"there is no model {shown!r} here; this server has {served!r}")
        if observation is not None:
            observation.model = self.backend.model_name

    def encode(self, text: str, asked: PlainPrompt) -> list[int]:
        """Token ids of a plain prompt as a request wants them, for a worker thread. Raises TokenizerError."""
        add_bos = False if asked.add_special_tokens is False else None
        return self.backend.encode(text, special=asked.parse_special is not False, add_bos=add_bos)

    def new_head(self, prefix: str) -> dict[str, Any]:
        """The fields that an answer and all chunks of a stream begin with."""
        return {
            "id": prefix + uuid.uuid4().hex,
            "created": int(time.time()),
            "model": self.backend.model_name,
        }

    def prepare_chat(self, http: Request, conversation: Conversation) -> PreparedChat:
        """All that takes time before the engine has a chat; for a worker thread. Raises as Backend.prepare_chat does.

        What an answer was is remembered before its last event is sent, so that the client's next request finds it.
        """
        prompt = self.chat_prompt(http, conversation)
        client, priority = client_names(http, conversation.user), request_priority(http, conversation.priority)
        asks = tuple(
            Ask(
                prompt.ids,
                prompt.params(params),
                client,
                priority,
                provenance=conversation.provenance,
                visuals=prompt.visuals,
                parser=prompt.parser,
                on_end=partial(_remember, prompt),
            )
            for params in conversation.params
        )
        return PreparedChat(asks, prompt)

    def chat_prompt(self, http: Request, conversation: Conversation) -> ChatPrompt:
        """The prompt of a conversation, for a worker thread. Raises as Backend.prepare_chat does."""
        holder = principal_of(http.scope)
        return self.backend.prepare_chat(conversation, client=holder.key_id if holder else "")

    def stream(self, http: Request, asks: Sequence[Ask], writer: EventWriter) -> EventStreamResponse:
        """Submit `asks` and answer with events. Raises as backend.submit does."""
        generation = Generation.submit(self.backend, asks, http.receive, self._entry(http, asks))
        return EventStreamResponse(
            generation,
            writer,
            keepalive_seconds=self.keepalive_seconds,
            on_broken=lambda broken: broken_answer(broken, http_request_id(http)),
        )

    async def answer(
        self, http: Request, asks: Sequence[Ask], to_body: Callable[[Sequence[Answer]], BaseModel | dict[str, Any]]
    ) -> Response:
        """Submit `asks` and answer with one JSON body when all have ended. Raises as backend.submit does."""
        end = await collect(Generation.submit(self.backend, asks, http.receive, self._entry(http, asks)))
        if isinstance(end, ClientGone):
            return Response(status_code=_CLIENT_CLOSED_REQUEST)
        if isinstance(end, Broken):
            status, message, code = broken_answer(end, http_request_id(http))
            return refuse(http.scope, status, message, code)
        body = to_body(end)
        return JSONResponse(body if isinstance(body, dict) else body.model_dump())

    def _entry(self, http: Request, asks: Sequence[Ask]) -> Entry:
        lens = [len(ask.prompt_ids) for ask in asks]
        return self.board.open(http_request_id(http), http.url.path, asks[0].client, lens)

    @staticmethod
    def documented_answers(answer: type[BaseModel]) -> dict[int | str, dict[str, Any]]:
        """The answers of a route, for /openapi.json."""
        refusals: dict[int | str, dict[str, Any]] = {
            status: {"model": ErrorBody} for status in (400, 401, 404, 413, 415, 429, 500, 503, 504)
        }
        return {200: {"model": answer}, **refusals}


def _remember(prompt: ChatPrompt, answer: Answer) -> None:
    prompt.remember(answer.message(), answer.token_ids)


def http_request_id(http: Request) -> str:
    """The id that the request's answer carries in its headers."""
    return str(http.scope["state"]["http_request_id"])


def client_names(http: Request, user: str | None) -> Client:
    """Whom a request is for: the key that it carries, or else the host it comes from, and the user that it names."""
    holder = principal_of(http.scope)
    key = f"key {holder.name}" if holder and holder.key_id else ""
    owner = key or f"host {http.client.host if http.client else 'unknown'}"
    return owner, f"user {_short(user)}" if user else ""


def _short(user: str) -> str:
    """The user's name; of one as long as a body may be, its beginning and a digest, which is kept in its place."""
    if len(user) <= _MOST_USER:
        return user
    digest = hashlib.sha256(user.encode("utf-8", "surrogatepass")).hexdigest()
    return f"{user[: _MOST_USER - 1 - len(digest)]} {digest}"


def request_priority(http: Request, asked: int | None) -> int:
    """What the request asks for, 0 where it does not; no better than its key allows."""
    holder = principal_of(http.scope)
    if holder is None or not holder.key_id:
        return asked or 0
    return holder.priority if asked is None else max(asked, holder.priority)


def usage_body(usage: Usage) -> UsageBody:
    """Token counts in the wire's form."""
    return UsageBody(
        prompt_tokens=usage.prompt_tokens,
        completion_tokens=usage.completion_tokens,
        total_tokens=usage.prompt_tokens + usage.completion_tokens,
        prompt_tokens_details=PromptTokensDetails(cached_tokens=usage.cached_tokens),
    )
