"""Block selection, attention over blocks, and storing new tokens in their blocks."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Real
from typing import Any, cast

import torch

from freehold.core.blocks import IndexLane, LayerLanes, Spans
from freehold.core.errors import ArgumentError
from freehold.kernels.library import (
    MOST_BLOCK_TOKENS,
    MOST_TOPK,
    STORAGE,
    check,
    check_whole,
    native,
    threads,
    three_axes,
)

_LEAST_SCALE, _MOST_SCALE = torch.finfo(torch.float32).tiny, torch.finfo(torch.float32).max
_MOST = 2**31 - 1


@dataclass(frozen=True, slots=True)
class SelectStats:
    """What a selection read: blocks whose sketches were scanned and how many bytes of them; then, summed over rows,
    the blocks that the bounds could not order, and the keys that were scored exactly."""

    scanned_blocks: int
    scanned_bytes: int
    blocks_looked_at_again: int
    keys_scored_exactly: int


def select(
    index_q: torch.Tensor, lanes: LayerLanes, spans: Spans, *, topk: int, local_blocks: int = 1, init_blocks: int = 0
) -> torch.Tensor:
    """The blocks each query reads: int32 (rows, num_index_heads, topk), ascending ids, -1 tail.

    index_q (rows, num_index_heads, index_dim) float32. A block's score is the largest index_q . index_k over its
    visible keys; the best win, ties to the lower id; the last `local_blocks` and first `init_blocks` blocks always
    win and use slots. A sketch of the keys in 4 or 8 bits bounds each score; what the bounds cannot order is
    scored from the keys in double precision, so the choice is exact whatever the keys are. Where many blocks score
    nearly alike, as blocks of equal keys do, all their keys are scored: exact, but 10 to 30 times slower.

    Raises ArgumentError for sizes that do not fit together, and spans that name slots which the lanes do not have.
    """
    return select_with_stats(index_q, lanes, spans, topk=topk, local_blocks=local_blocks, init_blocks=init_blocks)[0]


def select_with_stats(
    index_q: torch.Tensor, lanes: LayerLanes, spans: Spans, *, topk: int, local_blocks: int = 1, init_blocks: int = 0
) -> tuple[torch.Tensor, SelectStats]:
    """`select`, and what it had to read."""
    index = lanes.index
    if index is None:
        raise ArgumentError("these lanes have no index keys: the layer is dense")
    rows, num_index_heads, index_dim = three_axes("index_q", index_q)
    if num_index_heads < 1:
        raise ArgumentError(f"index_q has shape {tuple(index_q.shape)}; it needs at least one head")
    check_choice(topk, local_blocks, init_blocks)
    block_ids = torch.empty(rows, num_index_heads, topk, dtype=torch.int32)
    check_spans(spans, rows, lanes.block_tokens)
    try:
        work = native().select(
            check("index_q", index_q, torch.float32, rows, None, index.index_dim),
            *sketch_addresses(index),
            storage_of(lanes),
            *addresses(spans, index.keys.size(0)),
            block_ids.data_ptr(),
            num_index_heads,
            index_dim,
            lanes.block_tokens,
            topk,
            local_blocks,
            init_blocks,
            threads(),
        )
    except ValueError as error:  # what the spans hold is looked at by the kernel
        raise ArgumentError(str(error)) from None
    return block_ids, SelectStats(*work)


@dataclass(frozen=True, slots=True)
class Stage:
    """One of several calls of `attend` over ascending ranges of blocks, which together give the same bits as one.

    begin, end: the blocks of this call. carried: (rows, num_q_heads, 2 * head_dim rounded up to 16, + 4)
    float32, the running softmax; the first call begins it, the last one finishes it.

    Raises ArgumentError unless 0 <= begin <= end.
    """

    begin: int
    end: int
    carried: torch.Tensor
    first: bool
    last: bool

    def __post_init__(self) -> None:
        check_whole("the begin of a stage", self.begin, 0, _MOST)
        check_whole("the end of a stage", self.end, self.begin, _MOST)

    @staticmethod
    def room(q: torch.Tensor) -> torch.Tensor:
        """Memory for `carried`."""
        return torch.empty(q.shape[0], q.shape[1], Stage.width(q.shape[2]))

    @staticmethod
    def width(head_dim: int) -> int:
        """Numbers that `carried` holds for a row and query head."""
        return (head_dim + 15) // 16 * 32 + 4


def attend(
    q: torch.Tensor,
    lanes: LayerLanes,
    spans: Spans,
    *,
    block_ids: torch.Tensor | None,
    scale: float,
    stage: Stage | None = None,
    lse: torch.Tensor | None = None,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Causal softmax attention of q (rows, num_q_heads, head_dim) float32 over the chosen blocks -> like q.

    block_ids int32 (rows, num_kv_heads, topk), ascending with -1 tail, or None for every block (dense). The
    softmax visits blocks in ascending order for every row alone, so a row's bits do not depend on its neighbours.
    Over bfloat16 lanes, queries and weights are rounded to bfloat16; sums are float32.

    stage: this call sees a range of the blocks only; the result means something after the last one. lse (total_q,
    num_q_heads) float32 becomes the logarithm of what each row's weights were divided by, for `attend_backward`. out:
    like q, where the result goes; None: into memory of its own.

    Raises ArgumentError for a row of ids that is empty, does not ascend, goes on after a -1, or names a block after the
    query's own; and for spans that name slots which the lanes do not have.
    """
    rows, num_q_heads, head_dim = three_axes("q", q)
    _check_heads(num_q_heads, lanes, scale)
    if block_ids is not None and block_ids.numel() == 0 and rows > 0:  # its address would say: every block
        raise ArgumentError(f"block_ids has shape {tuple(block_ids.shape)}; each row needs at least one block")
    out = torch.empty_like(q) if out is None else out
    check_spans(spans, rows, lanes.block_tokens)
    try:
        native().attend(
            check("q", q, torch.float32, rows, num_q_heads, lanes.head_dim),
            check("out", out, torch.float32, rows, num_q_heads, lanes.head_dim),
            lanes.k.data_ptr(),
            lanes.v.data_ptr(),
            storage_of(lanes),
            *addresses(spans, lanes.k.size(0)),
            0 if block_ids is None else check("block_ids", block_ids, torch.int32, rows, lanes.num_kv_heads, None),
            0 if block_ids is None else block_ids.shape[2],
            num_q_heads,
            lanes.num_kv_heads,
            head_dim,
            lanes.block_tokens,
            scale,
            threads(),
            0
            if stage is None
            else check("carried", stage.carried, torch.float32, rows, num_q_heads, Stage.width(head_dim)),
            *((0, 0, True, True) if stage is None else (stage.begin, stage.end, stage.first, stage.last)),
            0 if lse is None else check("lse", lse, torch.float32, rows, num_q_heads),
        )
    except ValueError as error:  # the ids, and what the spans hold, are looked at by the kernel
        raise ArgumentError(str(error)) from None
    return out


