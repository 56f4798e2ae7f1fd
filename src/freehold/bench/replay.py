"""Replaying sessions through an engine, and counting what it computed beside what was new."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields

from freehold.bench.session_shape import Call, Session
from freehold.core.errors import FreeholdError
from freehold.core.events import FinishEvent, TokenEvent
from freehold.core.sampling import SamplingParams
from freehold.engine.engine import Engine

OnCall = Callable[[int, int], None]
"""Called after each call with the number of calls so far and the tokens of this call's history."""


class Ledger:
    """What an engine was given to compute so far. It looks at tokens only, not at the engine's books."""

    def __init__(self) -> None:
        self._lines: list[list[int]] = []  # none of them is the beginning of another

    def add(self, tokens: list[int]) -> int:
        """How many of the tokens are new: those after the longest beginning shared with anything added before."""
        seen = 0
        extended = None
        for number, line in enumerate(self._lines):
            shared = _shared(line, tokens)
            seen = max(seen, shared)
            if shared == len(line):
                extended = number
        if extended is not None:
            self._lines[extended] = list(tokens)
        elif seen < len(tokens):
            self._lines.append(list(tokens))
        return len(tokens) - seen


def _shared(a: list[int], b: list[int]) -> int:
    """Length of the common beginning."""
    if a == b[: len(a)]:  # nearly always, and much faster than token by token
        return len(a)
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


@dataclass(frozen=True, slots=True)
class Counters:
    """What the cache has counted, or the difference of two such counts.

    hit_tokens: prompt tokens that were found. restored_tokens: tokens of blocks that came back from the store.
    kv_blocks_found, kv_blocks_read: chosen blocks of K and V, summed over sparse layers, that were in memory and that
    were read from the store. The last five are 0 without a store.
    """

    computed_tokens: int
    hit_tokens: int
    restored_tokens: int
    kv_blocks_found: int
    kv_blocks_read: int
    read_bytes: int
    written_bytes: int

    @staticmethod
    def of(engine: Engine) -> Counters:
        """As they stand when everything that was computed is in the store."""
        stats, disk = engine.cache.stats(), engine.cache.pool.disk
        if disk is not None:
            disk.wait()
        pagers = [] if disk is None else list(disk.pagers.values())
        return Counters(
            stats.computed_tokens,
            stats.hit_tokens,
            stats.restored_tokens,
            kv_blocks_found=sum(pager.num_found for pager in pagers),
            kv_blocks_read=sum(pager.num_read for pager in pagers),
            read_bytes=0 if disk is None else disk.read_bytes,
            written_bytes=0 if disk is None else disk.written_bytes,
        )

    def since(self, before: Counters) -> Counters:
        """The difference."""
        return Counters(*(getattr(self, f.name) - getattr(before, f.name) for f in fields(self)))


@dataclass(frozen=True, slots=True)
class Replayed:
    """One replay. prompt_tokens: of all calls together, as they were sent. answer_tokens: as they were generated.

    new_tokens: what had to be computed, whatever the cache holds. Of a prompt, the tokens after the longest beginning
    that it shares with what the replay computed before. Of an answer, every token but the last, which is fed to the
    model only if a later prompt goes on with it; it counts as new there.
    call_seconds: of each call from its submission to its end, in the order of their ends. seconds: of all.
    """

    prompt_tokens: int
    answer_tokens: int
    new_tokens: int
    call_seconds: tuple[float, ...]
    seconds: float
    counters: Counters

    @property
    def recomputed(self) -> float:
        """Computed tokens / new tokens. 1 if each was computed once; more if some were computed again; less if
        blocks were found that were there before the replay began."""
        return self.counters.computed_tokens / self.new_tokens


@dataclass(slots=True)
class _Running:
    session: Session
    call: Call
    submitted: float
    answer: list[int] = field(default_factory=list)


class Replay:
    """Gives an engine the calls of sessions. Each has one call at a time, and its next as soon as that is answered."""

    def __init__(self, engine: Engine, *, on_call: OnCall, clock: Callable[[], float] = time.perf_counter) -> None:
        self._engine, self._on_call, self._clock = engine, on_call, clock
        self._ledger = Ledger()
        self._running: dict[str, _Running] = {}
        self._call_seconds: list[float] = []
        self._prompt_tokens = self._answer_tokens = self._new_tokens = 0

    def run(self, *rounds: Sequence[Session]) -> Replayed:
        """Replays the sessions of a round together, and one round after another; to be called once.

        Raises FreeholdError if a call does not end as it should.
        """
        before, began = Counters.of(self._engine), self._clock()
        for sessions in rounds:
            for session in sessions:
                self._submit(session, next(session))
            while self._engine.busy:
                for event in self._engine.step():
                    if isinstance(event, TokenEvent):
                        self._running[event.request_id].answer.append(event.token_id)
                    elif isinstance(event, FinishEvent):
                        self._end(event)
        seconds = self._clock() - began
        return Replayed(
            self._prompt_tokens,
            self._answer_tokens,
            self._new_tokens,
            tuple(self._call_seconds),
            seconds,
            Counters.of(self._engine).since(before),
        )

    def _submit(self, session: Session, call: Call) -> None:
        self._prompt_tokens += len(call.prompt)
        self._new_tokens += self._ledger.add(call.prompt)
        # The seed is any number that is the same in every run.
        params = SamplingParams(max_tokens=call.answer_tokens, seed=self._prompt_tokens, ignore_eos=True)
        running = _Running(session, call, self._clock())
        self._running[self._engine.submit(call.prompt, params)] = running

    def _end(self, event: FinishEvent) -> None:
        running = self._running.pop(event.request_id)
        self._call_seconds.append(self._clock() - running.submitted)
        call, answer = running.call, running.answer
        if event.reason != "length" or len(answer) != call.answer_tokens:
            raise FreeholdError(
                f"a call with a prompt of {len(call.prompt)} tokens ended with {event.reason!r} after {len(answer)} of "
                f"{call.answer_tokens} tokens: {event.error or 'no error'}"
            )
        self._answer_tokens += len(answer)
        self._new_tokens += self._ledger.add(call.prompt + answer[:-1])
        self._on_call(len(self._call_seconds), len(call.prompt) + len(answer))
        following = next_call(running.session, answer)
        if following is not None:
            self._submit(running.session, following)


def next_call(session: Session, answer: list[int]) -> Call | None:
    """The call after the one with this answer; None if it was the last."""
    try:
        return session.send(answer)
    except StopIteration:
        return None
