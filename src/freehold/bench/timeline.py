"""What happened in an engine, and when: prefill and tokens of each request, with the clock's time."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from freehold.core.errors import FreeholdError
from freehold.core.events import FinishEvent, PrefillEvent, TokenEvent
from freehold.core.sampling import SamplingParams
from freehold.engine.engine import Engine


@dataclass(slots=True)
class Timing:
    """One request. Times in seconds of the clock.

    prefill: (tokens in the cache, time) after each chunk. tokens: time of each sampled token, with the ids.
    """

    submitted: float
    prompt_tokens: int
    prefill: list[tuple[int, float]] = field(default_factory=list)
    tokens: list[float] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    cached_tokens: int = 0
    ended: bool = False

    @property
    def first_token_seconds(self) -> float:
        """From submission to the first token. Raises FreeholdError if there was none."""
        if not self.tokens:
            raise FreeholdError("the request ended without a token")
        return self.tokens[0] - self.submitted

    def gaps(self, begin: float = 0.0, end: float = float("inf")) -> list[float]:
        """Seconds between tokens that follow each other, both inside [begin, end]."""
        inside = [t for t in self.tokens if begin <= t <= end]
        return [b - a for a, b in itertools.pairwise(inside)]


class Timeline:
    """Submits requests to an engine, steps it and notes what happens."""

    def __init__(self, engine: Engine, *, clock: Callable[[], float] = time.perf_counter) -> None:
        self.engine, self._clock = engine, clock
        self._timings: dict[str, Timing] = {}

    def submit(self, prompt: Sequence[int], answer_tokens: int, *, client: str = "") -> Timing:
        """Queues a greedy request that goes on to its last token."""
        params = SamplingParams(max_tokens=answer_tokens, temperature=0.0, ignore_eos=True)
        timing = Timing(self._clock(), len(prompt))
        self._timings[self.engine.submit(prompt, params, client=client)] = timing
        return timing

    def run(self, until: Callable[[], bool] | None = None) -> None:
        """Steps until `until` says so, or until nothing is left. Raises FreeholdError if a request fails."""
        while self.engine.busy and not (until is not None and until()):
            for event in self.engine.step():
                self._note(event)

    def _note(self, event: object) -> None:
        now = self._clock()
        if isinstance(event, PrefillEvent):
            self._timings[event.request_id].prefill.append((event.done, now))
        elif isinstance(event, TokenEvent):
            timing = self._timings[event.request_id]
            if not timing.tokens:
                timing.prefill.append((timing.prompt_tokens, now))
            timing.tokens.append(now)
            timing.token_ids.append(event.token_id)
        elif isinstance(event, FinishEvent):
            timing = self._timings.pop(event.request_id)
            timing.cached_tokens, timing.ended = event.usage.cached_tokens, True
            if event.error is not None:
                raise FreeholdError(f"a request of {timing.prompt_tokens} tokens failed: {event.error}")

    def cancel_all(self) -> None:
        """Ends every request."""
        for request_id in list(self._timings):
            self.engine.cancel(request_id)
        self.run()
