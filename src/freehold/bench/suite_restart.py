"""`freehold bench restart`: how soon a session on the disk answers after a restart, beside computing it again."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from freehold.bench.harness import round_figures
from freehold.bench.machine import resident_memory, this_machine
from freehold.bench.random_m3 import BENCH_M3, random_engine
from freehold.bench.report import Report
from freehold.bench.session_shape import random_prefix
from freehold.bench.timeline import Timeline, Timing
from freehold.core.config import EngineConfig
from freehold.core.errors import FreeholdError
from freehold.kernels import using_threads

Say = Callable[[str], None]

_NEW_TOKENS, _ANSWER = 30, 8
_NOTES = (
    "the restarted engine knows nothing but the files; opening it includes reading the store's catalog",
    f"the next turn: the whole history, its answer and {_NEW_TOKENS} new tokens; to its first token",
    "files dropped: the operating system was asked to forget the store's files before; else they were in its cache",
)


@dataclass(frozen=True, slots=True)
class RestartSettings:
    """context: tokens of the session. ram_budget: bytes for K and V of sparse layers; None: no limit."""

    context: int
    threads: int
    ram_budget: int | None = None
    store_dir: str | None = None


@dataclass(frozen=True, slots=True)
class Restart:
    """name; seconds to open the engine, and from the submission to the first token; tokens that were found."""

    name: str
    open_seconds: float
    timing: Timing
    resident_nbytes: int


def run(settings: RestartSettings, say: Say) -> Report:
    """Runs the suite. say: gets a line for each stage. Raises FreeholdError if an answer differs after a restart."""
    machine = this_machine()
    with ExitStack() as stack:
        stack.enter_context(using_threads(settings.threads))
        store = settings.store_dir or stack.enter_context(TemporaryDirectory(prefix="freehold-restart-"))
        config = EngineConfig(
            store_dir=store,
            ram_budget=settings.ram_budget,
            cache_tokens=settings.context + 4096,
        )
        history = random_prefix(1, BENCH_M3.vocab_size, settings.context)
        cold, going_on, following = _cold(config, history, say)
        restarts = []
        for name, drop in (("restart, files dropped", True), ("restart", False)):
            say(name)
            if drop:
                _forget_files(Path(store))
            restarts.append(_restart(name, config, following))
            if restarts[-1].timing.token_ids != going_on.token_ids:
                raise FreeholdError("the answer after a restart has other tokens than the one before it")
    rows = [["cold", "-", round_figures(cold.first_token_seconds), "0", f"{settings.context:,}", "1"]]
    for name, opened, timing in (
        ("next turn, never closed", None, going_on),
        *((r.name, r.open_seconds, r.timing) for r in restarts),
    ):
        rows.append(
            [
                name,
                "-" if opened is None else round_figures(opened),
                round_figures(timing.first_token_seconds),
                f"{timing.cached_tokens:,}",
                f"{timing.prompt_tokens - timing.cached_tokens:,}",
                f"1/{round_figures(cold.first_token_seconds / (timing.first_token_seconds + (opened or 0.0)))}",
            ]
        )
    return Report(
        suite="restart",
        title=f"a session of {settings.context:,} tokens, before and after a restart; {settings.threads} threads",
        head=machine.lines(),
        columns=("", "open s", "first token s", "found", "computed", "of cold"),
        rows=rows,
        notes=(*_NOTES, *machine.warnings()),
        data={
            "machine": machine.as_json(),
            "settings": asdict(settings),
            "cold_seconds": cold.first_token_seconds,
            "live_seconds": going_on.first_token_seconds,
            "restarts": [
                {
                    "name": r.name,
                    "open_seconds": r.open_seconds,
                    "first_token_seconds": r.timing.first_token_seconds,
                    "cached_tokens": r.timing.cached_tokens,
                    "resident_nbytes": r.resident_nbytes,
                }
                for r in restarts
            ],
        },
    )


def _cold(config: EngineConfig, history: list[int], say: Say) -> tuple[Timing, Timing, list[int]]:
    """The first prompt, the next turn in the same engine, and that turn's prompt."""
    say(f"computing {len(history):,} tokens")
    engine = random_engine(config)
    try:
        timeline = Timeline(engine)
        cold = timeline.submit(history, _ANSWER)
        timeline.run()
        following = [*history, *cold.token_ids, *random_prefix(2, BENCH_M3.vocab_size, _NEW_TOKENS)]
        going_on = timeline.submit(following, _ANSWER)
        timeline.run()
    finally:
        engine.close()
    return cold, going_on, following


def _restart(name: str, config: EngineConfig, prompt: Sequence[int]) -> Restart:
    began = time.perf_counter()
    engine = random_engine(config)
    opened = time.perf_counter() - began - _making_weights()
    try:
        timeline = Timeline(engine)
        timing = timeline.submit(prompt, _ANSWER)
        timeline.run()
        return Restart(name, max(opened, 0.0), timing, resident_memory())
    finally:
        engine.close()


def _making_weights() -> float:
    """Seconds to make the random weights: loading a model is not what is measured."""
    began = time.perf_counter()
    random_engine(replace(EngineConfig(), cache_tokens=128)).close()
    return time.perf_counter() - began


def _forget_files(directory: Path) -> None:
    """Asks the operating system to drop the files' pages, so that they are read from the disk again."""
    if not hasattr(os, "posix_fadvise"):
        return
    for path in directory.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
