"""The engine in a thread of its own, for servers: submit from an event loop, read events as they come."""

from __future__ import annotations

import asyncio
import logging
import threading
import uuid
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence

from freehold.core.errors import FreeholdError
from freehold.core.events import Event, FinishEvent, Usage
from freehold.core.sampling import SamplingParams
from freehold.engine.engine import Engine

_log = logging.getLogger("freehold.engine")


class RequestStream:
    """The events of one request, for the event loop that submitted it."""

    def __init__(self, request_id: str, cancel: Callable[[str], None]) -> None:
        self.request_id = request_id
        self._events: asyncio.Queue[Event] = asyncio.Queue()
        self._loop = asyncio.get_running_loop()
        self._cancel = cancel

    def cancel(self) -> None:
        """Ends the request at the engine's next step. May be called from any thread, and again."""
        self._cancel(self.request_id)

    def put(self, event: Event) -> None:
        """Hands over an event from the engine's thread."""
        try:
            self._loop.call_soon_threadsafe(self._events.put_nowait, event)
        except RuntimeError:  # the loop is closed: nobody is left to read
            self.cancel()

    async def __aiter__(self) -> AsyncIterator[Event]:
        while True:
            event = await self._events.get()
            yield event
            if isinstance(event, FinishEvent):
                return


class EngineDriver:
    """Owns an engine's thread. All engine calls happen there, but validation answers at once."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._streams: dict[str, RequestStream] = {}
        self._cancels: deque[str] = deque()
        # Held while the engine computes: submitting waits for the step that is running.
        self._wake = threading.Condition()
        self._inbox: deque[tuple[str, list[int], SamplingParams]] = deque()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="freehold-engine", daemon=True)

    def start(self) -> None:
        """Starts the engine's thread."""
        self._thread.start()

    def stop(self) -> None:
        """Cancels everything and ends the thread."""
        with self._wake:
            self._stopping = True
            self._wake.notify()
        self._thread.join()

    def submit(self, prompt_ids: Sequence[int], params: SamplingParams) -> RequestStream:
        """Queues a request; call it on the event loop that will read the stream.

        Raises RequestError or a subclass at once if the request can never be served.
        """
        prompt = list(prompt_ids)
        self.engine.check(prompt, params, waiting=len(self._inbox))
        stream = RequestStream(f"req-{uuid.uuid4().hex[:24]}", self._request_cancel)
        with self._wake:
            self._streams[stream.request_id] = stream
            self._inbox.append((stream.request_id, prompt, params))
            self._wake.notify()
        return stream

    def _request_cancel(self, request_id: str) -> None:
        with self._wake:
            self._cancels.append(request_id)
            self._wake.notify()

    def _run(self) -> None:
        while True:
            with self._wake:
                self._wake.wait_for(lambda: self._inbox or self._cancels or self._stopping or self.engine.busy)
                arrivals, self._inbox = self._inbox, deque()
                cancels, self._cancels = self._cancels, deque()
                stopping = self._stopping
            for arrival in arrivals:
                self._admit(*arrival)
            for request_id in cancels:
                self.engine.cancel(request_id)
            if stopping:
                self._deliver(self.engine.abort_all("the server is shutting down"))
                return
            self._deliver(self._step())

    def _admit(self, request_id: str, prompt: list[int], params: SamplingParams) -> None:
        try:
            self.engine.submit(prompt, params, request_id=request_id)
        except FreeholdError as error:  # the queue filled up between the check and now
            self._deliver([FinishEvent(request_id, "error", Usage(len(prompt)), error=str(error))])

    def _step(self) -> list[Event]:
        try:
            return self.engine.step()
        except Exception:
            # One bad batch must not silence the server: its requests end with an error, others go on.
            _log.exception("a step failed; its requests are ended")
            return self.engine.abort_all("an internal error ended this request; the server's log has the details")

    def _deliver(self, events: list[Event]) -> None:
        for event in events:
            stream = self._streams.get(event.request_id)
            if isinstance(event, FinishEvent):
                self._streams.pop(event.request_id, None)
            if stream is not None:
                stream.put(event)
