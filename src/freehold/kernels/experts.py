"""Gated feed-forward networks: one for all rows, or a mixture where every row has its own few."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from freehold.core.errors import ArgumentError
from freehold.kernels.library import check, native, threads
from freehold.kernels.weights import PackedWeight

Network = tuple[PackedWeight, PackedWeight, PackedWeight]
"""Gate, up and down."""


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

    def __init__(self, networks: Sequence[Network]) -> None:
        """networks: (gate, up, down) of each."""
        self.count = len(networks)
        self.handle: Any = native().ExpertSet(self.count)
        self.features = networks[0][0].in_features if networks else 0
        self._networks: list[Network | None] = [None] * self.count
        for number, network in enumerate(networks):
            self.set(number, network)

    @staticmethod
    def vacant(count: int, features: int) -> Experts:
        """Places for networks that come and go."""
        experts = Experts(())
        experts.count, experts.features = count, features
        experts.handle = native().ExpertSet(count)
        experts._networks = [None] * count
        return experts

    def set(self, number: int, network: Network) -> None:
        """Puts a network into its place, which keeps it alive. Raises ArgumentError if it does not fit."""
        gate, up, down = network
        shapes = [(w.out_features, w.in_features) for w in network]
        width = gate.out_features
        if shapes != [(width, self.features), (width, self.features), (self.features, width)]:
            raise ArgumentError(f"network {number} has gate, up and down of {shapes}, which do not fit together")
        self.handle.set(number, gate.handle, up.handle, down.handle)
        self._networks[number] = network


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
    y = torch.empty_like(x)
    _routed(x, ids, weights, routed, shared, gate, scale, y, _WHOLE)
    return y


def experts_in_waves(
    x: torch.Tensor,
    ids: torch.Tensor,
    weights: torch.Tensor,
    waves: Iterable[Sequence[int]],
    routed: Experts,
    shared: Experts,
    *,
    gate: Gate,
    scale: float,
) -> torch.Tensor:
    """`experts`, with the same bits, where not all experts are there at once.

    waves: which experts are in their places until the next ones are asked for; together all that `ids` names, each
    once.
    """
    y = torch.empty_like(x)
    results = torch.empty(x.shape[0], ids.shape[1] + shared.count, x.shape[1])
    first = True
    for wave in waves:
        wanted = torch.zeros(routed.count, dtype=torch.uint8)
        wanted[list(wave)] = 1
        _routed(x, ids, weights, routed, shared, gate, scale, y, Part(wanted, results, first=first, last=False))
        first = False
    nobody = torch.zeros(routed.count, dtype=torch.uint8)
    _routed(x, ids, weights, routed, shared, gate, scale, y, Part(nobody, results, first=first, last=True))
    return y


class Part(NamedTuple):
    """One of several calls; see `ExpertsArgs` in kernels.h."""

    wanted: torch.Tensor | None = None
    results: torch.Tensor | None = None
    first: bool = True
    last: bool = True


_WHOLE = Part()


def _routed(
    x: torch.Tensor,
    ids: torch.Tensor,
    weights: torch.Tensor,
    routed: Experts,
    shared: Experts,
    gate: Gate,
    scale: float,
    y: torch.Tensor,
    part: Part,
) -> None:
    rows, topk = x.shape[0], ids.shape[1]
    choice = check("ids", ids, torch.int32, rows, None), check("weights", weights, torch.float32, rows, topk), topk
    try:
        _run(x, *choice, routed, shared, gate, scale, y, part)
    except ArgumentError:
        raise
    except ValueError as error:  # the kernel's own, which knows no names
        low, high = int(ids.min()), int(ids.max())
        raise ArgumentError(f"{error}: ids go from {low} to {high}, there are {routed.count} experts") from error


def gated_mlp(x: torch.Tensor, network: Experts, gate: Gate) -> torch.Tensor:
    """One network for all rows: x (rows, features) float32 -> the same."""
    y = torch.empty_like(x)
    _run(x, 0, 0, 0, _no_experts(), network, gate, 1.0, y, _WHOLE)
    return y


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
    y: torch.Tensor,
    part: Part,
) -> None:
    if shared.count > 1:
        raise ArgumentError(f"there are {shared.count} shared networks; there can be one, or none")
    features = shared.features or routed.features
    native().experts(
        check("x", x, torch.float32, None, features), x.shape[0], features, ids, weights, topk, routed.handle,
        shared.handle, scale, int(gate.clamped), gate.alpha, gate.limit, y.data_ptr(), threads(),
        0 if part.wanted is None else part.wanted.data_ptr(), 0 if part.results is None else part.results.data_ptr(),
        part.first, part.last,
    )  # fmt: skip