def sparse(
    q: torch.Tensor,
    index_q: torch.Tensor,
    lanes: LayerLanes,
    spans: Spans,
    *,
    topk: int,
    local_blocks: int = 1,
    init_blocks: int = 0,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """`select`, then `attend` over what was chosen, in one call: (out, block_ids). num_index_heads is num_kv_heads.

    Every block that may be read must lie in the frame of its own number.
    """
    index = lanes.index
    if index is None:
        raise ArgumentError("these lanes have no index keys: the layer is dense")
    rows, num_q_heads, head_dim = three_axes("q", q)
    check_choice(topk, local_blocks, init_blocks)
    _check_heads(num_q_heads, lanes, scale)
    check_spans(spans, rows, lanes.block_tokens)
    out = torch.empty_like(q)
    block_ids = torch.empty(rows, lanes.num_kv_heads, topk, dtype=torch.int32)
    try:
        native().sparse(
            check("index_q", index_q, torch.float32, rows, lanes.num_kv_heads, index.index_dim),
            *sketch_addresses(index),
            check("q", q, torch.float32, rows, num_q_heads, lanes.head_dim),
            out.data_ptr(),
            lanes.k.data_ptr(),
            lanes.v.data_ptr(),
            storage_of(lanes),
            *addresses(spans, slots_and_frames(lanes)),
            block_ids.data_ptr(),
            num_q_heads,
            lanes.num_kv_heads,
            head_dim,
            index.index_dim,
            lanes.block_tokens,
            topk,
            local_blocks,
            init_blocks,
            scale,
            threads(),
        )
    except ValueError as error:
        raise ArgumentError(str(error)) from None
    return out, block_ids


def write(
    lanes: LayerLanes,
    spans: Spans,
    k: torch.Tensor,
    v: torch.Tensor,
    index_k: torch.Tensor | None = None,
    *,
    frames: torch.Tensor | None = None,
) -> None:
    """Stores new tokens: k, v (rows, num_kv_heads, head_dim) and index_k (rows, index_dim), float32.

    All lanes of a layer are written together: index_k is required exactly where the lanes have index keys.
    frames: int32 (rows,), where k and v go, if that is not the rows' slot.

    Raises ArgumentError for slots and frames that the lanes do not have; then nothing was written.
    """
    index, rows = lanes.index, three_axes("k", k)[0]
    frames = spans.slot if frames is None else frames
    if (index_k is None) != (index is None):
        raise ArgumentError("index_k must be given exactly for layers with index keys; the lanes travel together")
    check_spans(spans, rows, lanes.block_tokens)
    try:
        native().write(
            check("k", k, torch.float32, rows, lanes.num_kv_heads, lanes.head_dim),
            check("v", v, torch.float32, rows, lanes.num_kv_heads, lanes.head_dim),
            0 if index_k is None or index is None else check("index_k", index_k, torch.float32, rows, index.index_dim),
            lanes.k.data_ptr(),
            lanes.v.data_ptr(),
            *sketch_addresses(index),
            storage_of(lanes),
            check("frames", frames, torch.int32, rows),
            spans.slot.data_ptr(),
            spans.offset.data_ptr(),
            rows,
            lanes.num_kv_heads,
            lanes.head_dim,
            0 if index is None else index.index_dim,
            lanes.block_tokens,
            threads(),
            lanes.k.size(0),
            0 if index is None else index.keys.size(0),
        )
    except ValueError as error:
        raise ArgumentError(str(error)) from None


def check_choice(topk: int, local_blocks: int, init_blocks: int) -> None:
    """Raises ArgumentError for a selection that cannot be."""
    check_whole("topk", topk, 1, MOST_TOPK)
    check_whole("local_blocks", local_blocks, 1, MOST_TOPK)
    check_whole("init_blocks", init_blocks, 0, MOST_TOPK)
    if local_blocks + init_blocks > topk:
        raise ArgumentError(
            f"topk is {topk}, local_blocks {local_blocks}, init_blocks {init_blocks}; "
            "local_blocks must be at least 1, and the two together at most topk"
        )


def _check_heads(num_q_heads: int, lanes: LayerLanes, scale: Any) -> None:
    if type(scale) is not float and not isinstance(scale, Real):
        raise ArgumentError(f"scale is {scale!r}; it must be a positive number of float32")
    if num_q_heads < 1 or lanes.num_kv_heads < 1:
        raise ArgumentError(f"num_q_heads is {num_q_heads}, num_kv_heads {lanes.num_kv_heads}; there must be some")
    if num_q_heads % lanes.num_kv_heads:
        raise ArgumentError(f"num_q_heads {num_q_heads} is no multiple of num_kv_heads {lanes.num_kv_heads}")
    if not _LEAST_SCALE <= cast(float, scale) <= _MOST_SCALE:
        raise ArgumentError(f"scale is {scale}; it must be a positive number of float32")


def sketch_addresses(index: IndexLane | None) -> tuple[int, ...]:
    """Index keys and their sketch as the kernels take them."""
    return (0,) * 6 if index is None else (index.keys.data_ptr(), *(t.data_ptr() for t in index.sketch()))


def storage_of(lanes: LayerLanes) -> int:
    """The number of the lanes' type. Raises ArgumentError for another than float32 and bfloat16."""
    if lanes.k.dtype not in STORAGE:
        raise ArgumentError(f"the lanes have type {lanes.k.dtype}; they must be float32 or bfloat16")
    return STORAGE[lanes.k.dtype]


def check_spans(spans: Spans, rows: int, block_tokens: int) -> None:
    """Raises ArgumentError if the spans are not those of tensors with so many rows and blocks of so many tokens."""
    if spans.rows != rows or spans.block_tokens != block_tokens:
        raise ArgumentError(
            f"the spans hold {spans.rows} rows in blocks of {spans.block_tokens}; "
            f"the tensors {rows} rows in blocks of {block_tokens}"
        )
    if block_tokens % 16 or not 16 <= block_tokens <= MOST_BLOCK_TOKENS:
        raise ArgumentError(f"block_tokens is {block_tokens}; it must be a multiple of 16, at most {MOST_BLOCK_TOKENS}")


def slots_and_frames(lanes: LayerLanes) -> int:
    """How many places there are that are slots and frames of the same number."""
    frames: int = lanes.k.size(0)
    return frames if lanes.index is None else min(frames, lanes.index.keys.size(0))


def addresses(spans: Spans, places: int) -> tuple[int, ...]:
    """The spans as the kernels take them. places: how many the lanes have, of those that the table names."""
    return (
        spans.num,
        spans.row_begin.data_ptr(),
        spans.start.data_ptr(),
        spans.table.data_ptr(),
        spans.table_begin.data_ptr(),
        spans.positions.size(0),
        spans.table.size(0),
        places,
    )
