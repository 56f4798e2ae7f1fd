"""Gated feed-forward networks: one for all rows, or a mixture where every row has its own few."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from freehold.core.errors import ArgumentError
from freehold.kernels.library import check, native, threads
from freehold.kernels.weights import PackedWeight


@dataclass(frozen=True, slots=True)
class Gate:
    """How gate and up projections meet.

    clamped=False: silu(gate) * up. clamped=True, M3's: (clamp(up, -limit, limit) + 1) * g * sigmoid(alpha * g) with
    g = min(gate, limit).
    """

    clamped: bool = False
    alpha: float = 1.0
    limit: float = 0.0


class Experts:
    """Networks down(gate(gate x, up x)), all with the same in_features and out_features."""

    def __init__(self, networks: Sequence[tuple[PackedWeight, PackedWeight, PackedWeight]]) -> None:
        """networks: (gate, up, down) of each."""
        self.networks = tuple(networks)
        self.handle: Any = native().ExpertSet(len(self.networks))
        self.features = self.networks[0][0].in_features if self.networks else 0
        for number, (gate, up, down) in enumerate(self.networks):
            shapes = [(w.out_features, w.in_features) for w in (gate, up, down)]
            width = gate.out_features
            if shapes != [(width, self.features), (width, self.features), (self.features, width)]:
                raise ArgumentError(f"network {number} has gate, up and down of {shapes}, which do not fit together")
            self.handle.set(number, gate.handle, up.handle, down.handle)


def experts(
    x: torch.Tensor,
    ids: torch.Tensor,
    weights: torch.Tensor,
    routed: Experts,
    shared: Experts,
    *,
    gate: Gate,
    scale: float,
) -> torch.Tensor:
    """scale * sum of weights * routed[ids](x) + shared(x): x (rows, features) float32 -> the same.

    ids (rows, topk) int32, ascending; weights (rows, topk) float32; shared: one network, or none. A row's result does
    not depend on the other rows.
    """
    rows, topk = x.shape[0], ids.shape[1]
    choice = check("ids", ids, torch.int32, rows, None), check("weights", weights, torch.float32, rows, topk), topk
    try:
        return _run(x, *choice, routed, shared, gate, scale)
    except ArgumentError:
        raise
    except ValueError as error:  # the kernel's own, which knows no names
        low, high, count = int(ids.min()), int(ids.max()), len(routed.networks)
        raise ArgumentError(f"{error}: ids go from {low} to {high}, there are {count} experts") from error


def gated_mlp(x: torch.Tensor, network: Experts, gate: Gate) -> torch.Tensor:
    """One network for all rows: x (rows, features) float32 -> the same."""
    return _run(x, 0, 0, 0, _no_experts(), network, gate, 1.0)


@functools.cache
def _no_experts() -> Experts:
    return Experts(())


def _run(
    x: torch.Tensor,
    ids: int,
    weights: int,
    topk: int,
    routed: Experts,
    shared: Experts,
    gate: Gate,
    scale: float,
) -> torch.Tensor:
    if len(shared.networks) > 1:
        raise ArgumentError(f"there are {len(shared.networks)} shared networks; there can be one, or none")
    features = shared.features or routed.features
    y = torch.empty_like(x)
    native().experts(
        check("x", x, torch.float32, None, features), x.shape[0], features, ids, weights, topk, routed.handle,
        shared.handle, scale, int(gate.clamped), gate.alpha, gate.limit, y.data_ptr(), threads(),
    )  # fmt: skip
    return y
