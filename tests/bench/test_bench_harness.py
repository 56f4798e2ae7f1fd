"""The harness's arithmetic and the order of its turns, with a clock that the sides themselves move."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from freehold.bench.harness import (
    ROUNDS,
    SETTLE_SECONDS,
    Comparison,
    Samples,
    alternate,
    check_rounds,
    fastest,
    round_figures,
    time_calls,
)
from freehold.core.errors import ArgumentError

POSITIVE = st.floats(min_value=1e-6, max_value=1e6)


class Time:
    """A clock that stands still but for `taking` and `sleep`."""

    def __init__(self) -> None:
        self.now = 0.0
        self.slept: list[float] = []
        self.log: list[str] = []

    def clock(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.slept.append(seconds)
        self.log.append("rest")

    def taking(self, name: str, *seconds: float) -> Callable[[], None]:
        """A side whose calls take these times, one after another and over again."""
        calls = 0

        def run() -> None:
            nonlocal calls
            self.now += seconds[calls % len(seconds)]
            calls += 1
            self.log.append(name)

        return run


def test_sides_alternate_in_every_round_and_the_warm_up() -> None:
    turns: list[tuple[str, int]] = []

    def side(name: str) -> Callable[[int], str]:
        return lambda number: turns.append((name, number)) or f"{name}{number}"  # type: ignore[func-returns-value]

    results = alternate({"a": side("a"), "b": side("b")}, rounds=3, warmup=2, sleep=lambda _: None)
    assert turns == [(name, number) for number in (-2, -1, 0, 1, 2) for name in "ab"]
    assert results == {"a": ["a0", "a1", "a2"], "b": ["b0", "b1", "b2"]}


def test_there_is_a_rest_before_each_turn() -> None:
    time = Time()
    a, b = time.taking("a", 1.0), time.taking("b", 1.0)
    alternate({"a": lambda _: a(), "b": lambda _: b()}, rounds=1, warmup=1, settle=0.5, sleep=time.sleep)
    assert time.log == ["rest", "a", "rest", "b"] * 2
    assert time.slept == [0.5] * 4


@pytest.mark.parametrize(("rounds", "warmup", "sides"), [(0, 1, 1), (1, -1, 1), (1, 1, 0)])
def test_impossible_plans_are_refused(rounds: int, warmup: int, sides: int) -> None:
    with pytest.raises(ArgumentError, match=f"rounds is {rounds}, warmup {warmup}, with {sides} sides"):
        alternate(dict.fromkeys(range(sides), print), rounds=rounds, warmup=warmup)  # type: ignore[arg-type]


def test_seconds_of_a_call() -> None:
    time = Time()
    sides = {"a": time.taking("a", 2.0), "b": time.taking("b", 3.0)}
    times = time_calls(sides, rounds=3, min_seconds=0.02, clock=time.clock, sleep=time.sleep)
    assert times["a"].values == pytest.approx((2.0,) * 3)  # the rests are not counted
    assert times["b"].values == pytest.approx((3.0,) * 3)
    assert time.log[6:] == ["rest", "a", "rest", "b"] * 4  # after three trials of each, one warm-up round and three
    assert set(time.slept) == {SETTLE_SECONDS}


def test_short_calls_are_repeated_until_a_turn_is_long_enough() -> None:
    time = Time()
    times = time_calls({"a": time.taking("a", 0.25)}, rounds=2, min_seconds=2.0, clock=time.clock, sleep=time.sleep)
    assert times["a"].values == pytest.approx((0.25, 0.25))
    assert time.log.count("a") == 3 + 8 * 3


def test_a_slow_call_is_one_sample_not_the_result() -> None:
    time = Time()
    # Three trials and a warm-up come before the five samples 1, 1, 9, 1, 1.
    run = time.taking("a", 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 9.0, 1.0, 1.0)
    samples = time_calls({"a": run}, rounds=5, min_seconds=0.0, clock=time.clock, sleep=time.sleep)["a"]
    assert samples.values == pytest.approx((1.0, 1.0, 9.0, 1.0, 1.0))
    assert (samples.median, samples.low, samples.high) == pytest.approx((1.0, 1.0, 9.0))


def test_fastest_is_judged_after_a_warm_up_by_its_best_call() -> None:
    time = Time()
    ways = {"slow": time.taking("slow", 2.0), "cold": time.taking("cold", 50.0, 8.0, 1.0, 8.0)}
    assert fastest(ways, clock=time.clock) == "cold"
    assert fastest({"only": time.taking("only", 1.0)}, clock=time.clock) == "only"
    assert fastest({name: time.taking(name, 1.0) for name in "ab"}, clock=time.clock) == "a"


def test_ratios_of_one_comparison() -> None:
    both = Comparison(ours=Samples((2.0, 4.0, 30.0)), theirs=Samples((1.0, 8.0, 10.0)))
    assert both.ratio == 4.0 / 8.0
    assert both.ratios.values == (2.0, 0.5, 3.0)
    assert both.as_json() == {
        "ours": {"median": 4.0, "min": 2.0, "max": 30.0, "samples": [2.0, 4.0, 30.0]},
        "theirs": {"median": 8.0, "min": 1.0, "max": 10.0, "samples": [1.0, 8.0, 10.0]},
        "ratio_of_medians": 0.5,
        "median_of_ratios": 2.0,
    }


@given(st.lists(st.tuples(POSITIVE, POSITIVE), min_size=1, max_size=9), POSITIVE)
def test_what_slows_a_whole_round_leaves_its_ratio(pairs: list[tuple[float, float]], factor: float) -> None:
    ours, theirs = zip(*pairs, strict=True)
    quiet = Comparison(Samples(ours), Samples(theirs)).ratios
    busy = Comparison(Samples(ours).map(lambda t: t * factor), Samples(theirs).map(lambda t: t * factor)).ratios
    assert busy.median == pytest.approx(quiet.median)


@given(st.lists(POSITIVE, min_size=1, max_size=9))
def test_samples_are_ordered(values: list[float]) -> None:
    samples = Samples(tuple(values))
    assert samples.low <= samples.median <= samples.high
    assert samples.median == statistics.median(values)


def test_rounds_come_in_pairs_and_are_not_empty() -> None:
    with pytest.raises(ArgumentError, match="1 of our samples and 2 of theirs"):
        Comparison(Samples((1.0,)), Samples((1.0, 2.0)))
    with pytest.raises(ArgumentError, match="at least one round"):
        Samples(())


def test_fewer_rounds_are_said_to_be_no_result() -> None:
    assert check_rounds(ROUNDS) == ()
    assert check_rounds(ROUNDS - 1) == ("Only 4 rounds: for a look, not for quoting.",)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (1234.5, "1,230"),
        (123.4, "123"),
        (12.34, "12.3"),
        (1.0, "1.00"),
        (0.01234, "0.0123"),
        (0.9996, "1.000"),
        (math.inf, "inf"),
    ],
)
def test_figures_of_a_table(value: float, text: str) -> None:
    assert round_figures(value) == text
