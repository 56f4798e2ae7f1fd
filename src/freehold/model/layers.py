"""The layers that several models share. Each holds its weights in the form its compute wants."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from freehold.core.coded import CodedWeight
from freehold.kernels import Gate, PackedWeight
from freehold.model.compute import Compute, Network


class Linear(nn.Module):
    """y = x W^T + b. `load` receives the weight; until then the layer has none."""

    weight: Tensor | PackedWeight

    def __init__(self, compute: Compute) -> None:
        super().__init__()
        self.compute = compute
        self.bias: Tensor | None = None

    def load(self, weight: Tensor | CodedWeight) -> None:
        """Takes W (out_features, in_features), which may be a memory map."""
        prepared = self.compute.prepare(weight)
        self.weight = nn.Parameter(prepared, requires_grad=False) if isinstance(prepared, Tensor) else prepared

    def load_bias(self, bias: Tensor) -> None:
        """Takes b (out_features,), after the weight."""
        if isinstance(self.weight, PackedWeight):
            self.weight = self.weight.with_bias(bias)
        else:
            self.bias = nn.Parameter(bias.float().clone(), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """x (rows, in_features) -> (rows, out_features)."""
        y = self.compute.linear(x, self.weight)
        return y if self.bias is None else y + self.bias


class GatedMLP(nn.Module):
    """down(gate(gate x, up x)): the feed-forward part of a layer."""

    def __init__(self, compute: Compute, gate: Gate) -> None:
        super().__init__()
        self.compute, self.gate = compute, gate
        self.gate_proj, self.up_proj, self.down_proj = (Linear(compute) for _ in range(3))
        self._network: Any = None

    @property
    def parts(self) -> Network:
        """Gate, up and down."""
        return self.gate_proj, self.up_proj, self.down_proj

    def forward(self, x: Tensor) -> Tensor:
        """x (rows, hidden_size) -> the same."""
        if self._network is None:  # the weights are there by now
            self._network = self.compute.networks([self.parts])
        return self.compute.gated_mlp(x, self._network, self.gate)


class Embedding(Linear):
    """Token embeddings; the same weight may serve as the output head."""

    def lookup(self, ids: Tensor) -> Tensor:
        """ids (rows,) int64 -> (rows, hidden_size)."""
        return self.compute.lookup(ids, self.weight)


class RMSNorm(nn.Module):
    """x * rsqrt(mean(x^2) + eps) * weight over the last axis. Gemma's 1 + w is added on loading."""

    weight: Tensor

    def __init__(self, compute: Compute, eps: float) -> None:
        super().__init__()
        self.compute = compute
        self.eps = eps

    def load(self, weight: Tensor) -> None:
        """Takes the factor that is multiplied with, (dim,)."""
        self.weight = nn.Parameter(weight.float().clone(), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """x (..., dim) -> the same shape."""
        return self.compute.rms_norm(x, self.weight, self.eps)
