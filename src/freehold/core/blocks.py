"""The block, as the rooms hand it to each other: where its lanes lie and which tokens a call is about.

A block is `block_tokens` consecutive tokens at absolute positions. It carries K, V and (in sparse layers)
index-K of every layer; a *slot* is its place in the cache. Attention and cache meet only in these values.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from freehold.core.axes import ceil_div
from freehold.core.errors import ArgumentError
from freehold.core.memory import large_empty


@dataclass(frozen=True, slots=True)
class LaneSpec:
    """Sizes of one layer's lanes. index_dim is None for layers without an index branch."""

    num_kv_heads: int
    head_dim: int
    index_dim: int | None = None


MOST_DIM = 1 << 16
"""Channels of the widest head or index key."""


@dataclass(frozen=True, slots=True)
class IndexLane:
    """The index keys of a sparse layer, and a sketch of each full block that the selection scans first:
    key ~ centre + unit * scale * (code - 128), with 8-bit codes in halves, code = 16 * high + low.

    keys:   (num_slots, block_tokens, index_dim), what selection is exact about
    high:   (num_slots, ceil(index_dim / 8), block_tokens, 4) uint8: the upper halves of two dimensions in a byte,
        8 p + i in its lower and 8 p + 4 + i in its upper half
    low:    the lower halves, the same
    scales: (num_slots, block_tokens) uint8, one for each token
    centre: (num_slots, index_dim) bfloat16, the mean of the block's keys
    bounds: (num_slots, 8) float32: unit; largest |key - its stand-in|; largest |coded part|; |centre|; what the
        second and third are for the upper halves alone and a scale of 1; two of padding

    All but keys is derived from keys when a block becomes full, and not written before.
    """

    keys: torch.Tensor
    high: torch.Tensor
    low: torch.Tensor
    scales: torch.Tensor
    centre: torch.Tensor
    bounds: torch.Tensor

    def sketch(self) -> tuple[torch.Tensor, ...]:
        """What is derived from the keys."""
        return self.high, self.low, self.scales, self.centre, self.bounds

    @property
    def index_dim(self) -> int:
        """Width of an index key."""
        return int(self.keys.shape[2])


