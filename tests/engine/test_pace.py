"""Prompts and answers share the time: by the seconds that a simulated machine takes."""

from __future__ import annotations

import random

import pytest

from freehold.core.events import TokenEvent
from freehold.core.sampling import SamplingParams
from freehold.engine.pace import Pace
from support.counting_model import counting_engine
from support.tiny_engine import random_tokens

CHUNK = 512
DECODE = 0.025

# What `tokens` prompt tokens at `depth` (a share of the longest prompt) add to a step, in seconds.
MACHINES = {
    "linear": lambda depth, tokens: 0.005 + tokens * 0.0014,
    "dearer with depth": lambda depth, tokens: 0.006 + tokens * (0.0014 + 0.0094 * depth),
    "the first token costs as much as twenty": lambda depth, tokens: 0.02 + max(0, tokens - 20) * 0.001,
    "one token takes longer than decoding": lambda depth, tokens: 0.001 * tokens + 0.125 * depth,
}


def percentile(values: list[float], share: float) -> float:
    return sorted(values)[int(len(values) * share)]


def hiccups(seed: int):
    """Factors of a machine that is never quite quiet."""
    noise = random.Random(seed)
    return lambda: 1 + abs(noise.gauss(0, 0.05)) + (3.0 if noise.random() < 0.01 else 0.0)


@pytest.mark.parametrize("length", [3_000, pytest.param(32_000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("machine", MACHINES)
def test_a_long_prompt_leaves_the_time_between_tokens_within_three_times(machine, length):
    added, noise = MACHINES[machine], hiccups(1)

    def cost(pieces):
        # The four streams come first in a step, one token each.
        streams, prompts = (pieces[:4], pieces[4:]) if pieces[0][1] == 1 else ([], pieces)
        return noise() * (DECODE * bool(streams) + sum(added(depth / length, tokens) for depth, tokens in prompts))

    engine = counting_engine(cost, prefill_chunk=CHUNK)
    answering = SamplingParams(max_tokens=49_000, ignore_eos=True)
    streams = [engine.submit(random_tokens(50, seed=s), answering) for s in range(4)]

    def gaps(steps: int | None, prompt: str = "") -> list[float]:
        found, last = [], engine._clock()
        while (len(found) < steps) if steps else prompt in engine._requests:
            if any(isinstance(e, TokenEvent) and e.request_id == streams[0] for e in engine.step()):
                found.append(engine._clock() - last)
                last = engine._clock()
        return found

    gaps(20)
    undisturbed = gaps(300)
    began = engine._clock()
    disturbed = gaps(None, engine.submit(random_tokens(length, seed=9), SamplingParams(max_tokens=1)))
    assert percentile(disturbed, 0.95) <= 3 * percentile(undisturbed, 0.95)
    # And the prompt had about half of the time, less what small chunks cost: it is not starved either.
    spent = sum(disturbed) - len(disturbed) * DECODE
    assert spent > 0.3 * (engine._clock() - began)


def steady(chunk: int = CHUNK) -> Pace:
    """A pace that knows its machine: 25 ms to decode, 1 ms for a prompt token."""
    pace = Pace(chunk)
    pace.observe(0.001 * chunk, tokens=chunk, depth=0, decoding=False)
    for _ in range(5):
        pace.observe(DECODE, tokens=0, depth=0, decoding=True)
    for _ in range(10):
        tokens = pace.prompt_tokens(0)
        pace.observe(DECODE + 0.001 * tokens, tokens=tokens, depth=0, decoding=True)
    return pace


def test_prompts_get_as_long_as_decoding_takes():
    assert steady().prompt_tokens(0) == 24  # the size below 25


def test_one_hiccup_changes_nothing():
    pace = steady()
    before = pace.prompt_tokens(0)
    pace.observe(5.0, tokens=before, depth=0, decoding=True)
    assert pace.prompt_tokens(0) == before
    pace.observe(5.0, tokens=0, depth=0, decoding=True)
    assert pace.prompt_tokens(0) == before


def test_a_chunk_is_never_exceeded_and_prompts_are_never_left_out_for_long():
    for chunk in (1, 5, 7):
        pace, left_out = steady(chunk), 0
        for _ in range(200):
            tokens = pace.prompt_tokens(0)
            assert 0 <= tokens <= chunk
            left_out = 0 if tokens else left_out + 1
            assert left_out <= 1
            pace.observe(DECODE + 0.001 * tokens, tokens=tokens, depth=0, decoding=True)


def test_when_answers_end_the_share_of_prompts_shrinks_with_what_is_left():
    """Decoding is measured again now and then, also while prompts never pause."""
    pace = steady()
    for _ in range(300):
        tokens = pace.prompt_tokens(0)
        pace.observe(0.005 + 0.001 * tokens, tokens=tokens, depth=0, decoding=True)
    assert pace.prompt_tokens(0) <= 6


def test_what_a_prompt_token_costs_is_known_by_depth():
    pace = Pace(CHUNK)
    assert pace.prompt_seconds(0) == 0.0
    pace.observe(0.512, tokens=512, depth=0, decoding=False)
    pace.observe(5.12, tokens=512, depth=30_000, decoding=False)
    assert pace.prompt_seconds(500) == pytest.approx(0.001)
    assert pace.prompt_seconds(20_000) == pytest.approx(0.01)
