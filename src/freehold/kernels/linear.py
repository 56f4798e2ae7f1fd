"""Matrix products whose result for a row does not depend on the other rows."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from freehold.core.errors import ArgumentError
from freehold.kernels.library import check, native, threads
from freehold.kernels.weights import PackedWeight


def linear(x: torch.Tensor, weight: PackedWeight) -> torch.Tensor:
    """x (rows, in_features) float32 -> (rows, out_features) float32 = x @ weight.T + bias.

    Each output is one chain of fused multiply-adds over ascending input index: the same bits for a row alone,
    in any batch, with any number of threads.
    """
    return linears(x, (weight,))[0]


def linears(x: torch.Tensor, weights: Sequence[PackedWeight]) -> list[torch.Tensor]:
    """`linear` with several weights of the same in_features, at once."""
    rows, in_features = x.shape[0], weights[0].in_features
    for weight in weights:
        if weight.in_features != in_features:
            raise ArgumentError(f"weights take {in_features} and {weight.in_features} inputs; they must agree")
    y = [torch.empty(rows, weight.out_features) for weight in weights]
    address = check("x", x, torch.float32, None, in_features)
    native().linear(address, rows, [w.handle for w in weights], [t.data_ptr() for t in y], threads())
    return y
