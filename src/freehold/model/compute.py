"""How a model computes: the native kernels, or plain torch.

Layers are written once and call these methods. Native results for a row never depend on other rows; the
reference is differentiable and as readable as torch allows, but torch's products do depend on the batch.
"""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from freehold import kernels
from freehold.attention.blocks import BlockAttention, NativeBlockAttention, ReferenceBlockAttention
from freehold.kernels import PackedWeight


class Compute(Protocol):
    """Everything a layer asks for. x is always float32 with the token axis first."""

    name: str
    attention: BlockAttention

    def prepare(self, weight: Tensor) -> Tensor | PackedWeight:
        """A (out_features, in_features) weight in the form that `linear` takes; `weight` may be a memory map."""

    def linear(self, x: Tensor, weight: Tensor | PackedWeight) -> Tensor:
        """x (rows, in_features) -> (rows, out_features)."""

    def lookup(self, ids: Tensor, weight: Tensor | PackedWeight) -> Tensor:
        """Rows of an embedding: ids (rows,) -> (rows, width)."""

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """x (..., dim) normalised over the last axis, times weight (dim,)."""

    def rope_table(self, positions: Tensor, inv_freq: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        """cos, sin (rows, half)."""

    def rope(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """x (rows, heads, head_dim) with its first 2 * half channels turned; x may be overwritten."""

    def silu_mul(self, gate: Tensor, up: Tensor) -> Tensor:
        """silu(gate) * up."""

    def swiglu_clamped(self, gate: Tensor, up: Tensor, alpha: float, limit: float) -> Tensor:
        """M3's clamped gate."""

    def route_sigmoid(self, logits: Tensor, bias: Tensor, topk: int) -> tuple[Tensor, Tensor]:
        """ids (rows, topk) ascending, weights (rows, topk) with sum 1."""


class NativeCompute:
    """The C++ kernels. No gradients."""

    name = "native"

    def __init__(self) -> None:
        self.attention: BlockAttention = NativeBlockAttention()

    def prepare(self, weight: Tensor) -> Tensor | PackedWeight:
        """Packs the weight into panels; the copy is the only one that stays in memory."""
        return kernels.pack_weight(weight.detach())

    def linear(self, x: Tensor, weight: Tensor | PackedWeight) -> Tensor:
        """See `Compute.linear`."""
        assert isinstance(weight, PackedWeight)
        return kernels.linear(x, weight)

    def lookup(self, ids: Tensor, weight: Tensor | PackedWeight) -> Tensor:
        """Reads rows out of the panels, so that tied embeddings need no second copy."""
        assert isinstance(weight, PackedWeight)
        width = weight.panels.shape[2]
        return weight.panels[ids // width, :, ids % width].float()

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """See `Compute.rms_norm`."""
        return kernels.rms_norm(x, weight, eps)

    def rope_table(self, positions: Tensor, inv_freq: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        """See `Compute.rope_table`."""
        return kernels.rope_table(positions, inv_freq, scale)

    def rope(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """See `Compute.rope`; in place."""
        return kernels.rope_(x, cos, sin)

    def silu_mul(self, gate: Tensor, up: Tensor) -> Tensor:
        """See `Compute.silu_mul`."""
        return kernels.silu_mul(gate, up)

    def swiglu_clamped(self, gate: Tensor, up: Tensor, alpha: float, limit: float) -> Tensor:
        """See `Compute.swiglu_clamped`."""
        return kernels.swiglu_clamped(gate, up, alpha, limit)

    def route_sigmoid(self, logits: Tensor, bias: Tensor, topk: int) -> tuple[Tensor, Tensor]:
        """See `Compute.route_sigmoid`."""
        return kernels.route_sigmoid(logits, bias, topk)


class ReferenceCompute:
    """Plain torch in float32."""

    name = "reference"

    def __init__(self) -> None:
        self.attention: BlockAttention = ReferenceBlockAttention()

    def prepare(self, weight: Tensor) -> Tensor | PackedWeight:
        """float32; a float32 weight stays the tensor it is."""
        return weight.float()

    def linear(self, x: Tensor, weight: Tensor | PackedWeight) -> Tensor:
        """See `Compute.linear`."""
        assert isinstance(weight, Tensor)
        return F.linear(x, weight)

    def lookup(self, ids: Tensor, weight: Tensor | PackedWeight) -> Tensor:
        """See `Compute.lookup`."""
        assert isinstance(weight, Tensor)
        return F.embedding(ids, weight)

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """See `Compute.rms_norm`."""
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps) * weight

    def rope_table(self, positions: Tensor, inv_freq: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        """See `Compute.rope_table`."""
        angles = positions[:, None].float() * inv_freq
        return angles.cos() * scale, angles.sin() * scale

    def rope(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """See `Compute.rope`; a new tensor."""
        half = cos.shape[1]
        cos, sin = cos[:, None, :], sin[:, None, :]
        a, b, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
        return torch.cat((a * cos - b * sin, b * cos + a * sin, rest), dim=-1)

    def silu_mul(self, gate: Tensor, up: Tensor) -> Tensor:
        """See `Compute.silu_mul`."""
        return F.silu(gate) * up

    def swiglu_clamped(self, gate: Tensor, up: Tensor, alpha: float, limit: float) -> Tensor:
        """See `Compute.swiglu_clamped`."""
        gate, up = gate.clamp(max=limit), up.clamp(-limit, limit)
        return (up + 1) * gate * torch.sigmoid(alpha * gate)

    def route_sigmoid(self, logits: Tensor, bias: Tensor, topk: int) -> tuple[Tensor, Tensor]:
        """See `Compute.route_sigmoid`."""
        scores = logits.sigmoid()
        ids = (scores + bias).sort(dim=-1, descending=True, stable=True).indices[:, :topk].sort(dim=-1).values
        weights = scores.gather(1, ids)
        return ids.to(torch.int32), weights / weights.sum(dim=-1, keepdim=True)


def compute_for(impl: str) -> tuple[Compute, str]:
    """The compute of that name, and why it was chosen. "auto" takes the kernels."""
    if impl == "reference":
        return ReferenceCompute(), "asked for by name"
    kernels.isa()  # raises KernelError when the library is missing: there is no silent fallback
    return NativeCompute(), "the default on a CPU" if impl == "auto" else "asked for by name"
