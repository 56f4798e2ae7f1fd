"""Bounds: counted by another route, and beside measured steps of real engines."""

from __future__ import annotations

import json
import statistics
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from freehold import kernels
from freehold.bench.floors import measure_floors
from freehold.bench.random_m3 import BENCH_M3, random_engine, random_m3
from freehold.bench.session_shape import random_prefix
from freehold.bench.timeline import Timeline, Timing
from freehold.bench.traffic import cache_elements_read, weight_nbytes_read
from freehold.core.config import EngineConfig
from freehold.engine.engine import Engine
from freehold.engine.llm import LLM
from freehold.model.minimax_m3 import index_sizes
from freehold.model.minimax_m3_config import MiniMaxM3Config
from freehold.plan.lanes import cache_cost
from freehold.plan.part import part_of
from freehold.plan.roofline import PREFILL_CHUNK, Demand, Rates, Roofline
from freehold.plan.shapes import m3_tensors
from freehold.plan.subject import Kind, StoredTensor, Subject, open_subject
from freehold.plan.weights import weight_cost
from support import published_m3

ABOVE = 1.3
"""A measured rate may be above the predicted one by this much: limits are measured at another moment."""
BELOW = 8.0
"""... and below it by this much: a bound leaves out Python, starting threads, norms and whatever else runs here."""

LARGER = replace(BENCH_M3, hidden_size=1536, dense_intermediate_size=6144, shared_intermediate_size=2048, num_experts=4)
"""More weights than a processor's caches hold, so that memory is what decodes."""


def subject_like(config: MiniMaxM3Config) -> Subject:
    """Of a model that was made in memory, of float32 weights."""
    infos = m3_tensors(config, {}, "F32", "test")
    tensors = tuple(
        StoredTensor(n, Kind(part_of(n), info, 4 * info.numel, info.numel, "F32")) for n, info in infos.items()
    )
    sparse = frozenset(i for i, is_sparse in enumerate(config.sparse_attention) if is_sparse)
    return Subject(Path("test"), "configuration", config, tensors, (), index_sizes(config), sparse)


def roofline_of(subject: Subject, kv_dtype: str = "float32") -> Roofline:
    cache = cache_cost(subject.lane_specs, 128, kv_dtype)
    return Roofline(subject, weight_cost(subject, "as-stored"), cache)


M3 = subject_like(BENCH_M3)


@given(st.integers(0, 5000), st.integers(1, 600))
def test_pairs_are_those_of_every_row(start: int, rows: int) -> None:
    window = BENCH_M3.topk * BENCH_M3.block_tokens
    seen = [position + 1 for position in range(start, start + rows)]
    sparse, scored = [min(n, window) for n in seen], [n for n in seen if n > window]
    demand, a_pair = roofline_of(M3).step(1, start, rows), 4 * BENCH_M3.num_q_heads * BENCH_M3.head_dim
    assert demand.attention == a_pair * (sum(seen) + 3 * sum(sparse))
    # A query that scores anything scores all; what it need not score, because it is chosen anyway, is within rounding.
    index = 2 * BENCH_M3.num_index_heads * BENCH_M3.index_dim * 3
    assert index * (sum(scored) - window * len(scored)) <= demand.index <= index * sum(scored)


def test_one_token_reads_the_weights_that_it_uses() -> None:
    """By the way that the suites count a model in memory."""
    model, demand = random_m3(), roofline_of(M3).decode(1, 1)
    cache = cache_elements_read(model, 1) * 4 - 3 * BENCH_M3.index_dim * 4  # one token: all is chosen, nothing scored
    assert demand.memory == pytest.approx(weight_nbytes_read(model) + cache, rel=1e-9)


def test_more_streams_share_weights_and_meet_more_experts() -> None:
    roofline = roofline_of(M3)
    assert roofline.distinct_experts(1) == pytest.approx(BENCH_M3.num_experts_per_token)
    assert roofline.distinct_experts(10_000) == pytest.approx(BENCH_M3.num_experts)
    one, eight = roofline.decode(1, 100), roofline.decode(8, 100)
    assert one.memory < eight.memory < 8 * one.memory
    assert eight.weights == pytest.approx(8 * one.weights)


