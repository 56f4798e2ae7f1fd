"""A weight of small codes with scales, as kernels compute with it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True, eq=False)
class CodedWeight:
    """weight[o, i] = scales[o, i // group] * value + offsets[o, i // group], with group = in_features / groups.

    codes: (out_features, in_features); with bits 8 int8, whose values they are; with bits 4 uint8 below 16, for which
    `table` has 16 values. scales, offsets: (out_features, groups) float32; without offsets they are zero. Where there
    are offsets, scale * value is exact in float32, so that one rounding is all there is.
    """

    bits: int
    codes: torch.Tensor
    scales: torch.Tensor
    offsets: torch.Tensor | None = None
    table: tuple[float, ...] = ()

    @property
    def shape(self) -> tuple[int, int]:
        """(out_features, in_features)."""
        return self.codes.shape[0], self.codes.shape[1]

    @property
    def group(self) -> int:
        """Inputs that share a scale."""
        return int(self.codes.shape[1] // self.scales.shape[1])

    def map_rows(self, change: Callable[[torch.Tensor], torch.Tensor]) -> CodedWeight:
        """With rows in another order, or fewer of them: `change` is applied to every tensor."""
        offsets = None if self.offsets is None else change(self.offsets)
        return CodedWeight(self.bits, change(self.codes), change(self.scales), offsets, self.table)

    def floats(self) -> torch.Tensor:
        """The weight as float32."""
        values = self.codes.float() if self.bits == 8 else torch.tensor(self.table)[self.codes.long()]
        values *= self.scales.repeat_interleave(self.group, 1)
        if self.offsets is not None:
            values += self.offsets.repeat_interleave(self.group, 1)
        return values
