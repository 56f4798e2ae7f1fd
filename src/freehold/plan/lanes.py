"""What a token costs in the block cache, lane by lane."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from freehold.cache import record_layout
from freehold.core.axes import ceil_div
from freehold.core.blocks import LaneSpec, LayerLanes
from freehold.core.errors import ConfigError

KV_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True, slots=True)
class LaneBytes:
    """Bytes of one block in so many layers. half_codes: what a scan over a long context reads of the sketch: upper
    halves of the codes, scales, centres and bounds. low_codes: the rest of the sketch."""

    layers: int = 0
    k: int = 0
    v: int = 0
    index_keys: int = 0
    half_codes: int = 0
    low_codes: int = 0

    @property
    def kv(self) -> int:
        """K and V."""
        return self.k + self.v

    @property
    def sketch(self) -> int:
        """All that is derived from the index keys."""
        return self.half_codes + self.low_codes

    @property
    def index(self) -> int:
        """Index keys and sketch."""
        return self.index_keys + self.sketch

    @property
    def total(self) -> int:
        """Every lane."""
        return self.kv + self.index

    def and_layer(self, spec: LaneSpec, block_tokens: int, dtype: torch.dtype) -> LaneBytes:
        """With one more layer, as the cache itself lays it out."""
        try:
            lanes = LayerLanes.allocate(spec, 1, block_tokens, dtype)
        except (OSError, RuntimeError, MemoryError) as error:  # the system's way to refuse, and torch's
            raise ConfigError(
                f"one block of {block_tokens} tokens with {spec.num_kv_heads} heads of {spec.head_dim} channels takes"
                " more memory than this machine can give"
            ) from error
        keys = half = low = 0
        if lanes.index is not None:
            i = lanes.index
            keys, low = i.keys.nbytes, i.low.nbytes
            half = sum(t.nbytes for t in i.sketch()) - low
        return LaneBytes(
            self.layers + 1,
            self.k + lanes.k.nbytes,
            self.v + lanes.v.nbytes,
            self.index_keys + keys,
            self.half_codes + half,
            self.low_codes + low,
        )


@dataclass(frozen=True, slots=True)
class CacheCost:
    """A block's bytes, of dense and of sparse layers together, and in the block store."""

    block_tokens: int
    kv_dtype: str
    dense: LaneBytes
    sparse: LaneBytes
    stored: int

    @property
    def block(self) -> int:
        """Bytes of a block in memory."""
        return self.dense.total + self.sparse.total

    @property
    def block_without_pages(self) -> int:
        """Bytes of a block that stay in memory when K and V of sparse layers are paged."""
        return self.dense.total + self.sparse.index

    @property
    def frame(self) -> int:
        """Bytes of a frame in all sparse layers: K and V of one block."""
        return self.sparse.kv

    def blocks(self, tokens: int) -> int:
        """Blocks that hold so many tokens."""
        return ceil_div(tokens, self.block_tokens)


def cache_cost(specs: Sequence[LaneSpec], block_tokens: int, kv_dtype: str) -> CacheCost:
    """What a block of these layers costs. kv_dtype: "float32" or "bfloat16"."""
    dtype = KV_DTYPES[kv_dtype]
    dense, sparse = LaneBytes(), LaneBytes()
    for spec in specs:
        if spec.index_dim is None:
            dense = dense.and_layer(spec, block_tokens, dtype)
        else:
            sparse = sparse.and_layer(spec, block_tokens, dtype)
    return CacheCost(block_tokens, kv_dtype, dense, sparse, record_layout(specs, block_tokens, dtype).record_bytes)
