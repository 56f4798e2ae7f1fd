"""Encoding weights into GGML's blocks."""

from __future__ import annotations

import torch

from freehold.core.errors import ArgumentError
from freehold.kernels.library import check, native, threads

BLOCK = 32
"""Elements of a block, which share a scale."""

_KINDS = {"Q8_0": (0, 34), "Q4_1": (1, 20)}


def encode(x: torch.Tensor, kind: str) -> tuple[torch.Tensor, float]:
    """x (rows, in_features) float32 as blocks of `kind`, uint8 (rows, bytes of a row), and the squared error in all.

    Q8_0: codes of 8 bits, the largest element gets 127. Q4_1: codes of 4 bits with a scale and an offset; of 21 lines
    from the least element to about the largest the one with the least squared error, moved to where its codes fit
    best. The same bytes on every
    processor. Raises ArgumentError for another kind, or for in_features that is no multiple of 32.
    """
    if kind not in _KINDS:
        raise ArgumentError(f"kind is {kind!r}; it must be one of {', '.join(_KINDS)}")
    if x.ndim != 2 or x.shape[1] % BLOCK or not x.shape[1]:
        raise ArgumentError(f"x has shape {tuple(x.shape)}; its rows must have a multiple of {BLOCK} elements")
    number, nbytes = _KINDS[kind]
    rows, in_features = x.shape
    to = torch.empty(rows, in_features // BLOCK * nbytes, dtype=torch.uint8)
    errors = torch.empty(rows, dtype=torch.float64)
    address = check("x", x, torch.float32, rows, in_features)
    native().encode(address, rows, in_features, number, to.data_ptr(), errors.data_ptr(), threads())
    return to, float(errors.sum())
