"""What all generating routes share: one backend, and the two ways to answer."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from fastapi import Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel

from freehold.core.errors import ModelNotFoundError
from freehold.core.events import FinishEvent, Usage
from freehold.server.backend import Backend
from freehold.server.errors import body_response
from freehold.server.event_stream import ChunkWriter, EventStreamResponse
from freehold.server.generation import Answer, Ask, Broken, ClientGone, Generation, collect, report_failure
from freehold.server.wire_openai import ErrorBody, FinishText, PromptTokensDetails, UsageBody

_CLIENT_CLOSED_REQUEST = 499


@dataclass(frozen=True, slots=True)
class Service:
    """A backend as it is served.

    aliases: further names that clients may ask for.
    keepalive_seconds: longest silence in a stream.
    """

    backend: Backend
    aliases: tuple[str, ...]
    keepalive_seconds: float

    def check_model(self, name: str) -> None:
        """Raises ModelNotFoundError unless `name` is the served model."""
        if name not in (self.backend.model_name, *self.aliases):
            shown = name if len(name) <= 80 else name[:77] + "..."
            served = self.backend.model_name
            raise ModelNotFoundError(f"there is no model {shown!r} here; this server has {served!r}")

    def new_head(self, prefix: str) -> dict[str, Any]:
        """The fields that an answer and all chunks of a stream begin with."""
        return {
            "id": prefix + uuid.uuid4().hex,
            "created": int(time.time()),
            "model": self.backend.model_name,
        }

    def stream(
        self, http: Request, asks: Sequence[Ask], writer: ChunkWriter, *, answers_per_prompt: int
    ) -> EventStreamResponse:
        """Submit `asks` and answer with events. Raises as backend.submit does."""
        generation = Generation.submit(self.backend, asks, http.receive)
        return EventStreamResponse(
            generation,
            writer,
            keepalive_seconds=self.keepalive_seconds,
            answers_per_prompt=answers_per_prompt,
        )

    async def answer(
        self, http: Request, asks: Sequence[Ask], to_body: Callable[[list[Answer]], BaseModel]
    ) -> Response:
        """Submit `asks` and answer with one JSON body when all have ended. Raises as backend.submit does."""
        end = await collect(Generation.submit(self.backend, asks, http.receive))
        if isinstance(end, ClientGone):
            return Response(status_code=_CLIENT_CLOSED_REQUEST)
        if isinstance(end, Broken):
            return body_response(*report_failure(end, http.scope["state"]["http_request_id"]))
        return JSONResponse(to_body(end).model_dump())

    @staticmethod
    def documented_answers(answer: type[BaseModel]) -> dict[int | str, dict[str, Any]]:
        """The answers of a route, for /openapi.json."""
        refusals: dict[int | str, dict[str, Any]] = {
            status: {"model": ErrorBody} for status in (400, 401, 404, 413, 415, 429, 500, 503, 504)
        }
        return {200: {"model": answer}, **refusals}


def client_name(http: Request, user: str | None) -> str:
    """Whom a request is for: the user that it names, or else the host that it comes from."""
    return f"user {user}" if user else f"host {http.client.host if http.client else 'unknown'}"


def finish_text(event: FinishEvent) -> FinishText:
    """The wire's word for why an answer ended."""
    assert event.reason == "stop" or event.reason == "length", "other ends are failures, not answers"
    return event.reason


def usage_body(usage: Usage) -> UsageBody:
    """Token counts in the wire's form."""
    return UsageBody(
        prompt_tokens=usage.prompt_tokens,
        completion_tokens=usage.completion_tokens,
        total_tokens=usage.prompt_tokens + usage.completion_tokens,
        prompt_tokens_details=PromptTokensDetails(cached_tokens=usage.cached_tokens),
    )
