"""The block, as the rooms hand it to each other: where its lanes lie and which tokens a call is about.

A block is `block_tokens` consecutive tokens at absolute positions. It carries K, V and (in sparse layers)
index-K of every layer; a *slot* is its place in the cache. Attention and cache meet only in these values.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from freehold.core.axes import ceil_div


@dataclass(frozen=True, slots=True)
class LaneSpec:
    """Sizes of one layer's lanes. index_dim is None for layers without an index branch."""

    num_kv_heads: int
    head_dim: int
    index_dim: int | None = None


@dataclass(frozen=True, slots=True)
class LayerLanes:
    """One layer's part of every slot; `padded` is head_dim rounded up to a multiple of 16.

    k:          (num_slots, num_kv_heads, head_dim, block_tokens), transposed: a vector register holds tokens
    v:          (num_slots, num_kv_heads, block_tokens, padded)
    index_k:    (num_slots, index_dim, block_tokens), or None
    index_norm: (num_slots,) float32, an upper bound of |index key| over the slot, or None
    """

    k: torch.Tensor
    v: torch.Tensor
    index_k: torch.Tensor | None
    index_norm: torch.Tensor | None

    @property
    def block_tokens(self) -> int:
        """Tokens in a block."""
        return int(self.k.shape[3])

    @property
    def head_dim(self) -> int:
        """Width of a key head."""
        return int(self.k.shape[2])

    @staticmethod
    def allocate(spec: LaneSpec, num_slots: int, block_tokens: int, dtype: torch.dtype) -> LayerLanes:
        """Uninitialised lanes; the operating system hands out memory only as slots are written."""
        padded = ceil_div(spec.head_dim, 16) * 16
        index_k = index_norm = None
        if spec.index_dim is not None:
            index_k = torch.empty(num_slots, spec.index_dim, block_tokens, dtype=dtype)
            index_norm = torch.zeros(num_slots, dtype=torch.float32)
        return LayerLanes(
            k=torch.empty(num_slots, spec.num_kv_heads, spec.head_dim, block_tokens, dtype=dtype),
            v=torch.empty(num_slots, spec.num_kv_heads, block_tokens, padded, dtype=dtype),
            index_k=index_k,
            index_norm=index_norm,
        )


@dataclass(frozen=True, slots=True)
class Span:
    """A run of new tokens of one sequence: positions [start, start + length), and the slots of all blocks
    up to the last of them."""

    start: int
    length: int
    slots: Sequence[int]


@dataclass(frozen=True, slots=True)
class Spans:
    """The spans of one call, packed one after another; rows are counted over all of them.

    row_begin (num + 1,) int32; start (num,) int64; table (sum of blocks,) int32 slots; table_begin (num,) int64;
    positions (rows,) int64; slot, offset (rows,) int32: where each row's token is stored.
    """

    block_tokens: int
    row_begin: torch.Tensor
    start: torch.Tensor
    table: torch.Tensor
    table_begin: torch.Tensor
    positions: torch.Tensor
    slot: torch.Tensor
    offset: torch.Tensor

    @property
    def num(self) -> int:
        """How many spans there are."""
        return int(self.start.shape[0])

    @property
    def rows(self) -> int:
        """How many query tokens there are."""
        return int(self.positions.shape[0])

    def bounds(self, s: int) -> tuple[int, int, int]:
        """(first row, end row, position of the first row) of span `s`."""
        return int(self.row_begin[s]), int(self.row_begin[s + 1]), int(self.start[s])

    def slots_of(self, s: int) -> torch.Tensor:
        """The slots of span `s`'s blocks, in order."""
        first, end, start = self.bounds(s)
        blocks = ceil_div(start + end - first, self.block_tokens)
        begin = int(self.table_begin[s])
        return self.table[begin : begin + blocks]

    @staticmethod
    def pack(spans: Sequence[Span], block_tokens: int) -> Spans:
        """Lays spans out for the kernels. Each needs a slot for every block up to its last token."""
        row_begin: list[int] = [0]
        table: list[int] = []
        table_begin: list[int] = []
        pieces: list[torch.Tensor] = []
        for span in spans:
            blocks = ceil_div(span.start + span.length, block_tokens)
            assert len(span.slots) >= blocks, (span.start, span.length, len(span.slots), block_tokens)
            row_begin.append(row_begin[-1] + span.length)
            table_begin.append(len(table))
            table.extend(span.slots[:blocks])
            pieces.append(torch.arange(span.start, span.start + span.length, dtype=torch.int64))
        positions = torch.cat(pieces) if pieces else torch.empty(0, dtype=torch.int64)
        all_slots = torch.tensor(table, dtype=torch.int32)
        lengths = torch.tensor([span.length for span in spans], dtype=torch.int64)
        begins = torch.tensor(table_begin, dtype=torch.int64)
        blocks_of_rows = torch.repeat_interleave(begins, lengths) + positions // block_tokens
        return Spans(
            block_tokens=block_tokens,
            row_begin=torch.tensor(row_begin, dtype=torch.int32),
            start=torch.tensor([span.start for span in spans], dtype=torch.int64),
            table=all_slots,
            table_begin=begins,
            positions=positions,
            slot=all_slots[blocks_of_rows],
            offset=(positions % block_tokens).to(torch.int32),
        )
