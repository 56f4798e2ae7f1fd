"""How many blocks the cache gets."""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch

from freehold.core.axes import ceil_div
from freehold.core.blocks import LaneSpec, LayerLanes
from freehold.core.config import EngineConfig
from freehold.core.errors import ConfigError


def cache_blocks(
    specs: Sequence[LaneSpec], block_tokens: int, dtype: torch.dtype, config: EngineConfig, context_length: int
) -> int:
    """Blocks for `cache_tokens`; without it, for two full contexts within a quarter of the machine's memory.

    Raises ConfigError if the machine has less memory than `cache_tokens` needs.
    """
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    block = sum(LayerLanes.allocate(spec, 1, block_tokens, dtype).nbytes_per_block() for spec in specs)
    if config.cache_tokens is not None:
        asked = ceil_div(config.cache_tokens, block_tokens)
        if asked * block > memory:
            raise ConfigError(
                f"cache_tokens is {config.cache_tokens}, which needs {asked * block / 2**30:.1f} GiB; this machine has "
                f"{memory / 2**30:.1f} GiB"
            )
        return asked
    affordable = memory // 4 // block
    return max(1, min(2 * ceil_div(context_length, block_tokens), affordable))
