"""How a model computes: the native kernels, or plain torch.

Layers are written once and call these methods. Native results for a row never depend on other rows; the
reference is differentiable and as readable as torch allows, but torch's products do depend on the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from freehold import kernels
from freehold.attention.blocks import BlockAttention, NativeBlockAttention, ReferenceBlockAttention
from freehold.core.coded import CodedWeight
from freehold.kernels import FusedLayerParts, Gate, PackedWeight


class Projection(Protocol):
    """A linear layer: its weight in the compute's form, and what it computes."""

    weight: Any

    def __call__(self, x: Tensor) -> Tensor:
        """x (rows, in_features) -> (rows, out_features)."""


class Streamed(Protocol):
    """Experts of which only some are in memory at a time."""

    networks: kernels.Experts

    def waves(self, ids: Tensor) -> Iterator[list[int]]:
        """Which experts of `ids` are in their places of `networks`, until the next ones are asked for."""


Network = tuple[Projection, Projection, Projection]
"""Gate, up and down of a gated feed-forward network."""


class Compute(Protocol):
    """Everything a layer asks for. x is always float32 with the token axis first."""

    name: str
    attention: BlockAttention

    def prepare(self, weight: Tensor | CodedWeight) -> Tensor | PackedWeight:
        """A (out_features, in_features) weight in the form that `linear` takes; `weight` may be a memory map."""

    def linear(self, x: Tensor, weight: Tensor | PackedWeight) -> Tensor:
        """x (rows, in_features) -> (rows, out_features)."""

    def linears(self, x: Tensor, layers: Sequence[Projection]) -> list[Tensor]:
        """What each layer makes of x."""

    def networks(self, parts: Sequence[Network]) -> Any:
        """Loaded networks in the form that `gated_mlp` and `experts` take."""

    def lookup(self, ids: Tensor, weight: Tensor | PackedWeight) -> Tensor:
        """Rows of an embedding: ids (rows,) -> (rows, width)."""

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """x (..., dim) normalised over the last axis, times weight (dim,)."""

    def rope_table(self, positions: Tensor, inv_freq: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        """cos, sin (rows, half)."""

    def rope(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """x (rows, heads, head_dim) with its first 2 * half channels turned; x may be overwritten."""

    def gated_mlp(self, x: Tensor, network: Any, gate: Gate) -> Tensor:
        """down(gate(gate x, up x)) of the only one of `networks`."""

    def experts(
        self, x: Tensor, ids: Tensor, weights: Tensor, routed: Any, shared: Any, *, gate: Gate, scale: float
    ) -> Tensor:
        """scale * sum of weights * routed[ids](x) + shared(x); ids (rows, topk) ascending, weights (rows, topk)."""

    def route_sigmoid(self, logits: Tensor, bias: Tensor, topk: int) -> tuple[Tensor, Tensor]:
        """ids (rows, topk) ascending, weights (rows, topk) with sum 1."""

    def fused_layer(self, parts: Callable[[], FusedLayerParts]) -> kernels.FusedLayer | None:
        """A whole layer in one call, with the same bits; None if it is to be computed step by step."""


class NativeCompute:
    """The C++ kernels. No gradients."""

    name = "native"

    def __init__(self, *, coded_inputs: bool = False) -> None:
        """coded_inputs: whether products with weights that are codes round their inputs to codes of 8 bits too."""
        self.attention: BlockAttention = NativeBlockAttention()
        self.coded_inputs = coded_inputs

    def prepare(self, weight: Tensor | CodedWeight) -> Tensor | PackedWeight:
        """Packs the weight into panels; the copy is the only one that stays in memory."""
        if isinstance(weight, CodedWeight):
            return kernels.pack_codes(weight, coded_inputs=self.coded_inputs)
        return kernels.pack_weight(weight.detach())

    def linear(self, x: Tensor, weight: Tensor | PackedWeight) -> Tensor:
        """See `Compute.linear`."""
        assert isinstance(weight, PackedWeight)
        return kernels.linear(x, weight)

    def linears(self, x: Tensor, layers: Sequence[Projection]) -> list[Tensor]:
        """See `Compute.linears`; in one call."""
        return kernels.linears(x, [layer.weight for layer in layers])

    def networks(self, parts: Sequence[Network]) -> kernels.Experts:
        """See `Compute.networks`."""
        return kernels.Experts([(gate.weight, up.weight, down.weight) for gate, up, down in parts])

    def lookup(self, ids: Tensor, weight: Tensor | PackedWeight) -> Tensor:
        """Reads rows out of the panels, so that tied embeddings need no second copy."""
        assert isinstance(weight, PackedWeight)
        return weight.rows(ids)

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """See `Compute.rms_norm`."""
        return kernels.rms_norm(x, weight, eps)

    def rope_table(self, positions: Tensor, inv_freq: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        """See `Compute.rope_table`."""
        return kernels.rope_table(positions, inv_freq, scale)

    def rope(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """See `Compute.rope`; in place."""
        return kernels.rope_(x, cos, sin)

    def gated_mlp(self, x: Tensor, network: kernels.Experts, gate: Gate) -> Tensor:
        """See `Compute.gated_mlp`."""
        return kernels.gated_mlp(x, network, gate)

    def experts(
        self,
        x: Tensor,
        ids: Tensor,
        weights: Tensor,
        routed: kernels.Experts | Streamed,
        shared: kernels.Experts,
        *,
        gate: Gate,
        scale: float,
    ) -> Tensor:
        """See `Compute.experts`."""
        if isinstance(routed, kernels.Experts):
            return kernels.experts(x, ids, weights, routed, shared, gate=gate, scale=scale)
        waves = routed.waves(ids)
        return kernels.experts_in_waves(x, ids, weights, waves, routed.networks, shared, gate=gate, scale=scale)

    def route_sigmoid(self, logits: Tensor, bias: Tensor, topk: int) -> tuple[Tensor, Tensor]:
        """See `Compute.route_sigmoid`."""
        return kernels.route_sigmoid(logits, bias, topk)

    def fused_layer(self, parts: Callable[[], FusedLayerParts]) -> kernels.FusedLayer | None:
        """See `Compute.fused_layer`; None where attention was replaced, as the call brings its own."""
        return kernels.FusedLayer(parts()) if type(self.attention) is NativeBlockAttention else None


class ReferenceCompute:
    """Plain torch in float32."""

    name = "reference"

    def __init__(self) -> None:
        self.attention: BlockAttention = ReferenceBlockAttention()

    def prepare(self, weight: Tensor | CodedWeight) -> Tensor | PackedWeight:
        """float32; a float32 weight stays the tensor it is."""
        return weight.floats() if isinstance(weight, CodedWeight) else weight.float()

    def linear(self, x: Tensor, weight: Tensor | PackedWeight) -> Tensor:
        """See `Compute.linear`."""
        assert isinstance(weight, Tensor)
        return F.linear(x, weight)

    def linears(self, x: Tensor, layers: Sequence[Projection]) -> list[Tensor]:
        """See `Compute.linears`."""
        return [layer(x) for layer in layers]

    def networks(self, parts: Sequence[Network]) -> Sequence[Network]:
        """See `Compute.networks`."""
        return parts

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

    def gated_mlp(self, x: Tensor, network: Sequence[Network], gate: Gate) -> Tensor:
        """See `Compute.gated_mlp`."""
        to_gate, to_up, down = network[0]
        g, u = to_gate(x), to_up(x)
        if not gate.clamped:
            return down(F.silu(g) * u)
        g, u = g.clamp(max=gate.limit), u.clamp(-gate.limit, gate.limit)
        return down((u + 1) * g * torch.sigmoid(gate.alpha * g))

    def experts(
        self,
        x: Tensor,
        ids: Tensor,
        weights: Tensor,
        routed: Sequence[Network],
        shared: Sequence[Network],
        *,
        gate: Gate,
        scale: float,
    ) -> Tensor:
        """See `Compute.experts`."""
        out = torch.zeros_like(x)
        for expert in torch.unique(ids).tolist():
            rows, place = (ids == expert).nonzero(as_tuple=True)
            out[rows] += self.gated_mlp(x[rows], [routed[expert]], gate) * weights[rows, place, None]
        out = out * scale
        return out + self.gated_mlp(x, shared, gate) if shared else out

    def route_sigmoid(self, logits: Tensor, bias: Tensor, topk: int) -> tuple[Tensor, Tensor]:
        """See `Compute.route_sigmoid`."""
        scores = logits.sigmoid()
        ids = (scores + bias).sort(dim=-1, descending=True, stable=True).indices[:, :topk].sort(dim=-1).values
        weights = scores.gather(1, ids)
        return ids.to(torch.int32), weights / weights.sum(dim=-1, keepdim=True)

    def fused_layer(self, parts: Callable[[], FusedLayerParts]) -> None:
        """See `Compute.fused_layer`: step by step, so that it can be read and differentiated."""


def compute_for(impl: str, activations: str = "float32") -> tuple[Compute, str]:
    """The compute of that name, and why it was chosen. "auto" takes the kernels.

    activations: "int8" for `coded_inputs` of `NativeCompute`; the reference has only "float32".
    """
    if impl == "reference":
        return ReferenceCompute(), "asked for by name"
    kernels.isa()  # raises KernelError when the library is missing: there is no silent fallback
    return NativeCompute(
        coded_inputs=activations == "int8"
    ), "the default on a CPU" if impl == "auto" else "asked for by name"
