"""The running choices of one HTTP request, as one queue of what happens to them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Literal

from starlette.types import Receive

from freehold.core.events import Event, FinishEvent, TokenEvent, Usage
from freehold.core.sampling import SamplingParams
from freehold.server.backend import Backend, Stream
from freehold.server.errors import describe_exception, error_body, internal_error_body, log_failure
from freehold.server.wire_openai import ErrorBody


@dataclass(frozen=True, slots=True)
class Ask:
    """One answer to generate. client, priority: see `Backend.submit`."""

    prompt_ids: Sequence[int]
    params: SamplingParams
    client: str
    priority: int


@dataclass(frozen=True, slots=True)
class ClientGone:
    """The client closed the connection; the streams are already cancelled."""


@dataclass(frozen=True, slots=True)
class Broken:
    """A stream did not come to a proper end: the engine failed ("error"), gave the request up ("cancelled"), or did
    not get to its end in time ("timeout").

    detail: for the log.
    """

    reason: Literal["error", "cancelled", "timeout"]
    detail: str


Happening = tuple[int, Event] | Broken | ClientGone
"""A choice's number and its event, or why there will be no more events. A FinishEvent's reason is always
"stop" or "length" here."""


class Generation:
    """Streams submitted together, cancelled together.

    Use as an async context manager: inside it, `next()` gives what happens to any of the streams; on the way
    out, however that comes about, every stream is cancelled.
    """

    def __init__(self, streams: Sequence[Stream], receive: Receive) -> None:
        self._streams = tuple(streams)
        self._receive = receive
        self._queue: asyncio.Queue[Happening] = asyncio.Queue()
        self._tasks: list[asyncio.Task[None]] = []

    @classmethod
    def submit(cls, backend: Backend, asks: Sequence[Ask], receive: Receive) -> Generation:
        """Submit all of `asks`, or none: if one is refused, cancel the others and raise its error."""
        streams: list[Stream] = []
        try:
            for ask in asks:
                streams.append(backend.submit(ask.prompt_ids, ask.params, client=ask.client, priority=ask.priority))
        except BaseException:
            for stream in streams:
                stream.cancel()
            raise
        return cls(streams, receive)

    @property
    def num_choices(self) -> int:
        """How many streams run."""
        return len(self._streams)

    async def __aenter__(self) -> Generation:
        self._tasks = [asyncio.create_task(self._pump(i, stream)) for i, stream in enumerate(self._streams)]
        self._tasks.append(asyncio.create_task(self._watch_client()))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.cancel()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def cancel(self) -> None:
        """Cancel every stream; harmless for those that have ended."""
        for stream in self._streams:
            stream.cancel()

    async def next(self, timeout: float | None = None) -> Happening | None:
        """The next happening; None when there was none for `timeout` seconds."""
        if not self._queue.empty():
            return self._queue.get_nowait()
        try:
            return await asyncio.wait_for(self._queue.get(), timeout)
        except asyncio.TimeoutError:
            return None

    async def _pump(self, index: int, stream: Stream) -> None:
        try:
            async for event in stream:
                self._queue.put_nowait(_happening(index, event))
                if isinstance(event, FinishEvent):
                    return
        except Exception as error:
            self._queue.put_nowait(Broken("error", describe_exception(error)))
        else:
            detail = f"the stream of engine request {stream.request_id} ended without a FinishEvent"
            self._queue.put_nowait(Broken("error", detail))

    async def _watch_client(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        # At once, not when the queue gets there: nobody reads the answer any more.
        self.cancel()
        self._queue.put_nowait(ClientGone())


def _happening(index: int, event: Event) -> Happening:
    if isinstance(event, FinishEvent) and event.reason != "stop" and event.reason != "length":
        return Broken(event.reason, f"engine request {event.request_id} ended with {event.reason}: {event.error}")
    return index, event


def report_failure(broken: Broken, http_request_id: str) -> tuple[int, ErrorBody]:
    """Log what happened; status and body for the client."""
    log_failure(http_request_id, broken.detail)
    if broken.reason == "timeout":
        message = "the request took longer than this server allows; what was read of the prompt is kept: send it again"
        return 504, error_body(504, message, code="timeout")
    if broken.reason == "cancelled":
        message = "the server gave this request up, most likely because it is shutting down; send it again"
        return 503, error_body(503, message, code="request_cancelled")
    return 500, internal_error_body(http_request_id)


@dataclass(frozen=True, slots=True)
class Answer:
    """A finished choice."""

    text: str
    finish: FinishEvent


async def collect(generation: Generation) -> list[Answer] | Broken | ClientGone:
    """Wait for all choices; a Broken or a ClientGone tells what came between."""
    texts = [""] * generation.num_choices
    finishes: dict[int, FinishEvent] = {}
    async with generation:
        while len(finishes) < generation.num_choices:
            happening = await generation.next()
            if isinstance(happening, (Broken, ClientGone)):
                return happening
            assert happening is not None, "next() without a timeout always has something"
            index, event = happening
            if isinstance(event, (TokenEvent, FinishEvent)):
                texts[index] += event.text
            if isinstance(event, FinishEvent):
                finishes[index] = event
    return [Answer(text, finishes[index]) for index, text in enumerate(texts)]


def total_usage(usages: Sequence[Usage], *, answers_per_prompt: int) -> Usage:
    """Token counts of a whole HTTP request. `usages` is ordered by prompt, then by answer.

    A prompt counts once, as its first answer saw it; its later answers find it in the cache anyway.
    """
    firsts = usages[::answers_per_prompt]
    return Usage(
        prompt_tokens=sum(usage.prompt_tokens for usage in firsts),
        cached_tokens=sum(usage.cached_tokens for usage in firsts),
        completion_tokens=sum(usage.completion_tokens for usage in usages),
    )
