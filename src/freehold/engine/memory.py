"""How much memory the cache gets, and the store behind it."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch

from freehold import kernels
from freehold.cache import BlockPool, BlockStore, Identity, record_layout, taken_bytes
from freehold.core.axes import ceil_div
from freehold.core.blocks import LaneSpec, LayerLanes
from freehold.core.config import EngineConfig
from freehold.core.errors import ConfigError
from freehold.model.base import Model

NUMERICS_VERSION = 3
"""Raised whenever the same weights and tokens give other bits, or the lanes another layout: what was stored before
is then not used any more."""

_KV_TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
LEAST_FRAMES = 64
"""Blocks of K and V of sparse layers that a RAM budget must hold."""


def make_pool(model: Model, config: EngineConfig, context_length: int, weights: str) -> BlockPool:
    """The slots of an engine, in memory and, with `store_dir`, on the disk.

    weights: digest of the checkpoint. Raises ConfigError if the machine has less memory than is asked for,
    StoreLockedError if another process uses the store.
    """
    block_tokens = model.block_tokens or config.default_block_tokens
    dtype = _KV_TYPES[config.kv_dtype]
    num_frames = None if config.ram_budget is None else _frames(model.lane_specs, block_tokens, dtype, config)
    num_slots = cache_blocks(model.lane_specs, block_tokens, dtype, config, context_length)
    store = None
    if config.store_dir is not None:
        layout = record_layout(model.lane_specs, block_tokens, dtype)
        directory = Path(config.store_dir)
        limit = config.store_bytes
        if limit is None:
            # What is stored counts as free: else each start would halve the store.
            limit = max((_free_bytes(directory) + taken_bytes(directory)) // 2, layout.record_bytes)
        store = BlockStore(directory, _identity(config, block_tokens, weights), layout, limit_bytes=limit)
    return BlockPool(
        model.lane_specs,
        num_slots=num_slots,
        block_tokens=block_tokens,
        dtype=dtype,
        store=store,
        num_frames=None if num_frames is None else min(num_frames, num_slots),
    )


def cache_blocks(
    specs: Sequence[LaneSpec], block_tokens: int, dtype: torch.dtype, config: EngineConfig, context_length: int
) -> int:
    """Blocks for `cache_tokens`; without it, for two full contexts within a quarter of the machine's memory.

    With a `ram_budget`, K and V of sparse layers count with that. Raises ConfigError if the machine has less memory
    than `cache_tokens` needs.
    """
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    fixed = config.ram_budget or 0
    block = sum(_resident_bytes(spec, block_tokens, dtype, paged=fixed > 0) for spec in specs)
    if config.cache_tokens is not None:
        asked = ceil_div(config.cache_tokens, block_tokens)
        if asked * block + fixed > memory:
            raise ConfigError(
                f"cache_tokens is {config.cache_tokens}, which needs {(asked * block + fixed) / 2**30:.1f} GiB; this "
                f"machine has {memory / 2**30:.1f} GiB"
            )
        return asked
    affordable = max(memory // 4 - fixed, 0) // block
    return max(1, min(2 * ceil_div(context_length, block_tokens), affordable))


def _resident_bytes(spec: LaneSpec, block_tokens: int, dtype: torch.dtype, *, paged: bool) -> int:
    lanes = LayerLanes.allocate(spec, 1, block_tokens, dtype)
    tensors = lanes.index_tensors() if paged and spec.index_dim is not None else lanes.tensors()
    return sum(t.numel() * t.element_size() for t in tensors)


def _frames(specs: Sequence[LaneSpec], block_tokens: int, dtype: torch.dtype, config: EngineConfig) -> int:
    """Frames of each sparse layer within the RAM budget. Half of them are for what is read beside a step's own tokens,
    whose blocks cannot leave before they are on the disk."""
    assert config.ram_budget is not None
    sparse = [spec for spec in specs if spec.index_dim is not None]
    if not sparse:
        raise ConfigError("ram_budget is for models with sparse layers: dense attention needs all of K and V in RAM")
    frame = sum(
        _resident_bytes(spec, block_tokens, dtype, paged=False) - _resident_bytes(spec, block_tokens, dtype, paged=True)
        for spec in sparse
    )
    frames = config.ram_budget // frame
    step = 2 * ceil_div(config.prefill_chunk, block_tokens)
    least = max(LEAST_FRAMES, step)
    if frames < least:
        raise ConfigError(
            f"ram_budget is {config.ram_budget}, which holds {frames} blocks of K and V; give at least "
            f"{least * frame} bytes ({least} blocks)" + (", or a smaller prefill_chunk" if step > LEAST_FRAMES else "")
        )
    return frames


def _identity(config: EngineConfig, block_tokens: int, weights: str) -> Identity:
    """What decides the bits of a block, besides its tokens."""
    description = {
        "weights": weights,
        "numerics": str(NUMERICS_VERSION),
        "kv_dtype": config.kv_dtype,
        "block_tokens": str(block_tokens),
        "activations": config.activations,
        "isa": kernels.isa(),
        "dense": str(config.allow_dense),
    }
    return Identity(hashlib.sha256(json.dumps(description, sort_keys=True).encode()).digest(), description)


def _free_bytes(directory: Path) -> int:
    """Free bytes of the disk that has, or will have, the directory."""
    there = next(path for path in (directory, *directory.absolute().parents) if path.exists())
    return shutil.disk_usage(there).free
