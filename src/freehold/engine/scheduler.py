"""Who computes what in the next step."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass

from freehold.cache import BlockCache
from freehold.core.axes import ceil_div
from freehold.core.config import EngineConfig
from freehold.engine.pace import Pace
from freehold.engine.request import Request
from freehold.engine.served import Served

_MOST_OVERTAKEN = 16
"""So many requests may start before one whose turn it was, but for which there is no room yet."""
_LOOK_PAST = 3
"""So many requests without room are passed over in search of one that fits."""
_OLDEST_EVERY = 4
"""One turn in so many goes to the oldest: clients that have had nothing may come without end."""


@dataclass(frozen=True, slots=True)
class Work:
    """Tokens [start, start + length) of a request; `last` if its newest token is among them, so that it samples."""

    request: Request
    start: int
    length: int
    last: bool


@dataclass(frozen=True, slots=True)
class _Prompt:
    """Requests that go on with the same block: `leader` computes it, the others take it over. Alone, a request leads
    itself. The group has the best claims of its members, so that none is held up by another's."""

    leader: Request
    priority: int
    number: int
    served: tuple[int, ...]
    remaining: int


class Scheduler:
    """Each step decodes every running request and gives prompts a share of the step (see `Pace`).

    Among those that wait, the lowest `priority` starts first; then the client that was served least, and now and then
    the oldest request. Prompts of the lowest priority share the step: half goes to whose turn it is by the same rule,
    the rest to the shortest, so that a short prompt is done soon and a long one goes on. When places or blocks run
    short, the least important, youngest request gives up its room and waits again: its finished blocks stay in the
    prefix tree as long as they can.
    """

    def __init__(
        self, config: EngineConfig, cache: BlockCache, ready: Callable[[Request], int] = lambda r: r.num_uncomputed
    ) -> None:
        """ready: how many of a running request's next tokens can be computed now."""
        self.config = config
        self.cache = cache
        self._ready = ready
        self.pace = Pace(config.prefill_chunk)
        self.waiting: list[Request] = []
        self.running: list[Request] = []
        self.num_prompt_tokens = 0
        self._places = config.max_running
        self._served = Served()
        self._num_starts = self._num_shares = 0

    def __iter__(self) -> Iterator[Request]:
        yield from self.running
        yield from self.waiting

    def add(self, request: Request) -> None:
        """Queues a request."""
        self.waiting.append(request)
        self.num_prompt_tokens += request.prompt_len
        self._served.enter(request.client)

    def remove(self, request: Request) -> None:
        """The request has ended."""
        if request.sequence is not None:
            self.cache.close(request.sequence)
            request.sequence = None
            self.running.remove(request)
            self._places = self.config.max_running
        else:
            self.waiting.remove(request)
        self.num_prompt_tokens -= request.prompt_len
        self._served.leave(request.client)
        self.pace.ended(request.num_generated)

    def plan(self) -> list[Work]:
        """The next step's work; empty if nothing waits or runs, or if a request has just given up its room."""
        self._admit()
        for request in self.running:
            if request.num_uncomputed > 1 and request.shares:
                assert request.sequence is not None
                request.found(self.cache.adopt(request.sequence))
        plan: list[Work] = []
        for request in sorted(self.running, key=_importance):
            if request.sequence is not None and request.num_uncomputed == 1 and self._ready(request):
                self._put(plan, request, 1)
        for request, length in self._share(decoding=bool(plan)).items():
            self._put(plan, request, length)
        for work in plan:
            self._served.charge(work.request.client, work.length)
        return plan

    def give_way(self) -> bool:
        """The least important request gives up its room, and no other takes its place before one has ended: for a step
        whose requests do not fit into memory together. False if there is only one."""
        if len(self.running) < 2:
            return False
        self._pause(max(self.running, key=_importance))
        self._places = len(self.running)
        return True

    def observe(self, plan: list[Work], seconds: float) -> None:
        """Learns from a step that was computed."""
        prompts = [work for work in plan if work.length > 1 or not work.last]
        self.pace.observe(
            seconds,
            tokens=sum(work.length for work in prompts),
            depth=max((work.start for work in prompts), default=0),
            decoding=len(prompts) < len(plan),
        )

    def seconds_ahead(self) -> float:
        """About how long the requests that are here will take, from what others took. May be called from any thread."""
        prompts, answers = 0.0, 0
        for request in [*self.running, *self.waiting]:
            sequence = request.sequence
            computed = 0 if sequence is None else sequence.num_computed
            left = len(request.tokens) - computed
            prompts += left * self.pace.prompt_seconds(computed + left // 2)
            answers += 1
        at_once = max(1, min(answers, self.config.max_running))
        return prompts + answers * self.pace.answer_tokens * self.pace.decode_seconds / at_once

    # --- admission ------------------------------------------------------------------------------------------

    def _admit(self) -> None:
        """Starts waiting requests while there are places, and blocks for all their tokens. Growth is not provided
        for: the cache decides about it later, step by step."""
        while self.waiting:
            request = self._next()
            if request is None:
                return
            while not self._fits(request, self.running):
                self._pause(max(self.running, key=_importance))
            self._start(request)

    def _next(self) -> Request | None:
        """The waiting request whose turn it is and that has room, or gets it from less important ones."""
        if len(self.running) >= self._places and not (
            min(r.priority for r in self.waiting) < max(r.priority for r in self.running)
        ):
            return None
        by_age = self._num_starts % _OLDEST_EVERY == _OLDEST_EVERY - 1
        overtaken: list[Request] = []
        for request in heapq.nsmallest(
            1 + _LOOK_PAST,
            self.waiting,
            key=lambda r: (r.priority, () if by_age else self._served[r.client], r.number),
        ):
            if self._fits(request, [r for r in self.running if r.priority <= request.priority]):
                for other in overtaken:
                    other.times_overtaken += 1
                return request
            if request.times_overtaken >= _MOST_OVERTAKEN:
                return None
            overtaken.append(request)
        return None

    def _fits(self, request: Request, running: list[Request]) -> bool:
        """Whether there is a place beside `running`, and room for the tokens that all of them have."""
        if not running:
            return True
        if len(running) >= self._places:
            return False
        size = self.cache.block_tokens
        in_use: set[int] = set()
        pending = 0
        for other in running:
            assert other.sequence is not None
            in_use.update(other.sequence.slots)
            pending += ceil_div(len(other.tokens), size) - len(other.sequence.slots)
        room = self.cache.pool.num_slots - len(in_use) - pending
        needed = ceil_div(len(request.tokens), size)
        if needed <= room or not request.shares:
            return needed <= room
        return needed - len(in_use.intersection(self.cache.kept_slots(request.cache_tokens))) <= room

    def _start(self, request: Request) -> None:
        request.sequence = self.cache.open(request.cache_tokens, share=request.shares)
        self._num_starts += 1
        self.waiting.remove(request)
        self.running.append(request)
        request.found(request.sequence.num_computed)
        if request.times_paused == 0 and request.shares:
            request.miss = self.cache.miss(request.sequence)

    # --- sharing a step -------------------------------------------------------------------------------------

    def _share(self, *, decoding: bool) -> dict[Request, int]:
        """How many tokens of which prompts the step computes."""
        prompts = self._prompts()
        if not prompts:
            return {}
        self._num_shares += 1
        by_age = self._num_shares % _OLDEST_EVERY == 0
        fair = min(prompts, key=lambda p: (p.priority, () if by_age else p.served, p.number))
        shortest_first = sorted(prompts, key=lambda p: (p.priority, p.remaining, p.number))
        depth = max(len(p.leader.tokens) - p.leader.num_uncomputed for p in prompts)
        left = self.pace.prompt_tokens(depth) if decoding else self.config.prefill_chunk
        lengths: dict[Request, int] = {}
        for request, most in [(fair.leader, ceil_div(left, 2)), *((p.leader, left) for p in shortest_first)]:
            got = lengths.get(request, 0)
            length = min(most, left, self._ready(request) - got)
            if length > 0:
                lengths[request] = got + length
                left -= length
        return lengths

    def _prompts(self) -> list[_Prompt]:
        groups: dict[Hashable, list[Request]] = {}
        for request in self.running:
            if request.num_uncomputed > 1 and self._ready(request):
                assert request.sequence is not None
                block = self.cache.next_block(request.sequence) if request.shares else None
                groups.setdefault(block or request, []).append(request)
        return [
            _Prompt(
                # Who is furthest into the block, so that nothing of it is computed twice.
                leader=min(group, key=lambda r: (r.num_uncomputed - len(r.tokens), _importance(r))),
                priority=min(r.priority for r in group),
                number=min(r.number for r in group),
                served=min(self._served[r.client] for r in group),
                remaining=min(r.num_uncomputed for r in group),
            )
            for group in groups.values()
        ]

    def _put(self, plan: list[Work], request: Request, length: int) -> None:
        """Adds work to the plan if there is room for it."""
        if request.sequence is None:  # it gave up its room to another one in this very step
            return
        start = request.sequence.num_computed
        if self._make_room(request, start + length, plan):
            plan.append(Work(request, start, length, last=start + length == len(request.tokens)))

    def _make_room(self, request: Request, num_tokens: int, plan: list[Work]) -> bool:
        """Slots for the request's first `num_tokens` tokens, if need be at the cost of less important requests."""
        assert request.sequence is not None
        while not self.cache.reserve(request.sequence, num_tokens):
            victim = max(self.running, key=_importance)
            if victim is request:
                if len(self.running) > 1:
                    self._pause(request)
                return False
            self._pause(victim)
            plan[:] = [work for work in plan if work.request is not victim]
        return True

    def _pause(self, request: Request) -> None:
        """Back to the queue, without blocks."""
        assert request.sequence is not None
        self.cache.close(request.sequence)
        request.sequence = None
        request.times_paused += 1
        self.running.remove(request)
        self.waiting.append(request)


def _importance(request: Request) -> tuple[int, int]:
    """Smaller is more important."""
    return request.priority, request.number