@dataclass(frozen=True, slots=True)
class LayerLanes:
    """One layer's part of every slot; P is head_dim rounded up to a multiple of 16.

    float32:  k (num_slots, num_kv_heads, head_dim, block_tokens), v (num_slots, num_kv_heads, block_tokens, P)
    bfloat16: k (num_slots, num_kv_heads, head_dim / 2, block_tokens, 2), v (num_slots, num_kv_heads,
        block_tokens / 2, P, 2): in pairs along the axis that attention sums over
    index:    the index branch's lane, or None in a dense layer
    pager:    None if k and v hold every slot under its own number. With a pager their first axis is the *frame*:
        a place in memory for one slot, and slots without a frame are on the disk

    Raises ArgumentError for tensors of other shapes and types than these, or that are not contiguous in CPU memory.
    """

    head_dim: int
    block_tokens: int
    k: torch.Tensor
    v: torch.Tensor
    index: IndexLane | None
    pager: Pager | None = None

    def __post_init__(self) -> None:
        """The kernels trust what is looked at here."""
        dim, tokens, dtype = self.head_dim, self.block_tokens, self.k.dtype
        if not 1 <= dim <= MOST_DIM:
            raise ArgumentError(f"head_dim is {dim}; it must be from 1 to {MOST_DIM}")
        if self.k.ndim < 2:
            raise ArgumentError(f"k has shape {tuple(self.k.shape)}; see LayerLanes for what it must be")
        frames, heads, padded = self.k.shape[0], self.k.shape[1], ceil_div(dim, 16) * 16
        if dtype == torch.bfloat16:
            if dim % 2:
                raise ArgumentError(f"head_dim is {dim}; bfloat16 blocks lie in pairs and need an even one")
            _check_plain("k", self.k, dtype, frames, heads, dim // 2, tokens, 2)
            _check_plain("v", self.v, dtype, frames, heads, tokens // 2, padded, 2)
        else:
            _check_plain("k", self.k, dtype, frames, heads, dim, tokens)
            _check_plain("v", self.v, dtype, frames, heads, tokens, padded)
        if self.index is None:
            return
        index = self.index
        if index.keys.ndim != 3 or not 1 <= index.index_dim <= MOST_DIM:
            raise ArgumentError(f"index keys have shape {tuple(index.keys.shape)}; see IndexLane for what it must be")
        slots, width = index.keys.shape[0], index.index_dim
        _check_plain("index keys", index.keys, dtype, slots, tokens, width)
        _check_plain("high", index.high, torch.uint8, slots, ceil_div(width, 8), tokens, 4)
        _check_plain("low", index.low, torch.uint8, slots, ceil_div(width, 8), tokens, 4)
        _check_plain("scales", index.scales, torch.uint8, slots, tokens)
        _check_plain("centre", index.centre, torch.bfloat16, slots, width)
        _check_plain("bounds", index.bounds, torch.float32, slots, 8)

    @property
    def num_kv_heads(self) -> int:
        """Key/value heads."""
        return int(self.k.shape[1])

    def tensors(self) -> Iterator[torch.Tensor]:
        """Every tensor of the layer."""
        yield from (self.k, self.v)
        yield from self.index_tensors()

    def index_tensors(self) -> Iterator[torch.Tensor]:
        """The tensors of the index branch; the first axis is the slot."""
        if self.index is not None:
            yield from (self.index.keys, *self.index.sketch())

    def flat_k(self, slots: torch.Tensor) -> torch.Tensor:
        """Keys of the slots' tokens in order: (len(slots) * block_tokens, num_kv_heads, head_dim)."""
        k = self.k[slots]
        if k.ndim == 5:  # (blocks, heads, pairs, tokens, 2) -> (blocks, heads, channels, tokens)
            k = k.permute(0, 1, 2, 4, 3).flatten(2, 3)
        return k.permute(0, 3, 1, 2).flatten(0, 1)

    def flat_v(self, slots: torch.Tensor) -> torch.Tensor:
        """Values of the slots' tokens in order: (len(slots) * block_tokens, num_kv_heads, head_dim)."""
        v = self.v[slots]
        if v.ndim == 5:  # (blocks, heads, pairs, channels, 2) -> (blocks, heads, tokens, channels)
            v = v.permute(0, 1, 2, 4, 3).flatten(2, 3)
        return v.permute(0, 2, 1, 3).flatten(0, 1)[..., : self.head_dim]

    @staticmethod
    def allocate(
        spec: LaneSpec, num_slots: int, block_tokens: int, dtype: torch.dtype, *, num_frames: int | None = None
    ) -> LayerLanes:
        """Uninitialised lanes; the operating system hands out memory only as slots are written.

        num_frames: first axis of k and v, if it is not num_slots.
        """
        frames = num_slots if num_frames is None else num_frames
        heads, dim, padded = spec.num_kv_heads, spec.head_dim, ceil_div(spec.head_dim, 16) * 16
        if dtype == torch.bfloat16:
            if dim % 2:
                raise ArgumentError(
                    f"head_dim is {dim}; bfloat16 blocks lie in pairs and need an even one; use float32"
                )
            k = large_empty(frames, heads, dim // 2, block_tokens, 2, dtype=dtype)
            v = large_empty(frames, heads, block_tokens // 2, padded, 2, dtype=dtype)
        else:
            k = large_empty(frames, heads, dim, block_tokens, dtype=dtype)
            v = large_empty(frames, heads, block_tokens, padded, dtype=dtype)
        index = None
        if spec.index_dim is not None:
            width = spec.index_dim
            index = IndexLane(
                keys=large_empty(num_slots, block_tokens, width, dtype=dtype),
                high=large_empty(num_slots, ceil_div(width, 8), block_tokens, 4, dtype=torch.uint8),
                low=large_empty(num_slots, ceil_div(width, 8), block_tokens, 4, dtype=torch.uint8),
                scales=large_empty(num_slots, block_tokens, dtype=torch.uint8),
                centre=large_empty(num_slots, width, dtype=torch.bfloat16),
                bounds=large_empty(num_slots, 8),
            )
        return LayerLanes(dim, block_tokens, k, v, index)

    def nbytes_per_block(self) -> int:
        """Bytes of one slot."""
        return sum(t[0].numel() * t.element_size() for t in self.tensors())


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

    Raises ArgumentError for tensors of other shapes and types. What they hold is looked at by the kernels.
    """

    block_tokens: int
    row_begin: torch.Tensor
    start: torch.Tensor
    table: torch.Tensor
    table_begin: torch.Tensor
    positions: torch.Tensor
    slot: torch.Tensor
    offset: torch.Tensor

    def __post_init__(self) -> None:
        num, rows = self.start.numel(), self.positions.numel()
        _check_vector("row_begin", self.row_begin, torch.int32, num + 1)
        _check_vector("start", self.start, torch.int64, num)
        _check_vector("table", self.table, torch.int32, self.table.numel())
        _check_vector("table_begin", self.table_begin, torch.int64, num)
        _check_vector("positions", self.positions, torch.int64, rows)
        _check_vector("slot", self.slot, torch.int32, rows)
        _check_vector("offset", self.offset, torch.int32, rows)

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
        # NumPy: torch wakes its threads for some of these operations, and that costs more than the work.
        table: list[int] = []
        begins: list[int] = []
        for span in spans:
            blocks = ceil_div(span.start + span.length, block_tokens)
            assert len(span.slots) >= blocks, (span.start, span.length, len(span.slots), block_tokens)
            begins.append(len(table))
            table.extend(span.slots[:blocks])
        lengths = [span.length for span in spans]
        runs = [np.arange(span.start, span.start + span.length, dtype=np.int64) for span in spans]
        positions = np.concatenate([np.empty(0, np.int64), *runs])
        slots, table_begin = np.array(table, np.int32), np.array(begins, np.int64)
        return Spans(
            block_tokens=block_tokens,
            row_begin=torch.from_numpy(np.cumsum([0, *lengths], dtype=np.int32)),
            start=torch.tensor([span.start for span in spans], dtype=torch.int64),
            table=torch.from_numpy(slots),
            table_begin=torch.from_numpy(table_begin),
            positions=torch.from_numpy(positions),
            slot=torch.from_numpy(slots[np.repeat(table_begin, lengths) + positions // block_tokens]),
            offset=torch.from_numpy((positions % block_tokens).astype(np.int32)),
        )


@dataclass(frozen=True, slots=True)
class Part:
    """Blocks [begin, end) of every span, whose K and V are in memory: `spans.table` names their frames."""

    begin: int
    end: int
    spans: Spans


def _check_plain(name: str, tensor: torch.Tensor, dtype: torch.dtype, *shape: int) -> None:
    """Raises ArgumentError unless the tensor lies in CPU memory as the kernels read it."""
    if tensor.dtype is not dtype or tensor.shape != shape:
        raise ArgumentError(
            f"{name} has type {tensor.dtype} and shape {tuple(tensor.shape)}; it must be {dtype} {shape}"
        )
    if not tensor.is_contiguous() or not tensor.is_cpu:
        raise ArgumentError(f"{name} must be contiguous and in CPU memory; it is on {tensor.device}")


def _check_vector(name: str, tensor: torch.Tensor, dtype: torch.dtype, size: int) -> None:
    """The same of one axis, for every step: half a microsecond where all is well."""
    if (
        tensor.dtype is not dtype
        or tensor.dim() != 1
        or tensor.numel() != size
        or not tensor.is_contiguous()
        or not tensor.is_cpu
    ):
        _check_plain(name, tensor, dtype, size)


class Pager(Protocol):
    """Brings the K and V of a layer's slots into memory."""

    @property
    def direct(self) -> bool:
        """Whether every slot in use lies in the frame of its own number, so that nobody needs to ask."""

    def writable(self, slots: torch.Tensor) -> torch.Tensor:
        """The frames (int32, like `slots`) into which the slots' tokens are written."""

    def parts(self, spans: Spans, block_ids: torch.Tensor | None) -> tuple[int, Iterator[Part]]:
        """Ascending ranges that cover the chosen blocks (None: all), and how many they are, at least one. A part's
        blocks stay in memory until the next one is asked for; then LostBlocksError is raised if some cannot be read.
        """
