"""The layers that several models share. Each holds its weights in the form its compute wants."""

from __future__ import annotations

from torch import Tensor, nn

from freehold.kernels import PackedWeight
from freehold.model.compute import Compute


class Linear(nn.Module):
    """y = x W^T + b. `load` receives the weight; until then the layer has none."""

    weight: Tensor | PackedWeight

    def __init__(self, compute: Compute) -> None:
        super().__init__()
        self.compute = compute
        self.bias: Tensor | None = None

    def load(self, weight: Tensor) -> None:
        """Takes W (out_features, in_features), which may be a memory map."""
        prepared = self.compute.prepare(weight)
        self.weight = nn.Parameter(prepared, requires_grad=False) if isinstance(prepared, Tensor) else prepared

    def load_bias(self, bias: Tensor) -> None:
        """Takes b (out_features,)."""
        self.bias = nn.Parameter(bias.float().clone(), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """x (rows, in_features) -> (rows, out_features)."""
        y = self.compute.linear(x, self.weight)
        return y if self.bias is None else y + self.bias


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
