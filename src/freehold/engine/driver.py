"""The engine in a thread of its own, for servers: submit from an event loop, read events as they come."""

from __future__ import annotations

import asyncio
import logging
import math
import threading
import time
import uuid
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass

from freehold.core.clients import Client
from freehold.core.errors import FreeholdError
from freehold.core.events import Event, FinishEvent, Usage
from freehold.core.sampling import SamplingParams
from freehold.core.visuals import Placed
from freehold.engine.engine import Engine

_log = logging.getLogger("freehold.engine")

AUDIT_SECONDS = 5.0
"""Least time between two recounts of the block cache."""


@dataclass(frozen=True, slots=True)
class _Arrival:
    """A request on its way to the engine's thread."""

    request_id: str
    prompt: list[int]
    params: SamplingParams
    client: Client
    priority: int
    provenance: bool
    visuals: tuple[Placed, ...]


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
    """Owns an engine's thread. All engine calls happen there, but validation answers at once.

    Whenever the engine has nothing to do, the block cache recounts itself, at most every `audit_seconds`. If its
    books do not add up, that is logged and counted, and the cache starts anew empty: what it kept might be wrong.
    """

    def __init__(self, engine: Engine, *, audit_seconds: float = AUDIT_SECONDS) -> None:
        self.engine = engine
        self.num_audits = 0
        self.num_failed_audits = 0
        self._audit_seconds = audit_seconds
        self._last_audit = -math.inf
        self._unaudited = False
        self._streams: dict[str, RequestStream] = {}
        self._cancels: deque[str] = deque()
        # Guards what both threads touch; not held while the engine computes, so that submitting never waits for a step.
        self._wake = threading.Condition()
        self._inbox: deque[_Arrival] = deque()
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

    def submit(
        self,
        prompt_ids: Sequence[int],
        params: SamplingParams,
        *,
        client: Client = (),
        priority: int = 0,
        provenance: bool = False,
        visuals: Sequence[Placed] = (),
    ) -> RequestStream:
        """Queues a request; call it on the event loop that will read the stream. See `Engine.submit`.

        Raises RequestError or a subclass at once if the request cannot be served, or not now (BusyError).
        """
        prompt = list(prompt_ids)
        with self._wake:
            coming = [len(arrival.prompt) for arrival in self._inbox]
        self.engine.check(prompt, params, coming=coming, visuals=visuals)
        stream = RequestStream(f"req-{uuid.uuid4().hex[:24]}", self._request_cancel)
        with self._wake:
            self._streams[stream.request_id] = stream
            arrival = _Arrival(stream.request_id, prompt, params, client, priority, provenance, tuple(visuals))
            self._inbox.append(arrival)
            self._wake.notify()
        return stream

    def _request_cancel(self, request_id: str) -> None:
        with self._wake:
            self._cancels.append(request_id)
            self._wake.notify()

    def _run(self) -> None:
        while True:
            if not self._wait_for_work():
                self._audit()
                continue
            with self._wake:
                arrivals, self._inbox = self._inbox, deque()
                cancels, self._cancels = self._cancels, deque()
                stopping = self._stopping
            for arrival in arrivals:
                self._admit(arrival)
            for request_id in cancels:
                self.engine.cancel(request_id)
            if stopping:
                self._deliver(self.engine.abort_all("the server is shutting down"))
                return
            self._unaudited = True
            self._deliver(self._step())

    def _wait_for_work(self) -> bool:
        """False when there is none, and it is time to audit."""
        wait = self._last_audit + self._audit_seconds - time.monotonic() if self._unaudited else None
        with self._wake:
            return bool(
                self._wake.wait_for(
                    lambda: self._inbox or self._cancels or self._stopping or self.engine.busy,
                    None if wait is None else max(wait, 0.0),
                )
            )

    def _audit(self) -> None:
        self._last_audit, self._unaudited = time.monotonic(), False
        self.num_audits += 1
        try:
            self.engine.cache.check_integrity()
        except AssertionError as error:
            self.num_failed_audits += 1
            _log.error("the block cache contradicts itself (%s); it forgets everything and starts anew", error)
            self.engine.cache.clear()

    def _admit(self, arrival: _Arrival) -> None:
        request_id, prompt = arrival.request_id, arrival.prompt
        try:
            self.engine.submit(
                prompt,
                arrival.params,
                request_id=request_id,
                client=arrival.client,
                priority=arrival.priority,
                provenance=arrival.provenance,
                visuals=arrival.visuals,
            )
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
