"""`freehold bench kernels`: each native kernel beside torch's operator and beside what the machine allows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch

from freehold.bench.case import COLD_NBYTES, Case
from freehold.bench.cases_attention import attention_cases
from freehold.bench.cases_dense import dense_cases
from freehold.bench.floors import Floors, measure_floors
from freehold.bench.harness import Comparison, check_rounds, fastest, round_figures, time_calls
from freehold.bench.machine import this_machine
from freehold.bench.report import Report
from freehold.kernels import using_threads

Say = Callable[[str], None]

_ROWS = 512
_COLUMNS = (
    *("kernel", "shape", "type", "threads", "our ms"),
    *("ours", "torch", "ratio", "limit", "% of limit", "torch's way"),
)
_NOTES = (
    "ours, torch and limit in one unit; ratio: our speed / torch's, medians of alternating rounds; torch's way is "
    "the fastest of those that give the same values",
    "limit: the measured matrix peak of the type, or the measured read bandwidth where that is what bounds the call",
    "what is given in GB/s takes its operands in turn from many copies, so that they come from memory; "
    "other operands may stay in caches",
    "bfloat16: our products with packed weights widen them and compute in float32; our attention rounds queries and "
    "probabilities to bfloat16, as torch does",
)


@dataclass(frozen=True, slots=True)
class KernelSettings:
    """threads: the counts to measure with. quick: few and small cases."""

    threads: tuple[int, ...]
    rounds: int
    quick: bool


@dataclass(frozen=True, slots=True)
class Row:
    """One case with one thread count. seconds: of a call, on both sides. limit_seconds: the least that the machine
    allows; by_memory: reading, and not computing, sets that limit."""

    case: Case
    threads: int
    rival: str
    seconds: Comparison
    limit_seconds: float
    by_memory: bool

    def rate(self, seconds: float) -> float:
        """GB/s where reading is the limit, GFLOP/s elsewhere."""
        return (self.case.nbytes if self.by_memory else self.case.flops) / seconds / 1e9

    @property
    def unit(self) -> str:
        """The unit of `rate`."""
        return "GB/s" if self.by_memory else "GFLOP/s"

    @property
    def speed_ratio(self) -> float:
        """Our speed / torch's: above 1 where we are faster."""
        return 1.0 / self.seconds.ratio

    def cells(self) -> list[str]:
        """For the table."""
        ours, theirs = self.seconds.ours.median, self.seconds.theirs.median
        return [
            self.case.name,
            self.case.shape,
            self.case.dtype,
            str(self.threads),
            round_figures(ours * 1e3),
            f"{round_figures(self.rate(ours))} {self.unit}",
            round_figures(self.rate(theirs)),
            f"{self.speed_ratio:.2f}",
            round_figures(self.rate(self.limit_seconds)),
            f"{100 * self.limit_seconds / ours:.0f}",
            self.rival,
        ]

    def as_json(self) -> dict[str, Any]:
        """Names, seconds of both sides, and the rates of their medians."""
        case = self.case
        return {
            "kernel": case.name,
            "shape": case.shape,
            "dtype": case.dtype,
            "threads": self.threads,
            "rival": self.rival,
            "flops": case.flops,
            "bytes": case.nbytes,
            "seconds": self.seconds.as_json(),
            "limit_seconds": self.limit_seconds,
            "unit": self.unit,
            "ours": self.rate(self.seconds.ours.median),
            "theirs": self.rate(self.seconds.theirs.median),
            "limit": self.rate(self.limit_seconds),
            "speed_ratio": self.speed_ratio,
        }


def run(settings: KernelSettings, say: Say) -> Report:
    """Runs the suite. say: gets a line for each stage. Raises FreeholdError if torch's values differ from ours."""
    machine = this_machine()
    say("measuring what the machine allows")
    floors: dict[int, Floors] = {}
    for threads in sorted(settings.threads):
        measured = measure_floors(threads, quick=settings.quick)
        floors[threads] = measured.at_least(list(floors.values())[-1]) if floors else measured
    rows = []
    for case in _cases(settings.quick):
        say(f"{case.name}, {case.shape}, {case.dtype}")
        case.check()
        rows += [_measure(case, floors[threads], settings) for threads in settings.threads]
    return Report(
        suite="kernels",
        title=f"native kernels and torch, medians of {settings.rounds} rounds",
        head=(*machine.lines(), *(floor.line() for floor in floors.values())),
        columns=_COLUMNS,
        rows=[row.cells() for row in rows],
        notes=(*_NOTES, *check_rounds(settings.rounds), *machine.warnings()),
        data={
            "machine": machine.as_json(),
            "floors": [floor.as_json() for floor in floors.values()],
            "settings": asdict(settings),
            "rows": [row.as_json() for row in rows],
        },
    )


def _cases(quick: bool) -> Iterator[Case]:
    cold = COLD_NBYTES // 16 if quick else COLD_NBYTES
    yield from dense_cases(rows=_ROWS // 8 if quick else _ROWS, cold_nbytes=cold, quick=quick)
    yield from attention_cases(cold_nbytes=cold, quick=quick)


def _measure(case: Case, floors: Floors, settings: KernelSettings) -> Row:
    with using_threads(floors.threads), torch.no_grad():
        rival = fastest(case.rivals)
        sides = {"ours": case.ours, "theirs": case.rivals[rival]}
        times = time_calls(sides, rounds=settings.rounds, min_seconds=0.002 if settings.quick else 0.02)
    computing = floors.seconds(case.flops, 0.0, case.peak)
    limit = floors.seconds(case.flops, case.nbytes, case.peak)
    return Row(
        case=case,
        threads=floors.threads,
        rival=rival,
        seconds=Comparison(times["ours"], times["theirs"]),
        limit_seconds=limit,
        by_memory=limit > computing,
    )
