"""Alternating measurements: warm-up, then A B A B; medians, and ratios between the sides."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from freehold.core.errors import ArgumentError

T = TypeVar("T")
Clock = Callable[[], float]
Sleep = Callable[[float], None]

ROUNDS = 5
"""Fewest rounds of a figure that may be quoted."""

SETTLE_SECONDS = 0.01
"""Rest before each turn. Thread pools spin for a while after their last task; a side must not pay for the other's."""


@dataclass(frozen=True, slots=True)
class Samples:
    """Values of one quantity, in the order of the rounds; at least one."""

    values: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.values:
            raise ArgumentError("no samples: a measurement needs at least one round")

    @property
    def median(self) -> float:
        """The middle value; the mean of the two middle ones if there is an even number."""
        return statistics.median(self.values)

    @property
    def low(self) -> float:
        """The smallest value."""
        return min(self.values)

    @property
    def high(self) -> float:
        """The largest value."""
        return max(self.values)

    def map(self, function: Callable[[float], float]) -> Samples:
        """`function` of each value, such as a rate of each time."""
        return Samples(tuple(function(value) for value in self.values))

    def as_json(self) -> dict[str, Any]:
        """{"median", "min", "max", "samples"}."""
        return {"median": self.median, "min": self.low, "max": self.high, "samples": list(self.values)}


@dataclass(frozen=True, slots=True)
class Comparison:
    """The same quantity on both sides; value i of each was taken in round i."""

    ours: Samples
    theirs: Samples

    def __post_init__(self) -> None:
        if len(self.ours.values) != len(self.theirs.values):
            raise ArgumentError(
                f"{len(self.ours.values)} of our samples and {len(self.theirs.values)} of theirs; rounds come in pairs"
            )

    @property
    def ratio(self) -> float:
        """Our median / their median."""
        return self.ours.median / self.theirs.median

    @property
    def ratios(self) -> Samples:
        """Ours / theirs of each round. What disturbs the machine for a whole round cancels out here."""
        pairs = zip(self.ours.values, self.theirs.values, strict=True)
        return Samples(tuple(ours / theirs for ours, theirs in pairs))

    def as_json(self) -> dict[str, Any]:
        """Both sides, "ratio_of_medians" and "median_of_ratios"; every ratio is ours / theirs."""
        return {
            "ours": self.ours.as_json(),
            "theirs": self.theirs.as_json(),
            "ratio_of_medians": self.ratio,
            "median_of_ratios": self.ratios.median,
        }


def alternate(
    sides: Mapping[str, Callable[[int], T]],
    *,
    rounds: int = ROUNDS,
    warmup: int = 1,
    settle: float = SETTLE_SECONDS,
    sleep: Sleep = time.sleep,
) -> dict[str, list[T]]:
    """Gives each side its turn in every round, in the order of `sides`, and returns what they gave in each round.

    Each side is called with the number of the round; warm-up rounds come first, have the negative numbers
    -warmup .. -1, and are left out of the result. settle: seconds of rest before each turn.
    Raises ArgumentError for rounds < 1, warmup < 0 or no side.
    """
    if rounds < 1 or warmup < 0 or not sides:
        raise ArgumentError(
            f"rounds is {rounds}, warmup {warmup}, with {len(sides)} sides; "
            "there must be at least 1 round, 0 warm-ups and 1 side"
        )
    results: dict[str, list[T]] = {name: [] for name in sides}
    for number in range(-warmup, rounds):
        for name, run in sides.items():
            sleep(settle)
            result = run(number)
            if number >= 0:
                results[name].append(result)
    return results


def time_calls(
    sides: Mapping[str, Callable[[], object]],
    *,
    rounds: int = ROUNDS,
    min_seconds: float = 0.02,
    clock: Clock = time.perf_counter,
    sleep: Sleep = time.sleep,
) -> dict[str, Samples]:
    """Seconds for one call of each side, alternating.

    A call shorter than min_seconds is repeated inside its turn, as often as a first trial says, and the turn's
    time is divided by that number. The trials warm up, and one more warm-up round follows.
    """
    repeats = {name: _repeats(run, min_seconds, clock) for name, run in sides.items()}

    def turn(name: str, run: Callable[[], object]) -> Callable[[int], float]:
        def timed(_round: int) -> float:
            start = clock()
            for _ in range(repeats[name]):
                run()
            return (clock() - start) / repeats[name]

        return timed

    turns = {name: turn(name, run) for name, run in sides.items()}
    return {name: Samples(tuple(s)) for name, s in alternate(turns, rounds=rounds, sleep=sleep).items()}


def fastest(candidates: Mapping[str, Callable[[], object]], *, clock: Clock = time.perf_counter) -> str:
    """The candidate whose best of three calls is the shortest; ties go to the first. A cold call is not the best."""
    if len(candidates) == 1:
        return next(iter(candidates))
    times = {name: min(_seconds(run, clock) for _ in range(3)) for name, run in candidates.items()}
    return min(times, key=lambda name: times[name])


def _repeats(run: Callable[[], object], min_seconds: float, clock: Clock) -> int:
    run()
    once = min(_seconds(run, clock) for _ in range(2))
    return max(1, math.ceil(min_seconds / max(once, 1e-9)))


def _seconds(run: Callable[[], object], clock: Clock) -> float:
    start = clock()
    run()
    return clock() - start


def round_figures(value: float, digits: int = 3) -> str:
    """A number for a table: `digits` significant digits, never in scientific notation."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    decimals = digits - 1 - math.floor(math.log10(abs(value)))
    return f"{round(value, decimals):,.{max(0, decimals)}f}"


def check_rounds(rounds: int) -> Sequence[str]:
    """The notes that a result of so many rounds must carry."""
    return () if rounds >= ROUNDS else (f"Only {rounds} rounds: for a look, not for quoting.",)
