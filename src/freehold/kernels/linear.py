"""Matrix products whose result for a row does not depend on the other rows."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from freehold.core.axes import ceil_div
from freehold.core.errors import ArgumentError
from freehold.core.memory import large_empty
from freehold.kernels.library import STORAGE, check, native, threads

PANEL = 64


@dataclass(frozen=True, slots=True)
class PackedWeight:
    """A weight laid out for `linear`: panels (ceil(out_features / 64), in_features, 64), float32 or bfloat16."""

    panels: torch.Tensor
    in_features: int
    out_features: int


def pack_weight(weight: torch.Tensor) -> PackedWeight:
    """Packs a (out_features, in_features) float32, bfloat16 or float16 weight; float16 becomes float32.

    The values stay the same to the bit. The source is only read, so it may be a memory map.
    """
    if weight.ndim != 2 or 0 in weight.shape:
        raise ArgumentError(f"weight has shape {tuple(weight.shape)}; it must be (out_features, in_features)")
    if weight.dtype == torch.float16:
        weight = weight.float()
    if weight.dtype not in STORAGE:
        raise ArgumentError(f"weight has type {weight.dtype}; it must be float32, bfloat16 or float16")
    weight = weight.contiguous()
    out_features, in_features = weight.shape
    panels = large_empty(ceil_div(out_features, PANEL), in_features, PANEL, dtype=weight.dtype)
    storage = STORAGE[weight.dtype]
    native().pack_weight(weight.data_ptr(), storage, out_features, in_features, panels.data_ptr(), storage)
    return PackedWeight(panels, in_features, out_features)


def linear(x: torch.Tensor, weight: PackedWeight) -> torch.Tensor:
    """x (rows, in_features) float32 -> (rows, out_features) float32 = x @ weight.T.

    Each output is one chain of fused multiply-adds over ascending input index: the same bits for a row alone,
    in any batch, with any number of threads.
    """
    rows = x.shape[0]
    y = torch.empty(rows, weight.out_features)
    native().linear(
        check("x", x, torch.float32, None, weight.in_features),
        rows,
        weight.in_features,
        weight.panels.data_ptr(),
        STORAGE[weight.panels.dtype],
        weight.out_features,
        y.data_ptr(),
        threads(),
    )
    return y
