"""How many blocks the cache gets."""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch

from freehold.core.axes import ceil_div
from freehold.core.blocks import LaneSpec, LayerLanes
from freehold.core.config import EngineConfig


def cache_blocks(
    specs: Sequence[LaneSpec], block_tokens: int, dtype: torch.dtype, config: EngineConfig, context_length: int
) -> int:
    """Blocks for `cache_tokens`; without it, for two full contexts within a quarter of the machine's memory."""
    if config.cache_tokens is not None:
        return ceil_div(config.cache_tokens, block_tokens)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    block = sum(LayerLanes.allocate(spec, 1, block_tokens, dtype).nbytes_per_block() for spec in specs)
    affordable = memory // 4 // block
    return max(1, min(2 * ceil_div(context_length, block_tokens), affordable))
