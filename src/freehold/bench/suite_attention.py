"""`freehold bench attention`: the operator at MiniMax-M3's shape, from 1 K to 1 M tokens, beside dense attention."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch

from freehold.bench.floors import Floors, measure_floors
from freehold.bench.harness import Comparison, Samples, check_rounds, fastest, round_figures, time_calls
from freehold.bench.machine import this_machine
from freehold.bench.msa_layer import HEAD_DIM, INDEX_DIM, NUM_KV_HEADS, NUM_Q_HEADS, TOPK, MsaLayer, Reading
from freehold.bench.report import Report
from freehold.core.errors import ArgumentError
from freehold.kernels import using_threads

Say = Callable[[str], None]

_CHUNK = 512
_WHOLE = 32768
"""Longest prompt that is read whole: dense attention needs minutes beyond it."""
_LONG_CALL = 20.0
"""Seconds. A rival that takes longer is measured once, without warm-up; the row says so."""

_COLUMNS = (
    *("phase", "context", "ours ms", "dense ms", "ratio", "dense by", "our dense ms", "dense floor ms", "/ floor"),
    *("index B/key", "again", "% of limit", "same sets"),
)
_NOTES = (
    "shape: 64 query and 4 KV heads of 128, index 4 x 128 with one key, blocks of 128, top 16; all stored in bfloat16",
    "ours: select + attend. dense: the fastest of torch's ways on the same queries, in bfloat16 (bf16) and float32 "
    "(fp32). ratio: dense / ours",
    "dense floor: reading K and V once at the measured bandwidth (decode), or their products at the measured bfloat16 "
    "peak (prefill); / floor: that floor / ours",
    "index B/key: bytes read for the choice, per key and pass over the keys (a plain int8 scan reads 130); again: "
    "blocks of a query and head that the int8 bounds could not order",
    "% of limit: the work that ours cannot avoid - one pass over the int8 index and the chosen blocks (decode), or the "
    "index products in int8 at twice the bfloat16 peak and attention at the peak (prefill) - as part of its time",
    "same sets: rows compared with the float64 reference / rows that chose the same blocks",
)


@dataclass(frozen=True, slots=True)
class AttentionSettings:
    """contexts: tokens, multiples of 512. keys: "structured" or "random"."""

    contexts: tuple[int, ...]
    keys: str
    threads: int
    rounds: int
    quick: bool


@dataclass(frozen=True, slots=True)
class Row:
    """One phase at one context. Times in seconds."""

    phase: str
    context: int
    times: Comparison
    rival: str
    our_dense: float | None
    floor: float
    limit: float
    reading: Reading
    once: bool

    @property
    def speed_ratio(self) -> float:
        """dense / ours."""
        return self.times.theirs.median / self.times.ours.median

    def cells(self) -> list[str]:
        """For the table."""
        ours, stats = self.times.ours.median, self.reading.stats
        scanned = stats.scanned_blocks * 128
        return [
            self.phase,
            f"{self.context:,}",
            round_figures(ours * 1e3),
            round_figures(self.times.theirs.median * 1e3) + (" (once)" if self.once else ""),
            f"{self.speed_ratio:.1f}",
            self.rival,
            "-" if self.our_dense is None else round_figures(self.our_dense * 1e3),
            round_figures(self.floor * 1e3),
            f"{self.floor / ours:.1f}",
            "-" if not scanned else f"{stats.scanned_bytes / scanned + _again_bytes(self.reading) / scanned:.0f}",
            f"{stats.blocks_looked_at_again:,}",
            f"{100 * self.limit / ours:.0f}",
            f"{self.reading.rows_checked} / {self.reading.rows_equal}",
        ]

    def as_json(self) -> dict[str, Any]:
        """All figures."""
        return {
            "phase": self.phase,
            "context": self.context,
            "seconds": self.times.as_json(),
            "speed_ratio": self.speed_ratio,
            "rival": self.rival,
            "rival_measured_once": self.once,
            "our_dense_seconds": self.our_dense,
            "dense_floor_seconds": self.floor,
            "floor_ratio": self.floor / self.times.ours.median,
            "limit_seconds": self.limit,
            "selection": asdict(self.reading.stats),
            "rows_checked": self.reading.rows_checked,
            "rows_equal": self.reading.rows_equal,
        }


def _again_bytes(reading: Reading) -> int:
    """Bytes that the exact part read: a block's codes, and the keys scored in double precision."""
    stats = reading.stats
    return stats.blocks_looked_at_again * 128 * INDEX_DIM + stats.keys_scored_exactly * INDEX_DIM * 2


