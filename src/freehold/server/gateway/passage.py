"""An allowed request on its way: to the endpoint, and its answer back as it comes."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import httpx
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from freehold.governance.policy.record import Outcome
from freehold.server.errors import error_body
from freehold.server.gateway.answers import AnswerReader
from freehold.server.gateway.apis import Api
from freehold.server.gateway.endpoints import Endpoint
from freehold.server.gateway.upstream import Failure, Upstreams, failure_of, passed_back, refusal_of
from freehold.server.operation.lifecycle import Lifecycle
from freehold.server.refusals import anthropic_error_body, refuse

logger = logging.getLogger("freehold.gateway")


@dataclass(slots=True)
class Course:
    """How a passage went: filled in on the way, read at its end."""

    outcome: Outcome = "failed"
    reason: str = ""
    status: int | None = None
    upstream_status: int | None = None
    answer: AnswerReader = field(default_factory=lambda: AnswerReader(streamed=False))


class BrokenAnswerError(Exception):
    """The endpoint stopped in the middle of an answer: the client's connection is closed without an end."""


class Passage(Response):
    """Sends a request when it is called, and passes the answer through.

    given, accept: headers for the endpoint. headers: for the client, with every answer. request_id: for errors.
    on_end: called once, whatever happened.
    """

    def __init__(
        self,
        upstreams: Upstreams,
        lifecycle: Lifecycle,
        endpoint: Endpoint,
        api: Api,
        body: bytes,
        *,
        given: Mapping[str, str],
        accept: str,
        headers: Mapping[str, str],
        request_id: str,
        on_end: Callable[[Course], None],
    ) -> None:
        super().__init__()
        self._upstreams, self._lifecycle = upstreams, lifecycle
        self._endpoint, self._api, self._body = endpoint, api, body
        self._given, self._accept, self._told = given, accept, dict(headers)
        self._request_id = request_id
        self._on_end = on_end
        self._course = Course()
        self._stopped: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._ended = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        course = self._course

        async def send_noted(message: Message) -> None:
            if message["type"] == "http.response.start":
                course.status = message["status"]
            elif not message.get("more_body"):
                self._end()
            await send(message)

        number = self._lifecycle.add_stream(self._stop)
        work = asyncio.ensure_future(self._relay(scope, receive, send_noted))
        gone, stopped = asyncio.ensure_future(_disconnected(receive)), self._stopped
        try:
            await asyncio.wait({work, gone, stopped}, return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                course.outcome, course.reason = ("aborted", "shutting_down") if stopped.done() else ("disconnected", "")
                await _cancelled(work)
                if stopped.done():
                    text = "the gateway is shutting down; send the request again"
                    await self._tell(Failure(503, "shutting_down", text), scope, receive, send_noted)
            else:
                work.result()
        except asyncio.CancelledError:
            course.outcome, course.reason = "aborted", "cancelled"
            raise
        finally:
            self._lifecycle.remove_stream(number)
            await _cancelled(work)
            await _cancelled(gone)
            self._end()

    def _stop(self) -> None:
        if not self._stopped.done():
            self._stopped.set_result(None)

    def _end(self) -> None:
        """Hand the course over, once: before the answer is whole, or when nothing more comes of it."""
        if not self._ended:
            self._ended = True
            self._on_end(self._course)

    async def _relay(self, scope: Scope, receive: Receive, send: Send) -> None:
        course, name = self._course, self._endpoint.name
        try:
            response = await self._upstreams.send(self._endpoint, self._api, self._body, self._given, self._accept)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            failure = failure_of(error, name) if isinstance(error, httpx.HTTPError) else _UNUSABLE
            await self._tell(failure, scope, receive, send)
            return
        try:
            course.upstream_status = response.status_code
            if response.status_code == 200:
                await self._pass(response, scope, receive, send)
                return
            refusal = await refusal_of(response, name, self._api.family, self._endpoint.key)
            if isinstance(refusal, Failure):
                await self._tell(refusal, scope, receive, send)
                return
            course.reason = "upstream_error"
            headers = {
                name: value for name, value in passed_back(response).items() if name in ("retry-after", "request-id")
            }
            await Response(refusal, response.status_code, {**headers, **self._told}, media_type="application/json")(
                scope, receive, send
            )
        except httpx.HTTPError as error:
            await self._tell(failure_of(error, name), scope, receive, send)
        finally:
            await response.aclose()

    async def _pass(self, response: httpx.Response, scope: Scope, receive: Receive, send: Send) -> None:
        """The bytes as they come. An end that comes too early is not made to look like one."""
        course = self._course
        headers = passed_back(response)
        reads = headers.get("content-encoding", "identity") == "identity"
        course.answer = AnswerReader(streamed=headers.get("content-type", "").startswith("text/event-stream"))
        raw = [(n.encode(), v.encode("latin-1")) for n, v in {**headers, **self._told}.items()]
        await send({"type": "http.response.start", "status": 200, "headers": raw})
        held = b""  # of an answer that is no stream the last piece, so that it is recorded before it is whole
        try:
            async for chunk in response.aiter_raw():
                if reads:
                    course.answer.feed(chunk)
                else:
                    course.answer.nbytes += len(chunk)
                held, piece = (b"", chunk) if course.answer.streamed else (chunk, held)
                if piece:
                    await send({"type": "http.response.body", "body": piece, "more_body": True})
        except httpx.HTTPError as error:
            await self._tell(failure_of(error, self._endpoint.name), scope, receive, send)
            return
        course.answer.end()
        course.outcome = "served"
        await send({"type": "http.response.body", "body": held, "more_body": False})

    async def _tell(self, failure: Failure, scope: Scope, receive: Receive, send: Send) -> None:
        """Tell the client what went wrong, in its API's form: as an answer, or as the last event of a stream."""
        course = self._course
        course.reason = failure.code
        if course.status is None:
            headers = {**self._told, **(failure.headers or {})}
            await refuse(scope, failure.status, failure.message, failure.code, headers)(scope, receive, send)
            return
        logger.warning("request %s: %s", self._request_id, failure.message)
        if not (course.answer.streamed and course.answer.between_events):
            raise BrokenAnswerError
        await send({"type": "http.response.body", "body": self._event(failure), "more_body": False})

    def _event(self, failure: Failure) -> bytes:
        if self._api.family == "anthropic":
            body: Any = anthropic_error_body(failure.status, failure.message, self._request_id)
            return f"event: error\ndata: {json.dumps(body)}\n\n".encode()
        body = error_body(failure.status, failure.message, code=failure.code).model_dump()
        if self._api.name == "responses":
            body = {"type": "error", "sequence_number": self._course.answer.events, **body["error"]}
            return f"event: error\ndata: {json.dumps(body)}\n\n".encode()
        return f"data: {json.dumps(body)}\n\n".encode()


_UNUSABLE = Failure(502, "upstream_unreachable", "the endpoint's address cannot be used")


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _cancelled(task: asyncio.Future[Any]) -> None:
    """End a task, and wait for its end."""
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError, Exception):
        await task


def tokens_used(course: Course, request_bytes: int) -> tuple[int, int, bool]:
    """Tokens of prompt and answer, and whether the endpoint did not say: then they are estimated from what passed."""
    answer, usage = course.answer, course.answer.usage
    prompt = usage.input_tokens if usage else None
    written = usage.output_tokens if usage else None
    # What was never answered at all was most likely never read.
    reached = course.upstream_status == 200 or course.outcome in ("aborted", "disconnected")
    estimated = reached and (prompt is None or written is None or course.outcome != "served")
    if prompt is None:
        prompt = math.ceil(request_bytes / 4) if reached else 0
    if written is None or course.outcome != "served":
        counted = answer.events if answer.streamed else math.ceil(answer.nbytes / 4)
        written = max(written or 0, counted)
    return prompt, written, estimated
