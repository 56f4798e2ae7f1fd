"""What the machine itself allows: bytes read from memory and multiplications a second, measured in the same run."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch

from freehold import kernels
from freehold.core.errors import ArgumentError
from freehold.core.memory import large_empty

READ_NBYTES = 512 * 2**20
"""Bytes of the array that is read; far more than the caches of common machines hold."""

MATRIX_SIZE = 2048
_TRIES = 7
_MOST_SECONDS = 5.0
"""A candidate gets no further try after so long: what is that slow is no limit."""
_WIDTH = 4096  # features of the one-row product; its weight is the whole array
_ROW_NBYTES = _WIDTH * 4


@dataclass(frozen=True, slots=True)
class Floor:
    """A limit: units a second, and what reached it. The largest of several tries, as nothing exceeds a limit."""

    per_second: float
    reached_by: str


@dataclass(frozen=True, slots=True)
class Floors:
    """Limits with `threads` threads.

    read: bytes a second from memory. float32, bfloat16: floating-point operations a second of a square product of
    such values, in whichever arithmetic is faster; a multiplication and an addition are two.
    """

    threads: int
    read: Floor
    float32: Floor
    bfloat16: Floor

    def seconds(self, flops: float, nbytes: float, dtype: torch.dtype = torch.float32) -> float:
        """The least time for so many operations on values of `dtype` and so many bytes read from memory."""
        peak = self.bfloat16 if dtype == torch.bfloat16 else self.float32
        return max(flops / peak.per_second, nbytes / self.read.per_second)

    def at_least(self, fewer: Floors) -> Floors:
        """These limits, raised to those reached with fewer threads: more threads can do what fewer did."""
        return Floors(
            self.threads,
            read=max(self.read, fewer.read, key=_rate),
            float32=max(self.float32, fewer.float32, key=_rate),
            bfloat16=max(self.bfloat16, fewer.bfloat16, key=_rate),
        )

    def as_json(self) -> dict[str, Any]:
        """The fields by name."""
        return asdict(self)

    def line(self) -> str:
        """The limits for the head of a table."""
        read, single, half = self.read, self.float32, self.bfloat16
        return (
            f"limits, {_threads(self.threads)}: reads {read.per_second / 1e9:.1f} GB/s ({read.reached_by}), "
            f"float32 {single.per_second / 1e9:.0f} GFLOP/s ({single.reached_by}), "
            f"bfloat16 {half.per_second / 1e9:.0f} GFLOP/s ({half.reached_by})"
        )


def measure_floors(
    threads: int,
    *,
    quick: bool = False,
    clock: Callable[[], float] = time.perf_counter,
) -> Floors:
    """Measures the limits with so many threads; takes a few seconds, and twice READ_NBYTES of memory for a moment.

    quick: reads a quarter of that and multiplies smaller matrices, which caches may flatter and overheads harm.
    Raises ArgumentError for threads < 1.
    """
    read = measure_read(threads, quick=quick, clock=clock)
    matrix_size = MATRIX_SIZE // (4 if quick else 1)
    products = 2 * matrix_size**3
    with kernels.using_threads(threads):
        single = _limit(_products(matrix_size, torch.float32), products, clock)
        half = _limit(_products(matrix_size, torch.bfloat16), products, clock)
        return Floors(
            threads=threads,
            read=read,
            float32=single,
            # Where there are no instructions for bfloat16, its values are best multiplied as float32.
            bfloat16=max(half, single, key=_rate),
        )


def measure_read(threads: int, *, quick: bool = False, clock: Callable[[], float] = time.perf_counter) -> Floor:
    """The first of the limits alone: bytes a second from memory. quick and errors as above."""
    if threads < 1:
        raise ArgumentError(f"threads is {threads}; it must be at least 1")
    rows = READ_NBYTES // _ROW_NBYTES // (4 if quick else 1)
    with kernels.using_threads(threads):
        return _limit(_readers(rows), rows * _ROW_NBYTES, clock)


def _readers(rows: int) -> Iterator[tuple[str, Callable[[], object]]]:
    """Each reads `rows` rows of float32 once. What a reader needs is freed when the next is asked for."""
    array = large_empty(rows, _WIDTH).fill_(1.0)
    yield "torch.sum", array.sum
    weight = kernels.pack_weight(array)
    del array
    x = torch.ones(1, _WIDTH)
    yield "our one-row product", lambda: kernels.linear(x, weight)


def _is_hopeless(dtype: torch.dtype) -> bool:
    """Whether torch multiplies `dtype` so slowly, for want of instructions, that a try would take a minute in vain."""
    seconds = []
    for kind in (torch.float32, dtype):
        a = torch.ones(256, 256, dtype=kind)
        torch.mm(a, a)
        start = time.perf_counter()
        torch.mm(a, a)
        seconds.append(time.perf_counter() - start)
    return seconds[1] > 16 * seconds[0]


def _products(size: int, dtype: torch.dtype) -> Iterator[tuple[str, Callable[[], object]]]:
    if dtype != torch.float32 and _is_hopeless(dtype):
        return
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(size, size, generator=generator).to(dtype) for _ in range(2))
    yield "torch.mm", lambda: torch.mm(a, b)
    if dtype == torch.float32:
        weight = kernels.pack_weight(b)
        yield "our product", lambda: kernels.linear(a, weight)


def _limit(candidates: Iterator[tuple[str, Callable[[], object]]], amount: float, clock: Callable[[], float]) -> Floor:
    best = Floor(0.0, "nothing")
    for name, run in candidates:
        end = time.monotonic() + _MOST_SECONDS
        run()  # to warm up
        for _ in range(_TRIES):
            if time.monotonic() > end:
                break
            start = clock()
            run()
            rate = amount / max(clock() - start, 1e-9)
            if rate > best.per_second:
                best = Floor(rate, name)
    return best


def _rate(floor: Floor) -> float:
    return floor.per_second


def _threads(count: int) -> str:
    return "1 thread" if count == 1 else f"{count} threads"
