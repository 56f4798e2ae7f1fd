"""A generation as server-sent events, in the form of one API."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Protocol

from fastapi.responses import Response
from starlette.types import Receive, Scope, Send

from freehold.server.answer import Answer, Heard
from freehold.server.generation import Broken, ClientGone, Generation, Progress


class EventWriter(Protocol):
    """Puts what happens into the events of one API. Each call gives whole events, ready to be sent, in order."""

    def opening(self) -> Sequence[str]:
        """What comes before anything has happened."""
        ...

    def more(self, index: int, answer: Answer, heard: Heard) -> Sequence[str]:
        """Something was added to choice `index`, which is `answer` now."""
        ...

    def finish(self, index: int, answer: Answer) -> Sequence[str]:
        """Choice `index` ended; its last parts were handed to `more` before."""
        ...

    def closing(self, answers: Sequence[Answer]) -> Sequence[str]:
        """All choices ended; the stream does."""
        ...

    def silence(self, progress: Progress | None) -> str:
        """Nothing was sent for a while: something that keeps the client waiting. progress: of the prompt's reading, as
        long as it is read."""
        ...

    def failure(self, status: int, message: str, code: str) -> Sequence[str]:
        """The stream breaks off; `status` would have been the HTTP status."""
        ...


class EventStreamResponse(Response):
    """Sends events as they become certain, and whenever nothing was sent for `keepalive_seconds` (wall clock) a sign
    of life. A failure becomes one event, after which the stream just ends.

    on_broken: logs a failure and gives (status, message, code) for the client.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        generation: Generation,
        writer: EventWriter,
        *,
        keepalive_seconds: float,
        on_broken: Callable[[Broken], tuple[int, str, str]],
    ) -> None:
        # The second header tells proxies of the nginx kind not to hold the stream back.
        super().__init__(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._generation = generation
        self._writer = writer
        self._keepalive_seconds = keepalive_seconds
        self._on_broken = on_broken
        self._progress: Progress | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with self._generation:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            await _send(send, self._writer.opening())
            end = await self._send_answers(send)
            if isinstance(end, ClientGone):
                return
            if isinstance(end, Broken):
                await _send(send, self._writer.failure(*self._on_broken(end)))
            else:
                await _send(send, self._writer.closing(self._generation.answers))
            await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _send_answers(self, send: Send) -> Broken | ClientGone | None:
        """Send until all choices have ended (None), or until something came between."""
        last_sent = time.monotonic()
        while not self._generation.ended:
            # Measured from the last byte sent, not from the last event: events may say nothing for minutes.
            silence_left = last_sent + self._keepalive_seconds - time.monotonic()
            happening = await self._generation.next(timeout=max(silence_left, 0.0))
            if isinstance(happening, (Broken, ClientGone)):
                return happening
            if happening is not None and (events := self._to_events(*happening)):
                await _send(send, events)
            elif time.monotonic() - last_sent >= self._keepalive_seconds:
                await _send(send, [self._writer.silence(self._progress)])
            else:
                continue
            last_sent = time.monotonic()
        return None

    def _to_events(self, index: int, what: Heard | Progress) -> list[str]:
        if isinstance(what, Progress):
            self._progress = what
            return []
        self._progress = None
        answer = self._generation.answers[index]
        events = [*self._writer.more(index, answer, what)]
        if answer.finish is not None:
            events += self._writer.finish(index, answer)
        return events


def data_event(text: str) -> str:
    """One event without a name."""
    return f"data: {text}\n\n"


def named_event(name: str, text: str) -> str:
    """One event with a name."""
    return f"event: {name}\ndata: {text}\n\n"


def comment(progress: Progress | None) -> str:
    """A comment, which clients skip: for APIs whose events have no place for signs of life."""
    return f": still working{'' if progress is None else f', {in_words(progress)}'}\n\n"


def in_words(progress: Progress) -> str:
    """How much of a prompt was read."""
    return f"{progress.done} of {progress.total} prompt tokens read"


async def _send(send: Send, events: Sequence[str]) -> None:
    # A body message without bytes would be legal, but some servers take it for the end.
    if text := "".join(events):
        await send({"type": "http.response.body", "body": text.encode(), "more_body": True})
