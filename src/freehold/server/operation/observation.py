"""What one HTTP request did: seen by the guards and by the streams it started, told to metrics, limits and log."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass, field

from freehold.core.events import Event, FinishEvent, Miss, PrefillEvent, TokenEvent, Usage
from freehold.server.operation.metrics import Metrics

CURRENT: ContextVar[Observation | None] = ContextVar("freehold_observation", default=None)
"""The observation of the HTTP request in whose context the code runs."""


@dataclass(slots=True)
class _Stream:
    prompt: object
    prompt_tokens: int
    prompt_done: int = 0
    sampled: int = 0
    last_token_at: float | None = None
    usage: Usage | None = None
    reason: str = "aborted"


def _nothing() -> None:
    """Where nobody objects."""


@dataclass(slots=True)
class Observation:
    """One HTTP request, with all streams it started.

    metrics: told about every event at once. clock: monotonic seconds.
    first_token_seconds: from the request's arrival; None before.
    model_asked, model: as the request named it; as it is answered, None until that is known.
    before_submit: called before the first stream is submitted; raises where it must not be.
    """

    metrics: Metrics
    clock: Callable[[], float] = time.monotonic
    first_token_seconds: float | None = None
    model_asked: str | None = None
    model: str | None = None
    before_submit: Callable[[], None] = _nothing
    _streams: dict[object, _Stream] = field(default_factory=dict)
    _started: float = 0.0

    def __post_init__(self) -> None:
        self._started = self.clock()

    @property
    def seconds(self) -> float:
        """Since the request's arrival."""
        return self.clock() - self._started

    def check_submit(self) -> None:
        """Raises what `before_submit` does, before the first stream. Those after it belong to the same request."""
        if not self._streams:
            self.before_submit()

    def observe_submit(self, stream: object, prompt_tokens: int, *, prompt: object = None) -> None:
        """The engine has taken a request.

        stream: any hashable name for it, new in this HTTP request. prompt: likewise; several answers to one prompt
            have the same one, and its tokens are then counted once. None: a prompt of its own.
        """
        self._streams[stream] = _Stream(stream if prompt is None else prompt, prompt_tokens)

    def observe_event(self, stream: object, event: Event) -> None:
        """Something happened to a stream that was submitted."""
        if isinstance(event, PrefillEvent):
            self._streams[stream].prompt_done = event.done
        elif isinstance(event, TokenEvent):
            self._observe_token(self._streams[stream])
        elif isinstance(event, FinishEvent):
            self._observe_finish(self._streams[stream], event)

    def _observe_token(self, stream: _Stream) -> None:
        now = self.clock()
        if stream.last_token_at is None:
            self.metrics.observe_first_token(now - self._started)
            if self.first_token_seconds is None:
                self.first_token_seconds = now - self._started
        else:
            self.metrics.observe_next_token(now - stream.last_token_at)
        stream.last_token_at = now
        stream.sampled += 1
        stream.prompt_done = stream.prompt_tokens

    def _observe_finish(self, stream: _Stream, event: FinishEvent) -> None:
        stream.usage, stream.reason = event.usage, event.reason
        self.metrics.observe_finish(event.usage, event.reason)

    @property
    def prompt_tokens(self) -> int:
        """Tokens of all prompts; of one that was given up, as many as were read."""
        read: dict[object, int] = {}
        for stream in self._streams.values():
            tokens = stream.usage.prompt_tokens if stream.usage and _whole(stream) else stream.prompt_done
            read[stream.prompt] = max(tokens, read.get(stream.prompt, 0))
        return sum(read.values())

    @property
    def held_tokens(self) -> int:
        """Tokens of all prompts that the engine has, and those sampled so far."""
        prompts = {stream.prompt: stream.prompt_tokens for stream in self._streams.values()}
        return sum(prompts.values()) + self.completion_tokens

    @property
    def completion_tokens(self) -> int:
        """Tokens that were sampled."""
        return sum(s.usage.completion_tokens if s.usage else s.sampled for s in self._streams.values())

    @property
    def cached_tokens(self) -> int:
        """Tokens of all prompts that were found in the cache, as the first answer to each saw it."""
        found: dict[object, int] = {}
        for stream in self._streams.values():
            found.setdefault(stream.prompt, stream.usage.cached_tokens if stream.usage else 0)
        return sum(found.values())

    @property
    def miss(self) -> Miss | None:
        """Where the first prompt left what was kept, if it did."""
        first = next(iter(self._streams.values()), None)
        return None if first is None or first.usage is None else first.usage.miss

    @property
    def finish_reason(self) -> str | None:
        """Why the streams ended; several reasons stand side by side. None: there was no stream."""
        return ",".join(sorted({stream.reason for stream in self._streams.values()})) or None

    def finish(self) -> None:
        """The HTTP request has ended; streams that have not are counted as aborted."""
        for stream in self._streams.values():
            if stream.usage is None:
                usage = Usage(stream.prompt_done, completion_tokens=stream.sampled)
                self.metrics.observe_finish(usage, stream.reason, times=False)


def _whole(stream: _Stream) -> bool:
    return stream.reason in ("stop", "length")
