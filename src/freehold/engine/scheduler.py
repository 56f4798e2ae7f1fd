"""Who computes what in the next step."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

from freehold.cache import BlockCache
from freehold.core.config import EngineConfig
from freehold.engine.request import Request


@dataclass(frozen=True, slots=True)
class Work:
    """Tokens [start, start + length) of a request; `last` if its newest token is among them, so that it samples."""

    request: Request
    start: int
    length: int
    last: bool


class Scheduler:
    """First come, first served. Each step decodes every running request, and gives what is left of the step's
    token budget to prompts. When the cache is full, the youngest request gives up its room and waits again:
    its finished blocks stay in the prefix tree as long as they can."""

    def __init__(self, config: EngineConfig, cache: BlockCache) -> None:
        self.config = config
        self.cache = cache
        self.waiting: deque[Request] = deque()
        self.running: list[Request] = []

    def __iter__(self) -> Iterator[Request]:
        yield from self.running
        yield from self.waiting

    def plan(self) -> list[Work]:
        """The next step's work; empty if nothing waits or runs. Decoding comes before prefill."""
        self._admit()
        budget = self.config.prefill_chunk
        decoding = [r for r in self.running if r.num_uncomputed == 1]
        prefilling = [r for r in self.running if r.num_uncomputed > 1]
        plan: list[Work] = []
        for request in decoding + prefilling:
            if request.sequence is None:  # it gave up its room to an older one in this very loop
                continue
            start = request.sequence.num_computed
            length = min(request.num_uncomputed, 1 if request in decoding else budget)
            if length < 1 or not self._make_room(request, start + length, plan):
                continue
            if request not in decoding:
                budget -= length
            plan.append(Work(request, start, length, last=start + length == len(request.tokens)))
        return plan

    def _admit(self) -> None:
        """Starts waiting requests while there is a place for them. The cache decides later, step by step."""
        while self.waiting and len(self.running) < self.config.max_running:
            if self.running and self._crowded(self.waiting[0]):
                return
            request = self.waiting.popleft()
            request.sequence = self.cache.open(request.tokens)
            if request.started is None:
                request.cached_tokens = min(request.sequence.num_computed, request.prompt_len)
            self.running.append(request)

    def _crowded(self, request: Request) -> bool:
        """Whether admitting the request would soon make another one give up its room."""
        stats = self.cache.stats()
        in_use = sum(len(r.tokens) for r in self.running)
        return in_use + len(request.tokens) > stats.num_blocks * stats.block_tokens

    def _make_room(self, request: Request, num_tokens: int, plan: list[Work]) -> bool:
        """Slots for the request's first `num_tokens` tokens, if need be at the cost of younger requests."""
        assert request.sequence is not None
        while not self.cache.reserve(request.sequence, num_tokens):
            youngest = max(self.running, key=lambda r: r.submitted)
            if youngest is request:
                if len(self.running) > 1:
                    self._pause(request)
                return False
            self._pause(youngest)
            plan[:] = [work for work in plan if work.request is not youngest]
        return True

    def _pause(self, request: Request) -> None:
        """Back to the head of the queue, without blocks."""
        assert request.sequence is not None
        self.cache.close(request.sequence)
        request.sequence = None
        self.running.remove(request)
        self.waiting.appendleft(request)

    def remove(self, request: Request) -> None:
        """The request has ended."""
        if request.sequence is not None:
            self.cache.close(request.sequence)
            request.sequence = None
            self.running.remove(request)
        else:
            self.waiting.remove(request)
