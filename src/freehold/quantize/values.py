"""The bytes of a new checkpoint's tensors, in pieces that fit into memory."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from freehold.core.errors import LoadError
from freehold.kernels import encode
from freehold.loading.checkpoint import Checkpoint
from freehold.quantize.recipe import Item

_PIECE_ELEMENTS = 2**22
"""Elements that are held at a time, in about 30 bytes each; M3's widest matrix has 1.2e9."""


@dataclass(slots=True)
class Error:
    """How far codes are from the values: the squared error, and the squared values."""

    squared: float = 0.0
    energy: float = 0.0

    @property
    def relative(self) -> float:
        """The root of their ratio; 0 of a tensor of zeros."""
        return math.sqrt(self.squared / self.energy) if self.energy else 0.0


def pieces(checkpoint: Checkpoint, item: Item, error: Error) -> Iterator[torch.Tensor]:
    """The item's bytes in order, as uint8 tensors; what its codes are off by is added to `error`.

    Raises LoadError for a matrix with values that are not finite: no scale fits them.
    """
    for rows in _float_rows(checkpoint, item):
        if not item.is_encoded:
            yield rows.contiguous().view(torch.uint8).reshape(-1)
            continue
        values = rows.float().contiguous()
        if not torch.isfinite(values).all():
            raise LoadError(
                f"{checkpoint.path}: tensor {item.name!r} has values that are not finite; it cannot be quantised"
            )
        codes, squared = encode(values, item.kind)
        error.squared += squared
        error.energy += float(values.double().square().sum())
        yield codes.view(-1)


def _float_rows(checkpoint: Checkpoint, item: Item) -> Iterator[torch.Tensor]:
    """(rows, columns) of the tensor's values, at most `_PIECE_ELEMENTS` at a time, or a row."""
    if item.nbytes == 0:
        return
    columns = item.shape[-1] if item.shape else 1
    step = max(1, _PIECE_ELEMENTS // columns)
    stored = checkpoint.quantized(item.name)
    if stored is None:
        yield from torch.split(checkpoint.tensor(item.name).view(-1, columns), step)
        return
    dtype, num_rows = stored.lossless_dtype, math.prod(item.shape[:-1])
    for first in range(0, num_rows, step):
        yield stored.rows(first, min(first + step, num_rows), dtype)
