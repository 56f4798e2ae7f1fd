"""`freehold bench streams`: several answers at once, and what a long prompt does to them."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass

from freehold.bench.harness import round_figures
from freehold.bench.machine import this_machine
from freehold.bench.random_m3 import BENCH_M3, random_engine
from freehold.bench.report import Report
from freehold.bench.session_shape import random_prefix
from freehold.bench.timeline import Timeline, Timing
from freehold.core.config import EngineConfig
from freehold.core.errors import ArgumentError
from freehold.engine.engine import Engine
from freehold.engine.llm import LLM
from freehold.kernels import using_threads

Say = Callable[[str], None]

_NOTES = (
    "tokens/s: of all streams together, while all of them write",
    "gap: between two tokens of one stream, over all streams; 95 of 100 are shorter than p95",
    "beside the prompt: from the prompt's submission to its first token; undisturbed: the same tokens without it",
)


@dataclass(frozen=True, slots=True)
class StreamSettings:
    """model: None: the random M3 of bench shape. streams: answers at once. prompt, answer: tokens of each. long_prompt:
    tokens of the prompt that comes in the middle. rounds: of one stream and of many, in turn."""

    model: str | None
    streams: int
    prompt: int
    answer: int
    long_prompt: int
    threads: int
    rounds: int

    def __post_init__(self) -> None:
        for name in ("streams", "prompt", "long_prompt", "rounds"):
            if getattr(self, name) < 1:
                raise ArgumentError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.answer < 16:
            raise ArgumentError(f"answer is {self.answer}; it must be at least 16, to have gaps to measure")


def run(settings: StreamSettings, say: Say) -> Report:
    """Runs the suite. say: gets a line for each stage."""
    machine = this_machine()
    with ExitStack() as stack:
        stack.enter_context(using_threads(settings.threads))
        engine, name = _engine(settings, stack)
        alone, together = [], []
        for number in range(settings.rounds):
            say(f"round {number + 1} of {settings.rounds}")
            alone.append(_rate(engine, settings, 1, 100 * number))
            together.append(_rate(engine, settings, settings.streams, 100 * number + 50))
        say(f"a prompt of {settings.long_prompt:,} tokens beside {settings.streams} streams")
        quiet, beside, seconds, most = _disturbed(engine, settings)
    one, many = statistics.median(alone), statistics.median(together)
    p95 = {"undisturbed": _p95(quiet), "beside_prompt": _p95(beside)}
    rows = [
        ["tokens/s, 1 stream", round_figures(one)],
        [f"tokens/s, {settings.streams} streams", round_figures(many)],
        ["ratio", f"{many / one:.2f}"],
        ["p95 gap undisturbed, ms", round_figures(p95["undisturbed"] * 1e3)],
        ["p95 gap beside the prompt, ms", round_figures(p95["beside_prompt"] * 1e3)],
        ["ratio", f"{p95['beside_prompt'] / p95['undisturbed']:.2f}"],
        ["longest gap beside the prompt, ms", round_figures(most * 1e3)],
        ["the prompt's first token after, s", round_figures(seconds)],
    ]
    return Report(
        suite="streams",
        title=f"{settings.streams} streams, {name}; {settings.threads} threads",
        head=machine.lines(),
        columns=("", "value"),
        rows=rows,
        notes=(*_NOTES, *machine.warnings()),
        data={
            "machine": machine.as_json(),
            "settings": asdict(settings),
            "tokens_per_second": {"one": alone, "many": together, "ratio_of_medians": many / one},
            "p95_seconds": p95,
            "p95_ratio": p95["beside_prompt"] / p95["undisturbed"],
            "longest_gap_seconds": most,
            "prompt_seconds": seconds,
        },
    )


def _engine(settings: StreamSettings, stack: ExitStack) -> tuple[Engine, str]:
    if settings.model is not None:
        llm = stack.enter_context(LLM(settings.model, max_running=settings.streams + 1))
        return llm.engine, settings.model
    engine = random_engine(EngineConfig(max_running=settings.streams + 1))
    stack.callback(engine.close)
    return engine, f"random M3 of {BENCH_M3.num_layers} layers"


def _submit(timeline: Timeline, settings: StreamSettings, count: int, answer: int, seed: int) -> list[Timing]:
    vocab = timeline.engine.model.vocab_size
    prompts = [random_prefix(seed + n, vocab, settings.prompt) for n in range(count)]
    return [timeline.submit(prompt, answer, client=str(n)) for n, prompt in enumerate(prompts)]


def _rate(engine: Engine, settings: StreamSettings, count: int, seed: int) -> float:
    """Tokens a second of all streams together, while all of them write."""
    timeline = Timeline(engine)
    streams = _submit(timeline, settings, count, _room(engine, settings), seed)
    timeline.run(lambda: all(s.tokens for s in streams))
    begin = max(s.tokens[0] for s in streams)
    before = sum(len(s.tokens) for s in streams)
    timeline.run(lambda: sum(len(s.tokens) for s in streams) >= before + count * settings.answer)
    end = max(s.tokens[-1] for s in streams)
    timeline.cancel_all()
    return sum(sum(begin < t <= end for t in s.tokens) for s in streams) / (end - begin)


def _room(engine: Engine, settings: StreamSettings) -> int:
    """Tokens of an answer that does not end by itself."""
    return min(engine.context_length, engine.cache.capacity_tokens) - settings.prompt


def _disturbed(engine: Engine, settings: StreamSettings) -> tuple[list[float], list[float], float, float]:
    """Gaps undisturbed and beside the long prompt, its seconds to the first token, and the longest gap beside it.

    Both are gaps between the same tokens: while a prompt is read, answers grow longer, and so do their steps.
    """
    timeline = Timeline(engine)
    streams = _submit(timeline, settings, settings.streams, _room(engine, settings), 7000)
    timeline.run(lambda: all(len(s.tokens) > settings.answer for s in streams))
    first = [len(s.tokens) for s in streams]
    long = timeline.submit(random_prefix(9000, engine.model.vocab_size, settings.long_prompt), 1, client="long")
    timeline.run(lambda: bool(long.tokens))
    if not all(s.tokens[-1] >= long.submitted for s in streams) or any(s.ended for s in streams):
        raise ArgumentError("a stream came to its end while the long prompt was read; take a shorter --long-prompt")
    beside = _gaps(streams, long.submitted, long.tokens[0])
    last = [len(s.tokens) for s in streams]
    timeline.cancel_all()
    timeline = Timeline(engine)
    streams = _submit(timeline, settings, settings.streams, _room(engine, settings), 7000)
    timeline.run(lambda: all(len(s.tokens) >= end for s, end in zip(streams, last, strict=True)))
    quiet = [
        gap
        for s, begin, end in zip(streams, first, last, strict=True)
        for gap in s.gaps(s.tokens[begin - 1], s.tokens[end - 1])
    ]
    timeline.cancel_all()
    return quiet, beside, long.first_token_seconds, max(beside)


def _gaps(streams: Sequence[Timing], begin: float, end: float) -> list[float]:
    return [gap for stream in streams for gap in stream.gaps(begin, end)]


def _p95(values: Sequence[float]) -> float:
    return statistics.quantiles(values, n=20)[-1]
