"""A backend whose streams are seen by the HTTP request that started them, and can be given up all at once."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any, cast

from freehold.core.events import Event, FinishEvent
from freehold.server.backend import Backend, Stream
from freehold.server.operation.lifecycle import Lifecycle
from freehold.server.operation.observation import CURRENT, Observation


class WatchedStream:
    """A stream that tells an observation what happens to it."""

    def __init__(self, stream: Stream, observation: Observation | None, lifecycle: Lifecycle) -> None:
        self._stream = stream
        self._observation = observation
        self._lifecycle = lifecycle
        self._number = lifecycle.add_stream(stream.cancel)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    async def __aiter__(self) -> AsyncIterator[Event]:
        try:
            async for event in self._stream:
                if self._observation is not None:
                    self._observation.observe_event(self, event)
                if isinstance(event, FinishEvent):
                    self._lifecycle.remove_stream(self._number)
                yield event
        finally:
            self._lifecycle.remove_stream(self._number)

    def cancel(self) -> None:
        """See Stream."""
        self._lifecycle.remove_stream(self._number)
        self._stream.cancel()


class WatchedBackend:
    """The same backend, but for `submit`."""

    def __init__(self, backend: Backend, lifecycle: Lifecycle) -> None:
        self._backend = backend
        self._lifecycle = lifecycle

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    def submit(self, prompt_ids: Sequence[int], /, *args: Any, **kwargs: Any) -> WatchedStream:
        """See Backend. Called in the context of the HTTP request."""
        observation = CURRENT.get()
        if observation is not None:
            observation.check_submit()
        stream = WatchedStream(self._backend.submit(prompt_ids, *args, **kwargs), observation, self._lifecycle)
        if observation is not None:
            # Answers to one prompt are given the same list.
            observation.observe_submit(stream, len(prompt_ids), prompt=id(prompt_ids))
        return stream


def watched(backend: Backend, lifecycle: Lifecycle) -> Backend:
    """`backend`, watched."""
    return cast(Backend, WatchedBackend(backend, lifecycle))
