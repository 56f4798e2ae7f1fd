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

    def dense(self, q: torch.Tensor, lanes: LayerLanes, spans: Spans, *, scale: float) -> torch.Tensor:
        """Attention over every block -> like q (rows, num_q_heads, head_dim)."""

    def sparse(
        self,
        q: torch.Tensor,
        index_q: torch.Tensor,
        lanes: LayerLanes,
        spans: Spans,
        *,
        topk: int,
        local_blocks: int,
        init_blocks: int,
        scale: float,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Attention over the blocks that index_q (rows, num_index_heads, index_dim) chooses -> like q, and their
        ids: int32 (rows, num_index_heads, topk), ascending, -1 tail."""


class NativeBlockAttention:
    """The C++ kernels, reading the cache in place."""

    def write(
        self, lanes: LayerLanes, spans: Spans, k: torch.Tensor, v: torch.Tensor, index_k: torch.Tensor | None
    ) -> None:
        """Stores new tokens; see `BlockAttention`."""
        frames = None if lanes.pager is None else lanes.pager.writable(spans.slot)
        kernels.write(lanes, spans, k, v, index_k, frames=frames)

    def dense(self, q: torch.Tensor, lanes: LayerLanes, spans: Spans, *, scale: float) -> torch.Tensor:
        """Attention over every block; see `BlockAttention`."""
        return _attend(q, lanes, spans, None, scale)

    def sparse(
        self,
        q: torch.Tensor,
        index_q: torch.Tensor,
        lanes: LayerLanes,
        spans: Spans,
        *,
        topk: int,
        local_blocks: int,
        init_blocks: int,
        scale: float,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Attention over the chosen blocks; see `BlockAttention`."""
        choice = {"topk": topk, "local_blocks": local_blocks, "init_blocks": init_blocks}
        if lanes.pager is None or lanes.pager.direct:
            return kernels.sparse(q, index_q, lanes, spans, scale=scale, **choice)
        block_ids = kernels.select(index_q, lanes, spans, **choice)
        return _attend(q, lanes, spans, block_ids, scale), block_ids


def _attend(
    q: torch.Tensor, lanes: LayerLanes, spans: Spans, block_ids: torch.Tensor | None, scale: float
) -> torch.Tensor:
    """Attention in as many calls as it takes to have the blocks in memory."""
    if lanes.pager is None or lanes.pager.direct:
        return kernels.attend(q, lanes, spans, block_ids=block_ids, scale=scale)
    num_parts, parts = lanes.pager.parts(spans, block_ids)
    carried = kernels.Stage.room(q)
    for i, part in enumerate(parts):
        stage = kernels.Stage(part.begin, part.end, carried, first=i == 0, last=i == num_parts - 1)
        out = kernels.attend(q, lanes, part.spans, block_ids=block_ids, scale=scale, stage=stage)
    return out


class ReferenceBlockAttention:
    """Torch, through `freehold.attention.impl.reference`."""

    def write(
        self, lanes: LayerLanes, spans: Spans, k: torch.Tensor, v: torch.Tensor, index_k: torch.Tensor | None
    ) -> None:
        """Stores new tokens; see `BlockAttention`."""
        slot, offset, dim = spans.slot.long(), spans.offset.long(), lanes.head_dim
        k, v = k.to(lanes.k.dtype), v.to(lanes.v.dtype)
        if lanes.k.ndim == 5:  # bfloat16 lies in pairs
            lanes.k[slot, :, :, offset] = k.view(*k.shape[:2], dim // 2, 2)
            lanes.v[slot, :, offset // 2, :dim, offset % 2] = v
        else:
            lanes.k[slot, :, :, offset] = k
            lanes.v[slot, :, offset, :dim] = v
        if lanes.index is not None and index_k is not None:
            # The coarse copy is the kernels' own; the oracle selects from the keys.
            lanes.index.keys[slot, offset] = index_k.to(lanes.index.keys.dtype)

    def dense(self, q: torch.Tensor, lanes: LayerLanes, spans: Spans, *, scale: float) -> torch.Tensor:
        """Attention over every block; see `BlockAttention`."""
        return self._attend(q, lanes, spans, None, scale)

    def sparse(
        self,
        q: torch.Tensor,
        index_q: torch.Tensor,
        lanes: LayerLanes,
        spans: Spans,
        *,
        topk: int,
        local_blocks: int,
        init_blocks: int,
        scale: float,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Attention over the chosen blocks; see `BlockAttention`."""
        block_ids = self._select(index_q, lanes, spans, topk, local_blocks, init_blocks)
        return self._attend(q, lanes, spans, block_ids, scale), block_ids

    def _select(
        self, index_q: torch.Tensor, lanes: LayerLanes, spans: Spans, topk: int, local_blocks: int, init_blocks: int
    ) -> torch.Tensor:
        """Selects over each span's gathered index keys."""
        if lanes.index is None:
            raise ArgumentError("these lanes have no index keys: the layer is dense")
        pieces = []
        for s in range(spans.num):
            first, end, start = spans.bounds(s)
            keys = lanes.index.keys[spans.slots_of(s).long()].flatten(0, 1)[: start + end - first]
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

    def _attend(
        self, q: torch.Tensor, lanes: LayerLanes, spans: Spans, block_ids: torch.Tensor | None, scale: float
    ) -> torch.Tensor:
        """Attends over each span's gathered keys and values."""
        pieces = []
        for s in range(spans.num):
            first, end, start = spans.bounds(s)
            slots, total_k = spans.slots_of(s).long(), start + end - first
            k, v = lanes.flat_k(slots)[:total_k], lanes.flat_v(slots)[:total_k]
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