def test_a_long_context_costs_the_scan_and_not_the_attention(tmp_path: Path) -> None:
    """At a million tokens of the published M3: half codes of the index, the dense layers, 2,048 chosen tokens."""
    (tmp_path / "config.json").write_text(json.dumps(published_m3.full_config()))
    roofline = roofline_of(open_subject(str(tmp_path)), "bfloat16")
    short, long = roofline.decode(1, 2048), roofline.decode(1, 2**20)
    scan, dense = 57 * 67.25 * 2**20, 3 * 2048 * (2**20 - 2048)
    assert long.memory - short.memory == pytest.approx(scan + dense)
    assert long.attention - short.attention == 3 * 4 * 64 * 128 * (2**20 - 2048)


def test_the_longest_contexts_are_summed_in_time() -> None:
    """Chunks of a very long prompt are looked at in groups, whose sum is no more than that of all."""
    rates, tokens = Rates(1e10, 1e11, 2e11, 1e9), 2**24
    steps = 0

    class Counted(Roofline):
        def step(self, streams: int, start: int, rows: int) -> Demand:
            nonlocal steps
            steps += 1
            return super().step(streams, start, rows)

    plain = roofline_of(M3)
    counted = Counted(plain.subject, plain.weights, plain.cache)
    seconds, _ = counted.prefill_seconds(tokens, rates)
    assert steps <= 8192
    every = sum(plain.step(1, start, PREFILL_CHUNK).seconds(rates)[0] for start in range(0, tokens, PREFILL_CHUNK))
    assert 0.999 * every <= seconds <= every


def test_experts_from_disk_cost_what_is_not_in_memory() -> None:
    roofline, cost = roofline_of(M3), weight_cost(M3, "as-stored")
    cold, warm, held = (replace(roofline, cached_experts=share).decode(1, 100).disk for share in (0.0, 0.75, 1.0))
    assert cold == pytest.approx(3 * BENCH_M3.num_experts_per_token * cost.stored_expert)
    assert warm == pytest.approx(cold / 4)
    assert held == 0


def test_the_slowest_resource_bounds() -> None:
    rates = Rates(read=10.0, float32=100.0, bfloat16=200.0, disk=1.0)
    demand = Demand(weights=100.0, attention=100.0, index=400.0, memory=20.0, disk=1.0, half_attention=True)
    assert demand.seconds(rates) == (2.5, "products")
    assert replace(demand, half_attention=False).seconds(rates) == (3.0, "products")
    assert replace(demand, integer_weights=True).seconds(rates) == (2.0, "memory")
    assert replace(demand, memory=31.0).seconds(rates) == (3.1, "memory")
    assert replace(demand, disk=4.0).seconds(rates) == (4.0, "disk")


def measured_rates() -> Rates:
    """Of this moment."""
    floors = measure_floors(kernels.threads(), quick=True)
    return Rates(floors.read.per_second, floors.float32.per_second, floors.bfloat16.per_second, 1e9)


def check_bounds(engine: Engine, roofline: Roofline, prompt_tokens: int) -> None:
    """Measured prefill and decode are not above their bounds, and not absurdly below. The machine is measured before
    and after, as other work may come or go."""
    before = measured_rates()
    timing = run(engine, prompt_tokens, answer_tokens=6)
    moments = (before, measured_rates())
    for name, measured, bounds in (
        (
            "prefill",
            prompt_tokens / timing.first_token_seconds,
            [prompt_tokens / roofline.prefill_seconds(prompt_tokens, rates)[0] for rates in moments],
        ),
        (
            "decode",
            1 / statistics.median(timing.gaps()[2:]),
            [1 / roofline.decode(1, prompt_tokens).seconds(rates)[0] for rates in moments],
        ),
    ):
        print(f"{name}: {measured:.1f} tokens/s, at most {bounds}")
        assert min(bounds) / BELOW <= measured <= max(bounds) * ABOVE, name


def run(engine: Engine, prompt_tokens: int, answer_tokens: int) -> Timing:
    timeline = Timeline(engine)
    vocabulary = engine.model.vocab_size - 1
    for seed in (0, 1):  # the first one warms up
        timing = timeline.submit(random_prefix(seed, vocabulary, prompt_tokens), answer_tokens)
        timeline.run()
    return timing


def test_a_random_m3_stays_below_its_bounds() -> None:
    engine = random_engine(EngineConfig(cache_tokens=2048), LARGER)
    check_bounds(engine, roofline_of(subject_like(LARGER)), 128)


@pytest.mark.model
def test_the_default_model_stays_below_its_bounds(default_model: Path) -> None:
    with LLM(default_model, cache_tokens=1024) as llm:
        check_bounds(llm.engine, roofline_of(open_subject(str(default_model))), 64)
