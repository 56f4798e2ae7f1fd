"""`freehold bench long`: one very long session through the engine, with K and V far larger than their RAM."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from tempfile import TemporaryDirectory

from freehold.bench.harness import round_figures
from freehold.bench.machine import peak_memory, this_machine
from freehold.bench.random_m3 import BENCH_M3, random_engine
from freehold.bench.report import Report
from freehold.bench.session_shape import random_prefix
from freehold.bench.timeline import Timeline, Timing
from freehold.core.config import EngineConfig
from freehold.core.errors import ArgumentError, FreeholdError
from freehold.engine.engine import Engine
from freehold.kernels import using_threads

Say = Callable[[str], None]

LONG_M3 = replace(
    BENCH_M3,
    vocab_size=1024,
    hidden_size=256,
    num_layers=2,
    num_q_heads=8,
    num_kv_heads=2,
    head_dim=128,
    rotary_dim=64,
    index_dim=64,
    num_index_heads=2,
    dense_intermediate_size=512,
    context_length=2**20 + 2**16,
    sparse_attention=(True, True),
    moe=(False, False),
)
"""Two sparse layers of M3's blocks, small enough to read a million tokens within an hour."""

_WINDOW = 16384
"""The pace at a context is that of so many tokens before it."""
_DECODED = 48
_WARM = 16
"""Tokens of each answer that are not timed: the first bring the blocks they read into memory."""
_SAY_SECONDS = 30.0

_NOTES = (
    f"model: random weights; {LONG_M3.num_layers} sparse layers, hidden {LONG_M3.hidden_size}, {LONG_M3.num_q_heads} "
    f"query and {LONG_M3.num_kv_heads} KV heads of {LONG_M3.head_dim}, index {LONG_M3.num_index_heads} x "
    f"{LONG_M3.index_dim}, blocks of {LONG_M3.block_tokens}, top {LONG_M3.topk}",
    f"prefill: over the {_WINDOW:,} tokens before the context, the store being written beside it",
    f"decode: median of {_DECODED - _WARM} tokens after {_WARM}; with the budget, K and V beyond it lie in the store",
    "all in RAM: another engine, which restored the session from the same store, without a budget; its second answer, "
    "after every block came back",
)


@dataclass(frozen=True, slots=True)
class LongSettings:
    """contexts: ascending. ram_budget: bytes for K and V. store_dir: None: a temporary directory."""

    contexts: tuple[int, ...]
    ram_budget: int
    threads: int
    store_dir: str | None = None

    def __post_init__(self) -> None:
        if list(self.contexts) != sorted(set(self.contexts)):
            raise ArgumentError(f"contexts are {self.contexts}; they must ascend")
        if self.contexts[0] <= _WINDOW:
            raise ArgumentError(f"the shortest context is {self.contexts[0]}; it must be above {_WINDOW}")


@dataclass(slots=True)
class Mark:
    """One context. rates in tokens a second, 0 where the store had the session already; times in seconds."""

    context: int
    window_rate: float = 0.0
    mean_rate: float = 0.0
    paged: float = 0.0
    restarted: float = 0.0
    restored_first_token: float = 0.0
    in_ram: float = 0.0


def run(settings: LongSettings, say: Say) -> Report:
    """Runs the suite. say: gets a line now and then. Raises FreeholdError if an answer differs between the engines."""
    machine = this_machine()
    prompt = random_prefix(1, LONG_M3.vocab_size, settings.contexts[-1])
    with ExitStack() as stack:
        stack.enter_context(using_threads(settings.threads))
        store = settings.store_dir or stack.enter_context(TemporaryDirectory(prefix="freehold-long-"))
        config = EngineConfig(
            store_dir=store, ram_budget=settings.ram_budget, cache_tokens=settings.contexts[-1] + 2**14
        )
        marks = [Mark(context) for context in settings.contexts]
        answers, kv_bytes = _grow(config, prompt, marks, say)
        peak = peak_memory()
        say("the same session after a restart, with the budget")
        _answer_again(config, prompt, marks, answers, "restarted")
        say("the same session, all in RAM")
        _answer_again(replace(config, ram_budget=None), prompt, marks, answers, "in_ram")
    return Report(
        suite="long",
        title=f"one session up to {settings.contexts[-1]:,} tokens; {settings.threads} threads",
        head=machine.lines(),
        columns=("context", "prefill tok/s", "mean so far", "decode ms", "after restart", "all in RAM", "ratio"),
        rows=[_cells(mark) for mark in marks],
        notes=(
            *_NOTES,
            f"K and V: {kv_bytes / 2**30:.2f} GiB, of which {settings.ram_budget / 2**20:,.0f} MiB may be in RAM; peak "
            f"memory of the process with the budget: {peak / 2**30:.2f} GiB",
            "after restart: the first token of "
            + ", ".join(f"{mark.context:,} after {mark.restored_first_token:.2f} s" for mark in marks),
            *machine.warnings(),
        ),
        data={
            "machine": machine.as_json(),
            "settings": asdict(settings),
            "rows": [asdict(mark) for mark in marks],
            "kv_bytes": kv_bytes,
            "peak_memory_bytes": peak,
        },
    )


