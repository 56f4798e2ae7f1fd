"""The running choices of one HTTP request, as one queue of what happens to them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Literal

from starlette.types import Receive

from freehold.core.clients import Client
from freehold.core.events import Event, FinishEvent, PrefillEvent, Usage
from freehold.core.sampling import SamplingParams
from freehold.core.visuals import Placed
from freehold.model.answers.parser import AnswerParser
from freehold.model.answers.plain import PlainParser
from freehold.server.answer import Answer, Heard
from freehold.server.backend import Backend, Stream
from freehold.server.board import Entry
from freehold.server.errors import describe_exception


def _forget(_answer: Answer) -> None:
    """What most requests do with a finished answer."""


@dataclass(frozen=True, slots=True)
class Ask:
    """One answer to generate. client, priority, provenance, visuals: see `Backend.submit`.

    parser: makes a new parser for the answer. on_end: called with the answer when it ended properly.
    """

    prompt_ids: Sequence[int]
    params: SamplingParams
    client: Client
    priority: int
    provenance: bool = False
    visuals: Sequence[Placed] = ()
    parser: Callable[[], AnswerParser] = PlainParser
    on_end: Callable[[Answer], None] = field(default=_forget)


@dataclass(frozen=True, slots=True)
class ClientGone:
    """The client closed the connection; the streams are already cancelled."""


BrokenReason = Literal["error", "cancelled", "withdrawn", "timeout"]


@dataclass(frozen=True, slots=True)
class Broken:
    """A stream did not come to a proper end: the engine failed ("error"), gave the request up ("cancelled"), somebody
    wanted it to end ("withdrawn"), or it did not get to its end in time ("timeout").

    detail: for the log. refusal: of an error that is the request's own fault, what the client is to know.
    """

    reason: BrokenReason
    detail: str
    refusal: str | None = None


@dataclass(frozen=True, slots=True)
class Progress:
    """A prompt is being read: `done` of `total` tokens so far."""

    done: int
    total: int


Happening = tuple[int, Heard | Progress] | Broken | ClientGone
"""A choice's number and what was added to it, or why nothing more will be."""


class Generation:
    """Streams submitted together, cancelled together.

    Use as an async context manager: inside it, `next()` gives what happens to any of the streams; on the way
    out, however that comes about, every stream is cancelled.
    """

    def __init__(self, asks: Sequence[Ask], streams: Sequence[Stream], receive: Receive, entry: Entry) -> None:
        self.answers = tuple(Answer(ask.prompt_ids, ask.parser()) for ask in asks)
        self._asks = tuple(asks)
        self._streams = tuple(streams)
        self._receive = receive
        self._entry = entry
        self._queue: asyncio.Queue[tuple[int, Event] | Broken | ClientGone] = asyncio.Queue()
        self._tasks: list[asyncio.Task[None]] = []

    @classmethod
    def submit(cls, backend: Backend, asks: Sequence[Ask], receive: Receive, entry: Entry) -> Generation:
        """Submit all of `asks`, or none: if one is refused, cancel the others and raise its error.

        entry: the request's line on the board; it is closed with the generation.
        """
        streams: list[Stream] = []
        try:
            for ask in asks:
                streams.append(
                    backend.submit(
                        ask.prompt_ids,
                        ask.params,
                        client=ask.client,
                        priority=ask.priority,
                        provenance=ask.provenance,
                        visuals=ask.visuals,
                    )
                )
        except BaseException:
            for stream in streams:
                stream.cancel()
            entry.close()
            raise
        generation = cls(asks, streams, receive, entry)
        entry.on_cancel = generation.cancel
        return generation

    @property
    def num_choices(self) -> int:
        """How many streams run."""
        return len(self._streams)

    @property
    def ended(self) -> bool:
        """Whether all choices have come to their proper end."""
        return all(answer.finish is not None for answer in self.answers)

    async def __aenter__(self) -> Generation:
        self._tasks = [asyncio.create_task(self._pump(i, stream)) for i, stream in enumerate(self._streams)]
        self._tasks.append(asyncio.create_task(self._watch_client()))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.cancel()
        self._entry.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def cancel(self) -> None:
        """Cancel every stream; harmless for those that have ended."""
        for stream in self._streams:
            stream.cancel()

    async def next(self, timeout: float | None = None) -> Happening | None:
        """The next happening; None when there was none for `timeout` seconds."""
        if self._queue.empty():
            try:
                found = await asyncio.wait_for(self._queue.get(), timeout)
            except asyncio.TimeoutError:
                return None
        else:
            found = self._queue.get_nowait()
        if isinstance(found, (Broken, ClientGone)):
            return found
        return self._hear(*found)

    def _hear(self, index: int, event: Event) -> Happening:
        if isinstance(event, PrefillEvent):
            return index, Progress(event.done, event.total)
        if isinstance(event, FinishEvent) and event.reason != "stop" and event.reason != "length":
            withdrawn = event.reason == "cancelled" and self._entry.cancelled
            reason: BrokenReason = "withdrawn" if withdrawn else event.reason
            detail = f"engine request {event.request_id} ended with {event.reason}: {event.error}"
            return Broken(reason, detail, event.refusal)
        answer = self.answers[index]
        heard = answer.hear(event)
        if answer.finish is not None:
            self._asks[index].on_end(answer)
        return index, heard

    async def _pump(self, index: int, stream: Stream) -> None:
        try:
            async for event in stream:
                self._entry.note(index, event)
                self._queue.put_nowait((index, event))
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


async def collect(generation: Generation) -> Sequence[Answer] | Broken | ClientGone:
    """Wait for all choices; a Broken or a ClientGone tells what came between."""
    async with generation:
        while not generation.ended:
            happening = await generation.next()
            if isinstance(happening, (Broken, ClientGone)):
                return happening
    return generation.answers


def total_usage(answers: Sequence[Answer], *, answers_per_prompt: int) -> Usage:
    """Token counts of a whole HTTP request. `answers` is ordered by prompt, then by answer.

    A prompt counts once, as its first answer saw it; its later answers find it in the cache anyway.
    """
    usages = [answer.ended.usage for answer in answers]
    firsts = usages[::answers_per_prompt]
    return Usage(
        prompt_tokens=sum(usage.prompt_tokens for usage in firsts),
        cached_tokens=sum(usage.cached_tokens for usage in firsts),
        completion_tokens=sum(usage.completion_tokens for usage in usages),
    )
