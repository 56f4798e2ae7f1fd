"""One measurement of the kernel suite: our kernel, torch's ways to the same values, and the work that both do."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from freehold.core.errors import FreeholdError

COLD_NBYTES = 256 * 2**20
"""Operands that decoding reads from memory are taken in turn from this many bytes of copies, so that no cache
holds the next one."""


@dataclass(frozen=True)
class Case:
    """name, shape, dtype: for the table. flops, nbytes: operations, and bytes that must come from memory, of one call.

    peak: the type whose matrix peak is the limit. tolerance: most that a rival's values may differ from ours, as a
    part of our largest one; for integers, the part of them that may differ.
    """

    name: str
    shape: str
    dtype: str
    flops: float
    nbytes: float
    ours: Callable[[], Tensor]
    rivals: Mapping[str, Callable[[], Tensor]]
    peak: torch.dtype = torch.float32
    tolerance: float = 1e-4

    def check(self) -> None:
        """Raises FreeholdError if a rival computes something else: its time would then say nothing."""
        ours = self.ours()
        for name, rival in self.rivals.items():
            theirs = rival()
            if ours.shape != theirs.shape:
                raise FreeholdError(f"{self.name}: {name} gives shape {tuple(theirs.shape)}, we {tuple(ours.shape)}")
            if ours.dtype == torch.int32:
                error = float((ours != theirs).float().mean())
            else:
                error = float((ours - theirs.float()).abs().max() / ours.abs().max())
            if not error <= self.tolerance:
                raise FreeholdError(f"{self.name}, {self.shape}: {name} differs from ours by {error:.1e}")


class Turns:
    """Numbers 0 .. count - 1, over and over: which copy of an operand the next call uses."""

    def __init__(self, count: int) -> None:
        self.count, self._next = count, 0

    def __call__(self) -> int:
        """The next number."""
        number = self._next
        self._next = (number + 1) % self.count
        return number


def copies_for(nbytes: int, cold_nbytes: int) -> int:
    """How many copies of an operand fill `cold_nbytes`; at least one."""
    return max(1, -(-cold_nbytes // nbytes))
