"""Other ways to choose blocks, to compare an index branch with."""

from __future__ import annotations

import torch
from torch import Tensor

from freehold import kernels
from freehold.attention.blocks import NativeBlockAttention
from freehold.attention.impl.reference import top_blocks
from freehold.attention.masses import block_masses
from freehold.core.blocks import LayerLanes, Spans

_ROWS = 128
"""Queries whose weights of every key are held at once."""


class OracleBlockAttention(NativeBlockAttention):
    """Sparse layers read the blocks with the most attention, the mean over a group's heads: the best choice that knows
    every weight. For one sequence a call; as slow as dense attention in torch."""

    def sparse(
        self,
        q: Tensor,
        index_q: Tensor,
        lanes: LayerLanes,
        spans: Spans,
        *,
        topk: int,
        local_blocks: int,
        init_blocks: int,
        scale: float,
    ) -> tuple[Tensor, Tensor]:
        """See `BlockAttention.sparse`; index_q is not looked at."""
        assert spans.num == 1
        start, end = int(spans.positions[0]), int(spans.positions[-1]) + 1
        k = lanes.flat_k(spans.slots_of(0).long())[:end].float()
        found = []
        for first in range(0, q.shape[0], _ROWS):
            here = q[first : first + _ROWS]
            positions = torch.arange(start + first, start + first + here.shape[0])
            mass = block_masses(here, k, positions, lanes.block_tokens, scale)
            found.append(top_blocks(mass, positions // lanes.block_tokens, topk, local_blocks, init_blocks))
        block_ids = torch.cat(found)
        return kernels.attend(q, lanes, spans, block_ids=block_ids, scale=scale), block_ids


class FirstAndRecentBlockAttention(NativeBlockAttention):
    """Sparse layers read the first block and the most recent ones, as many as the model's index would choose."""

    def sparse(
        self,
        q: Tensor,
        index_q: Tensor,
        lanes: LayerLanes,
        spans: Spans,
        *,
        topk: int,
        local_blocks: int,
        init_blocks: int,
        scale: float,
    ) -> tuple[Tensor, Tensor]:
        """See `BlockAttention.sparse`; what is forced fills topk."""
        forced = {"local_blocks": max(1, topk - 1), "init_blocks": min(1, topk - 1)}
        return super().sparse(q, index_q, lanes, spans, topk=topk, scale=scale, **forced)
