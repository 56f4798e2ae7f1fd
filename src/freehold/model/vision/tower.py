"""MiniMax-M3's vision tower: patches to features, each of one image or one segment of a video at a time."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from freehold.core.coded import CodedWeight
from freehold.model.compute import Compute
from freehold.model.layers import Linear
from freehold.model.vision.config import VisionConfig

_QUERY_ROWS = 1024
"""Queries whose scores are in memory at once; each row's result stands alone, so that this changes no bit."""


class LayerNorm(nn.Module):
    """(x - mean) / sqrt(variance + eps) * weight + bias over the last axis."""

    weight: Tensor
    bias: Tensor

    def __init__(self, eps: float) -> None:
        super().__init__()
        self.eps = eps

    def load(self, weight: Tensor) -> None:
        """Takes the factor (dim,)."""
        self.weight = nn.Parameter(weight.float().clone(), requires_grad=False)

    def load_bias(self, bias: Tensor) -> None:
        """Takes the offset (dim,)."""
        self.bias = nn.Parameter(bias.float().clone(), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """x (rows, dim) -> the same shape."""
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)


class PatchEmbedding(Linear):
    """The first layer: a patch's numbers to channels; on the disk a kernel over time, rows and columns."""

    def load(self, weight: Tensor | CodedWeight) -> None:
        """Takes (hidden_size, 3, time, rows, columns), which is no matrix and never comes as codes."""
        assert isinstance(weight, Tensor)
        super().load(weight.flatten(1).contiguous())


class Attention(nn.Module):
    """Every patch sees every patch."""

    def __init__(self, config: VisionConfig, compute: Compute) -> None:
        super().__init__()
        self.config, self.compute = config, compute
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (Linear(compute) for _ in range(4))

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """x (patches, hidden_size) -> the same."""
        c, patches = self.config, x.shape[0]
        q, k, v = (project(x).view(patches, c.num_heads, c.head_dim) for project in self._projections())
        q, k = self.compute.rope(q, cos, sin), self.compute.rope(k, cos, sin)
        out = torch.empty(patches, c.num_heads, c.head_dim)
        for head in range(c.num_heads):
            keys = self.compute.prepare(k[:, head].contiguous())
            values = self.compute.prepare(v[:, head].T.contiguous())
            for first in range(0, patches, _QUERY_ROWS):
                queries = q[first : first + _QUERY_ROWS, head].contiguous()
                weights = (self.compute.linear(queries, keys) * c.head_dim**-0.5).softmax(dim=-1)
                out[first : first + _QUERY_ROWS, head] = self.compute.linear(weights, values)
        return self.out_proj(out.view(patches, c.hidden_size))  # type: ignore[no-any-return]

    def _projections(self) -> tuple[Linear, Linear, Linear]:
        return self.q_proj, self.k_proj, self.v_proj


class Layer(nn.Module):
    """h += attention(norm(h)); h += feed_forward(norm(h))."""

    def __init__(self, config: VisionConfig, compute: Compute) -> None:
        super().__init__()
        self.attention_norm, self.feed_forward_norm = (LayerNorm(config.layer_norm_eps) for _ in range(2))
        self.attention = Attention(config, compute)
        self.fc1, self.fc2 = Linear(compute), Linear(compute)

    def steps(self, h: Tensor, cos: Tensor, sin: Tensor) -> Iterator[Tensor]:
        """h (patches, hidden_size) after its attention, and after all of it."""
        h = h + self.attention(self.attention_norm(h), cos, sin)
        yield h
        yield h + self.fc2(F.gelu(self.fc1(self.feed_forward_norm(h))))


class Tower(nn.Module):
    """Patches of one grid to features; there is no norm at the end."""

    def __init__(self, config: VisionConfig, compute: Compute) -> None:
        super().__init__()
        self.patch_embedding = PatchEmbedding(compute)
        self.first_norm = LayerNorm(config.layer_norm_eps)
        self.layers = nn.ModuleList(Layer(config, compute) for _ in range(config.num_layers))

    def steps(self, rows: Tensor, cos: Tensor, sin: Tensor) -> Iterator[Tensor]:
        """rows (patches, patch_numbers) -> (patches, hidden_size) on the way, the features last."""
        h = self.first_norm(self.patch_embedding(rows))
        yield h
        for layer in self.layers:
            for half in layer.steps(h, cos, sin):  # type: ignore[operator]
                yield half
            h = half
