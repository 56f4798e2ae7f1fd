"""`freehold bench sessions`: agent sessions through the engine, and whether anything in them is computed twice."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from tempfile import TemporaryDirectory
from typing import Any

from freehold.bench.harness import round_figures
from freehold.bench.machine import peak_memory, this_machine
from freehold.bench.random_m3 import BENCH_M3, random_engine
from freehold.bench.replay import OnCall, Replay, Replayed
from freehold.bench.report import Report
from freehold.bench.session_shape import PUBLISHED_STEPS, Session, forks, published_session, random_prefix, tool_calls
from freehold.core.config import EngineConfig, KvDtype
from freehold.core.errors import ArgumentError
from freehold.kernels import using_threads

Say = Callable[[str], None]

SHAPES = ("published", "calls", "forks")
_OPTION_OF = {"sessions": "published", "scale": "published", "prefix": "forks"}
_FORKS = 3
_EARLY = slice(200, 300)
_LATE = slice(-100, None)
_CALLS_TO_COMPARE = 400
"""Fewest calls in which the early and the late ones are apart."""
_SAY_SECONDS = 5.0

_NOTES = (
    f"model: random weights; {BENCH_M3.num_layers} layers, the first dense, {BENCH_M3.num_q_heads} query and "
    f"{BENCH_M3.num_kv_heads} KV heads of {BENCH_M3.head_dim}, index {BENCH_M3.num_index_heads} x {BENCH_M3.index_dim} "
    f"with one key, blocks of {BENCH_M3.block_tokens}, top {BENCH_M3.topk}",
    "new tokens: of each prompt, those after the longest beginning it shares with what was computed before, and of "
    "each answer, all but the last; counted from the tokens alone. recomputed: computed / new, 1.000 at best",
    "K and V blocks: chosen by attention, counted only while some of them lie in the store alone; their bytes, and "
    "those of index keys, are in MB read",
    "latency of a call: from its submission to its last token, beside the other calls of its time",
)


@dataclass(frozen=True, slots=True)
class SessionSettings:
    """shape: one of SHAPES. calls: of each session; None: the shape's own number. sessions, scale: of "published".
    prefix: tokens that the sessions of "forks" have in common; None: the shape's own.

    store: whether there is a block store. store_dir: its directory; None: a temporary one.
    ram_budget: as in `EngineConfig`. Raises ArgumentError for what does not go together.
    """

    shape: str
    threads: int
    calls: int | None = None
    sessions: int | None = None
    scale: float | None = None
    prefix: int | None = None
    store: bool = True
    store_dir: str | None = None
    ram_budget: int | None = None
    kv_dtype: KvDtype = "float32"
    quick: bool = False

    def __post_init__(self) -> None:
        for name, shape in _OPTION_OF.items():
            if getattr(self, name) is not None and self.shape != shape:
                raise ArgumentError(f"--{name} is for --shape {shape}; the shape is {self.shape!r}")
        if self.shape not in SHAPES:
            raise ArgumentError(f"shape is {self.shape!r}; it must be one of {', '.join(SHAPES)}")
        if not self.store and self.store_dir is not None:
            raise ArgumentError(f"--store-dir {self.store_dir} and --no-store exclude each other")

    def workload(self) -> list[tuple[str, list[list[Session]]]]:
        """What is replayed: the name of each row, and its rounds of sessions that run together."""
        vocab = BENCH_M3.vocab_size
        if self.shape == "published":
            count, scale = self.sessions or (2 if self.quick else 3), self.scale or 1 / (256 if self.quick else 64)
            steps = self.calls or (12 if self.quick else PUBLISHED_STEPS)
            agents = [published_session(n, vocab, steps=steps, scale=scale) for n in range(count)]
            return [(f"{count} sessions of {steps} steps, 1/{round_figures(1 / scale)} of the length", [agents])]
        if self.shape == "calls":
            calls = self.calls or (40 if self.quick else 1959)
            return [(f"one session of {calls:,} calls", [[tool_calls(0, vocab, calls=calls)]])]
        calls = self.calls or (2 if self.quick else 8)
        first, second = (random_prefix(seed, vocab, self.prefix_tokens) for seed in (1, 2))
        alone = tool_calls(0, vocab, calls=1, prefix=first)
        return [
            (f"parent, then {_FORKS} forks and it", [[alone], forks(first, 1 + _FORKS, vocab, calls=calls)]),
            ("all at once", [forks(second, 1 + _FORKS, vocab, calls=calls)]),
        ]

    @property
    def prefix_tokens(self) -> int:
        """Length of the common beginning; 0 where there is none."""
        return self.prefix or (1024 if self.quick else 32768) if self.shape == "forks" else 0


@dataclass(frozen=True, slots=True)
class Row:
    """One replay. prefix: tokens that all its sessions have in common."""

    name: str
    replayed: Replayed
    prefix: int

    @property
    def prefix_computed(self) -> int:
        """Computed tokens without those that only one session has: `prefix` if it was computed once."""
        return self.replayed.counters.computed_tokens - (self.replayed.new_tokens - self.prefix)

    def as_json(self) -> dict[str, Any]:
        """All figures."""
        r = self.replayed
        return {
            "name": self.name,
            "calls": len(r.call_seconds),
            "prompt_tokens": r.prompt_tokens,
            "answer_tokens": r.answer_tokens,
            "new_tokens": r.new_tokens,
            **asdict(r.counters),
            "recomputed": r.recomputed,
            "prefix_tokens": self.prefix,
            "prefix_computed_tokens": self.prefix_computed if self.prefix else None,
            "latency": latency_figures(r.call_seconds),
            "call_seconds": list(r.call_seconds),
            "seconds": r.seconds,
        }

    def cells(self) -> dict[str, str]:
        """For the table: name of the figure -> text."""
        r, c, latency = self.replayed, self.replayed.counters, latency_figures(self.replayed.call_seconds)
        cells = {
            "calls": f"{len(r.call_seconds):,}",
            "prompt tokens sent": f"{r.prompt_tokens:,}",
            "of them found": f"{c.hit_tokens:,} ({100 * c.hit_tokens / r.prompt_tokens:.1f} %)",
            "in blocks read back": f"{c.restored_tokens:,}",
            "new tokens": f"{r.new_tokens:,}",
            "computed tokens": f"{c.computed_tokens:,}",
            "recomputed": f"{r.recomputed:.3f}" if c.computed_tokens == r.new_tokens else f"{r.recomputed:.6f}",
        }
        if self.prefix:
            cells["prefix, computed"] = f"{self.prefix:,}, {self.prefix_computed:,}"
        names = {"first_tenth": "first tenth", "last_tenth": "last tenth", "early": "calls 200-300", "late": "last 100"}
        for key, name in names.items():
            seconds = latency[key]
            cells[f"latency ms, {name}"] = "-" if seconds is None else round_figures(seconds * 1e3)
        ratio = latency["late_to_early"]
        cells["last 100 / calls 200-300"] = "-" if ratio is None else f"{ratio:.2f}"
        return cells | {
            "K and V blocks in memory": f"{c.kv_blocks_found:,}",
            "K and V blocks read": f"{c.kv_blocks_read:,}",
            "MB read, written": f"{c.read_bytes / 1e6:,.1f}, {c.written_bytes / 1e6:,.1f}",
            "seconds": round_figures(r.seconds),
        }


def latency_figures(call_seconds: Sequence[float]) -> dict[str, float | None]:
    """Medians in seconds: of the first and last tenth of the calls, at least one; of calls 200 to 300 ("early") and of
    the last 100 ("late"), and their ratio late / early, None if there are fewer than 400 calls."""
    tenth = max(1, len(call_seconds) // 10)
    early = late = None
    if len(call_seconds) >= _CALLS_TO_COMPARE:
        early, late = (statistics.median(call_seconds[part]) for part in (_EARLY, _LATE))
    return {
        "first_tenth": statistics.median(call_seconds[:tenth]),
        "last_tenth": statistics.median(call_seconds[-tenth:]),
        "early": early,
        "late": late,
        "late_to_early": None if early is None or late is None else late / early,
    }


def run(settings: SessionSettings, say: Say) -> Report:
    """Runs the suite. say: gets a line now and then. Raises FreeholdError of the kind that fits."""
    machine = this_machine()
    with ExitStack() as stack:
        stack.enter_context(using_threads(settings.threads))
        store_dir = settings.store_dir
        if settings.store and store_dir is None:
            store_dir = stack.enter_context(TemporaryDirectory(prefix="freehold-sessions-"))
        config = EngineConfig(store_dir=store_dir, ram_budget=settings.ram_budget, kv_dtype=settings.kv_dtype)
        engine = random_engine(config)
        stack.callback(engine.close)
        rows = []
        for name, rounds in settings.workload():
            say(name)
            replayed = Replay(engine, on_call=_progress(say)).run(*rounds)
            rows.append(Row(name, replayed, settings.prefix_tokens))
    peak = peak_memory()
    cells = [row.cells() for row in rows]
    return Report(
        suite="sessions",
        title=f"agent sessions, {settings.shape}; {settings.threads} threads, {settings.kv_dtype}",
        head=machine.lines(),
        columns=("", *(row.name for row in rows)),
        rows=[[name, *(row[name] for row in cells)] for name in cells[0]],
        notes=(*_NOTES, f"peak memory of the process: {peak / 2**30:.2f} GiB", *machine.warnings()),
        data={
            "machine": machine.as_json(),
            "settings": asdict(settings),
            "rows": [row.as_json() for row in rows],
            "peak_memory_bytes": peak,
        },
    )


def _progress(say: Say) -> OnCall:
    """Says how far a replay is, every few seconds."""
    said = time.monotonic()

    def on_call(calls: int, history: int) -> None:
        nonlocal said
        if time.monotonic() - said > _SAY_SECONDS:
            said = time.monotonic()
            say(f"{calls:,} calls; the last one's history: {history:,} tokens")

    return on_call
