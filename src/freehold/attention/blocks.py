"""The same operators over cache blocks instead of flat tensors: what the models call.

`BlockAttention` binds the choice of implementation once. The reference gathers each span's keys and values into
flat tensors and calls the operators' own reference, so there is one oracle only.
"""

from __future__ import annotations

from typing import Protocol

import torch

from freehold import kernels
from freehold.attention.impl import reference
from freehold.core.blocks import LayerLanes, Spans
from freehold.core.errors import ArgumentError


class BlockAttention(Protocol):
    """Storing, selecting and attending over the blocks of one layer. Shapes as in `freehold.kernels`."""

    def write(
        self, lanes: LayerLanes, spans: Spans, k: torch.Tensor, v: torch.Tensor, index_k: torch.Tensor | None
    ) -> None:
        """Stores k, v (rows, num_kv_heads, head_dim) and index_k (rows, index_dim) in their blocks."""

    def select(
        self, index_q: torch.Tensor, lanes: LayerLanes, spans: Spans, *, topk: int, local_blocks: int, init_blocks: int
    ) -> torch.Tensor:
        """Block ids int32 (rows, num_index_heads, topk), ascending, -1 tail."""

    def attend(
        self, q: torch.Tensor, lanes: LayerLanes, spans: Spans, *, block_ids: torch.Tensor | None, scale: float
    ) -> torch.Tensor:
        """Attention over the chosen blocks, or over all (None: dense) -> like q (rows, num_q_heads, head_dim)."""


class NativeBlockAttention:
    """The C++ kernels, reading the cache in place."""

    write = staticmethod(kernels.write)
    select = staticmethod(kernels.select)
    attend = staticmethod(kernels.attend)


class ReferenceBlockAttention:
    """Torch, through `freehold.attention.impl.reference`."""

    def write(
        self, lanes: LayerLanes, spans: Spans, k: torch.Tensor, v: torch.Tensor, index_k: torch.Tensor | None
    ) -> None:
        """Stores new tokens; see `BlockAttention`."""
        slot, offset = spans.slot.long(), spans.offset.long()
        lanes.k[slot, :, :, offset] = k.to(lanes.k.dtype)
        lanes.v[slot, :, offset, : v.shape[2]] = v.to(lanes.v.dtype)
        lanes.v[slot, :, offset, v.shape[2] :] = 0
        if lanes.index_k is None or lanes.index_norm is None or index_k is None:
            return
        lanes.index_k[slot, :, offset] = index_k.to(lanes.index_k.dtype)
        norms = index_k.to(lanes.index_k.dtype).double().norm(dim=-1) * (1 + 1e-6)
        lanes.index_norm[slot[offset == 0]] = 0.0
        lanes.index_norm.scatter_reduce_(0, slot, norms.float(), "amax")

    def select(
        self, index_q: torch.Tensor, lanes: LayerLanes, spans: Spans, *, topk: int, local_blocks: int, init_blocks: int
    ) -> torch.Tensor:
        """Selects over each span's gathered index keys."""
        if lanes.index_k is None:
            raise ArgumentError("these lanes have no index keys: the layer is dense")
        pieces = []
        for s in range(spans.num):
            first, end, start = spans.bounds(s)
            keys = lanes.index_k[spans.slots_of(s).long()].transpose(1, 2).flatten(0, 1)[: start + end - first]
            pieces.append(
                reference.select_blocks(
                    index_q[first:end],
                    keys,
                    query_start=start,
                    block_tokens=spans.block_tokens,
                    topk=topk,
                    local_blocks=local_blocks,
                    init_blocks=init_blocks,
                )
            )
        return torch.cat(pieces)

    def attend(
        self, q: torch.Tensor, lanes: LayerLanes, spans: Spans, *, block_ids: torch.Tensor | None, scale: float
    ) -> torch.Tensor:
        """Attends over each span's gathered keys and values."""
        pieces = []
        for s in range(spans.num):
            first, end, start = spans.bounds(s)
            slots, total_k = spans.slots_of(s).long(), start + end - first
            # (blocks, heads, head_dim, tokens) -> (tokens, heads, head_dim)
            k = lanes.k[slots].permute(0, 3, 1, 2).flatten(0, 1)[:total_k]
            v = lanes.v[slots].permute(0, 2, 1, 3).flatten(0, 1)[:total_k, :, : lanes.head_dim]
            if block_ids is None:
                pieces.append(reference.dense_attention(q[first:end], k, v, query_start=start, scale=scale))
            else:
                pieces.append(
                    reference.attend_blocks(
                        q[first:end],
                        k,
                        v,
                        block_ids[first:end],
                        query_start=start,
                        block_tokens=spans.block_tokens,
                        scale=scale,
                    )
                )
        return torch.cat(pieces)