def check_contexts(contexts: tuple[int, ...]) -> None:
    """Raises ArgumentError for a context that the suite cannot place."""
    for context in contexts:
        if context % _CHUNK:
            raise ArgumentError(
                f"context {context} is no multiple of {_CHUNK}; for example {context // _CHUNK * _CHUNK or _CHUNK}"
            )


def run(settings: AttentionSettings, say: Say) -> Report:
    """Runs the suite. say: gets a line for each stage."""
    machine = this_machine()
    say("measuring what the machine allows")
    floors = measure_floors(settings.threads, quick=settings.quick)
    total = max(settings.contexts)
    say(f"filling one layer with {total:,} tokens ({settings.keys} index keys)")
    with using_threads(settings.threads), torch.no_grad():
        layer = MsaLayer(total, keys=settings.keys)
        rows = []
        for phase, count, longest in (
            ("decode", 1, total),
            (f"prefill {_CHUNK}", _CHUNK, total),
            ("prefill all", 0, _WHOLE),
        ):
            expected, before, likely = 0.0, 1, ""
            for context in sorted(c for c in settings.contexts if c <= longest):
                say(f"{phase} at {context:,}")
                expected *= (context / before) ** (1 if count else 2)
                row = _measure(layer, phase, context, count or context, floors, settings, expected, likely)
                expected, before, likely = row.times.theirs.median, context, row.rival
                rows.append(row)
    return Report(
        suite="attention",
        title=f"sparse attention of MiniMax-M3's shape, medians of {settings.rounds} rounds",
        head=(*machine.lines(), floors.line()),
        columns=_COLUMNS,
        rows=[row.cells() for row in rows],
        notes=(*_NOTES, *check_rounds(settings.rounds), *machine.warnings()),
        data={
            "machine": machine.as_json(),
            "floors": floors.as_json(),
            "settings": asdict(settings),
            "rows": [row.as_json() for row in rows],
        },
    )


def _measure(
    layer: MsaLayer,
    phase: str,
    context: int,
    rows: int,
    floors: Floors,
    settings: AttentionSettings,
    expected: float,
    likely: str,
) -> Row:
    """expected, likely: the fastest rival's seconds, going by a shorter context, and its name; 0 if there was none."""
    rounds, seconds = settings.rounds, 0.002 if settings.quick else 0.02
    whole = rows == context
    ours = layer.sparse_whole(context, _CHUNK) if whole else layer.sparse(context, rows)
    rivals = layer.torch_whole(context) if whole else layer.torch_dense(context, rows)
    once = expected > _LONG_CALL
    our_dense = None
    if once:
        rival = likely
        mine = time_calls({"ours": ours}, rounds=rounds, min_seconds=seconds)["ours"]
        start = time.perf_counter()
        rivals[rival]()
        times = Comparison(mine, Samples((time.perf_counter() - start,) * len(mine.values)))
    else:
        rival = fastest(rivals)
        sides: dict[str, Callable[[], object]] = {"ours": ours, "theirs": rivals[rival]}
        if not whole and expected < _LONG_CALL / 10:
            sides["dense"] = layer.dense(context, rows)
        measured = time_calls(sides, rounds=rounds, min_seconds=seconds)
        times = Comparison(measured["ours"], measured["theirs"])
        our_dense = measured["dense"].median if "dense" in measured else None
    pairs = rows * context - rows * (rows - 1) / 2
    dense_flops = 4.0 * NUM_Q_HEADS * HEAD_DIM * pairs
    kv_bytes = 2.0 * NUM_KV_HEADS * HEAD_DIM * 2 * context
    chosen = min(context, TOPK * 128)
    index_bytes = float(INDEX_DIM + 4) * context if context > TOPK * 128 else 0.0
    index_flops = 2.0 * NUM_KV_HEADS * INDEX_DIM * pairs if context > TOPK * 128 else 0.0
    attend_flops = 4.0 * NUM_Q_HEADS * HEAD_DIM * rows * chosen
    bf16 = torch.bfloat16
    return Row(
        phase=phase,
        context=context,
        times=times,
        rival=rival,
        our_dense=our_dense,
        floor=floors.seconds(dense_flops, kv_bytes, bf16),
        limit=floors.seconds(attend_flops + index_flops / 2, index_bytes + kv_bytes * chosen / context, bf16),
        reading=layer.read(context, min(rows, _CHUNK), check_rows=2 if rows > 1 else 1),
        once=once,
    )
