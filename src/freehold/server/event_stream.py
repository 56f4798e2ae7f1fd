"""A generation as server-sent events."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Protocol

from fastapi.responses import Response
from starlette.types import Receive, Scope, Send

from freehold.core.events import Event, FinishEvent, PrefillEvent, Usage
from freehold.server.generation import Broken, ClientGone, Generation, report_failure, total_usage


class ChunkWriter(Protocol):
    """Puts what happens into chunks of one API. Each call gives the JSON texts to send, in order."""

    def opening(self, index: int) -> list[str]:
        """What comes before anything has happened to choice `index`."""
        ...

    def text(self, index: int, text: str) -> list[str]:
        """`text`, not empty, was added to choice `index`."""
        ...

    def finish(self, index: int, event: FinishEvent) -> list[str]:
        """Choice `index` ended; the event's own text was handed to `text` before."""
        ...

    def usage(self, usage: Usage) -> list[str]:
        """All choices ended."""
        ...


class EventStreamResponse(Response):
    """Sends chunks as they become certain, a comment whenever nothing was sent for `keepalive_seconds` (wall
    clock), and `[DONE]` at the end. A failure becomes one error object, after which the stream just ends.

    answers_per_prompt: how many consecutive choices share a prompt, for the token counts.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        generation: Generation,
        chunks: ChunkWriter,
        *,
        keepalive_seconds: float,
        answers_per_prompt: int,
    ) -> None:
        # The second header tells proxies of the nginx kind not to hold the stream back.
        super().__init__(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._generation = generation
        self._chunks = chunks
        self._keepalive_seconds = keepalive_seconds
        self._answers_per_prompt = answers_per_prompt
        self._usages: dict[int, Usage] = {}
        self._prefill = ""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        choices = range(self._generation.num_choices)
        async with self._generation:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            await _send_data(send, [chunk for index in choices for chunk in self._chunks.opening(index)])
            end = await self._send_answers(send)
            if isinstance(end, ClientGone):
                return
            if isinstance(end, Broken):
                _, body = report_failure(end, scope["state"]["http_request_id"])
                await _send_data(send, [body.model_dump_json()])
            else:
                usages = [self._usages[index] for index in choices]
                usage = total_usage(usages, answers_per_prompt=self._answers_per_prompt)
                await _send_data(send, [*self._chunks.usage(usage), "[DONE]"])
            await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _send_answers(self, send: Send) -> Broken | ClientGone | None:
        """Send until all choices have ended (None), or until something came between."""
        last_sent = time.monotonic()
        while len(self._usages) < self._generation.num_choices:
            # Measured from the last byte sent, not from the last event: events may say nothing for minutes.
            silence_left = last_sent + self._keepalive_seconds - time.monotonic()
            happening = await self._generation.next(timeout=max(silence_left, 0.0))
            if isinstance(happening, (Broken, ClientGone)):
                return happening
            if happening is not None and (chunks := self._to_chunks(*happening)):
                await _send_data(send, chunks)
            elif time.monotonic() - last_sent >= self._keepalive_seconds:
                await _send(send, f": still working{self._prefill}\n\n")
            else:
                continue
            last_sent = time.monotonic()
        return None

    def _to_chunks(self, index: int, event: Event) -> list[str]:
        if isinstance(event, PrefillEvent):
            self._prefill = f", {event.done} of {event.total} prompt tokens read"
            return []
        self._prefill = ""
        chunks = self._chunks.text(index, event.text) if event.text else []
        if isinstance(event, FinishEvent):
            self._usages[index] = event.usage
            chunks += self._chunks.finish(index, event)
        return chunks


async def _send_data(send: Send, texts: Sequence[str]) -> None:
    await _send(send, "".join(f"data: {text}\n\n" for text in texts))


async def _send(send: Send, text: str) -> None:
    # A body message without bytes would be legal, but some servers take it for the end.
    if text:
        await send({"type": "http.response.body", "body": text.encode(), "more_body": True})