def _cells(mark: Mark) -> list[str]:
    rates = [f"{rate:,.0f}" if rate else "-" for rate in (mark.window_rate, mark.mean_rate)]
    times = [round_figures(seconds * 1e3) for seconds in (mark.paged, mark.restarted, mark.in_ram)]
    return [f"{mark.context:,}", *rates, *times, f"{mark.restarted / mark.in_ram:.2f}"]


def _grow(config: EngineConfig, prompt: Sequence[int], marks: Sequence[Mark], say: Say) -> tuple[list[list[int]], int]:
    """Reads the prompt from mark to mark, and answers at each; the answers, and the bytes of K and V at the end."""
    engine = random_engine(config, LONG_M3)
    try:
        timeline, answers, seconds, before = Timeline(engine), [], 0.0, 0
        for mark in marks:
            timing = timeline.submit(prompt[: mark.context], _DECODED)
            _run_and_say(timeline, timing, say)
            seconds += timing.first_token_seconds
            if timing.cached_tokens <= before:
                mark.mean_rate = mark.context / seconds
                done, at = next(p for p in timing.prefill if p[0] >= mark.context - _WINDOW)
                mark.window_rate = (mark.context - done) / (timing.tokens[0] - at)
            mark.paged = _decode_seconds(timing)
            if timing.cached_tokens < before // 128 * 128:
                raise FreeholdError(f"{timing.cached_tokens} of {before} tokens were found; the rest was read twice")
            before = mark.context
            answers.append(timing.token_ids)
            say(f"{mark.context:,}: {mark.window_rate:,.0f} tokens/s, decode {mark.paged * 1e3:.2f} ms")
        spec = engine.model.lane_specs[0]
        per_token = LONG_M3.num_layers * spec.num_kv_heads * spec.head_dim * 2 * 4
        return answers, per_token * marks[-1].context
    finally:
        engine.close()


def _run_and_say(timeline: Timeline, timing: Timing, say: Say) -> None:
    said = time.monotonic()

    def now_and_then() -> bool:
        nonlocal said
        if time.monotonic() - said > _SAY_SECONDS and timing.prefill:
            said = time.monotonic()
            say(f"{timing.prefill[-1][0]:,} of {timing.prompt_tokens:,} tokens read")
        return timing.ended

    timeline.run(now_and_then)


def _answer_again(
    config: EngineConfig, prompt: Sequence[int], marks: Sequence[Mark], answers: Sequence[list[int]], name: str
) -> None:
    engine = random_engine(config, LONG_M3)
    try:
        for mark, answer in zip(marks, answers, strict=True):
            timeline = Timeline(engine)
            timing = timeline.submit(prompt[: mark.context], _DECODED)
            timeline.run()
            if name == "in_ram":
                _bring_all(engine)
                timing = timeline.submit(prompt[: mark.context], _DECODED)
                timeline.run()
            if timing.token_ids != answer:
                raise FreeholdError(f"the answer at {mark.context:,} tokens differs ({name})")
            if name == "restarted":
                mark.restored_first_token = timing.first_token_seconds
            setattr(mark, name, _decode_seconds(timing))
    finally:
        engine.close()


def _bring_all(engine: Engine) -> None:
    """Every block of K and V that was restored into memory: else those come that are read, when they are."""
    disk = engine.cache.pool.disk
    assert disk is not None
    for pager in disk.pagers.values():
        pager.bring_all()
        assert pager.direct


def _decode_seconds(timing: Timing) -> float:
    return statistics.median(timing.gaps()[_WARM:])
