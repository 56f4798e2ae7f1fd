"""How many blocks the cache gets."""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch

from freehold.core.axes import ceil_div
from freehold.core.blocks import LaneSpec
from freehold.core.config import EngineConfig


def nbytes_per_block(specs: Sequence[LaneSpec], block_tokens: int, dtype: torch.dtype) -> int:
    """Bytes of one block over all layers: K, V (padded to 16 channels), index-K and its norm."""
    total = 0
    for spec in specs:
        padded = ceil_div(spec.head_dim, 16) * 16
        elements = spec.num_kv_heads * (spec.head_dim + padded) + (spec.index_dim or 0)
        total += elements * block_tokens * dtype.itemsize + (4 if spec.index_dim else 0)
    return total


def cache_blocks(
    specs: Sequence[LaneSpec], block_tokens: int, dtype: torch.dtype, config: EngineConfig, context_length: int
) -> int:
    """Blocks for `cache_tokens`; without it, for two full contexts within a quarter of the machine's memory."""
    if config.cache_tokens is not None:
        return ceil_div(config.cache_tokens, block_tokens)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    affordable = memory // 4 // nbytes_per_block(specs, block_tokens, dtype)
    return max(1, min(2 * ceil_div(context_length, block_tokens), affordable))
