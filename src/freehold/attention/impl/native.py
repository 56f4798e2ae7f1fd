"""The C++ kernels over flat tensors: keys and values are laid into blocks first, as the cache keeps them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from freehold import kernels
from freehold.attention.impl.once import Once
from freehold.core.axes import ceil_div
from freehold.core.blocks import LaneSpec, LayerLanes, Span, Spans
from freehold.core.errors import ArgumentError

_ROWS = 4096
"""Queries at a time: of so many only is there a copy in float32."""


def _check_types(**tensors: torch.Tensor) -> None:
    """Raises ArgumentError for a type that the kernels would have to round."""
    for name, tensor in tensors.items():
        if tensor.dtype not in kernels.library.STORAGE:
            raise ArgumentError(
                f"{name} has type {tensor.dtype}; the native kernels take float32 and bfloat16; convert, "
                "or use impl='reference'"
            )


def _contiguous(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().float().contiguous()


def _queries(total_q: int, total_k: int, query_start: int, block_tokens: int) -> Spans:
    slots = range(ceil_div(total_k, block_tokens))
    return Spans.pack([Span(query_start, total_q, slots)], block_tokens)


def _blocks(k: torch.Tensor, v: torch.Tensor, index_k: torch.Tensor | None, block_tokens: int) -> LayerLanes:
    """Lays flat k, v (total_k, heads, head_dim) and index_k (total_k, index_dim) into blocks of their own type."""
    total_k, num_kv_heads, head_dim = k.shape
    spec = LaneSpec(num_kv_heads, head_dim, None if index_k is None else index_k.shape[1])
    num_slots = ceil_div(total_k, block_tokens)
    lanes = LayerLanes.allocate(spec, num_slots, block_tokens, k.dtype)
    spans = Spans.pack([Span(0, total_k, range(num_slots))], block_tokens)
    kernels.write(lanes, spans, _contiguous(k), _contiguous(v), None if index_k is None else _contiguous(index_k))
    return lanes


def select_blocks(
    index_q: torch.Tensor,
    index_k: torch.Tensor,
    *,
    query_start: int,
    block_tokens: int,
    topk: int,
    local_blocks: int,
    init_blocks: int,
) -> torch.Tensor:
    """See `freehold.attention.select_blocks`."""
    _check_types(index_q=index_q, index_k=index_k)
    nothing = index_k.new_zeros(index_k.shape[0], 1, 2)
    lanes = _blocks(nothing, nothing, index_k, block_tokens)
    spans = _queries(index_q.shape[0], index_k.shape[0], query_start, block_tokens)
    return kernels.select(
        _contiguous(index_q), lanes, spans, topk=topk, local_blocks=local_blocks, init_blocks=init_blocks
    )


def attend_blocks(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    block_ids: torch.Tensor,
    *,
    query_start: int,
    block_tokens: int,
    scale: float,
) -> torch.Tensor:
    """See `freehold.attention.attend_blocks`. Only the blocks that were chosen are laid out."""
    _check_types(q=q, k=k, v=v)
    if torch.is_grad_enabled() and any(t.requires_grad for t in (q, k, v)):
        return _Attend.apply(q, k, v, block_ids.contiguous(), query_start, block_tokens, scale)  # type: ignore[no-any-return, no-untyped-call]
    return _attend(q, k, v, block_ids, query_start, block_tokens, scale)


def _attend(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    block_ids: torch.Tensor,
    query_start: int,
    block_tokens: int,
    scale: float,
    lse: torch.Tensor | None = None,
) -> torch.Tensor:
    used = torch.unique(block_ids[block_ids >= 0]).long()
    slots = torch.full((ceil_div(k.shape[0], block_tokens),), -1, dtype=torch.int32)
    slots[used] = torch.arange(len(used), dtype=torch.int32)
    tokens = (used[:, None] * block_tokens + torch.arange(block_tokens)).flatten()
    tokens = tokens[tokens < k.shape[0]]
    lanes = _blocks(k[tokens], v[tokens], None, block_tokens)
    out = torch.empty(q.shape, dtype=torch.float32)
    for begin in range(0, max(len(q), 1), _ROWS):
        rows = slice(begin, begin + _ROWS)
        some = _contiguous(q[rows])
        spans = _queries(len(some), k.shape[0], query_start + begin, block_tokens)
        spans = replace(spans, table=slots[: len(spans.table)].contiguous())
        kernels.attend(
            some, lanes, spans, block_ids=block_ids[rows].contiguous(), scale=scale,
            lse=None if lse is None else lse[rows], out=out[rows],
        )  # fmt: skip
    return out


def _every_block(total_q: int, num_kv_heads: int, query_start: int, block_tokens: int) -> torch.Tensor:
    """(total_q, num_kv_heads, the blocks of the last query): all that a query sees, as if they had been chosen."""
    local = torch.arange(query_start, query_start + total_q, dtype=torch.int32) // block_tokens
    ids = torch.arange(int(local[-1]) + 1 if total_q else 1, dtype=torch.int32)
    return torch.where(ids <= local[:, None], ids, -1)[:, None].expand(-1, num_kv_heads, -1)


class _Attend(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        block_ids: torch.Tensor,
        query_start: int,
        block_tokens: int,
        scale: float,
    ) -> torch.Tensor:
        lse = torch.empty(q.shape[:2])
        out = _attend(q, k, v, block_ids, query_start, block_tokens, scale, lse)
        ctx.save_for_backward(q, k, v, out, lse, block_ids)
        ctx.where = {"query_start": query_start, "block_tokens": block_tokens, "scale": scale}
        return out

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        q, k, v, out, lse, block_ids = ctx.saved_tensors
        dtype = q.dtype if q.dtype == k.dtype else torch.float32
        stored = [t.detach().to(dtype).contiguous() for t in (q, k, v)]
        dq, dk, dv = kernels.attend_backward(
            stored[0], stored[1], stored[2], out.detach(), grad.detach().float().contiguous(), lse, block_ids,
            **ctx.where,
        )  # fmt: skip
        told = "attention in the kernels is differentiable once: give impl='reference' to differentiate twice"
        gradients = Once.apply(told, 3, dq.to(q.dtype), dk.to(k.dtype), dv.to(v.dtype), q, k, v, grad)  # type: ignore[no-untyped-call]
        return *gradients, None, None, None, None


def dense_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *, query_start: int, scale: float
) -> torch.Tensor:
    """See `freehold.attention.dense_attention`."""
    _check_types(q=q, k=k, v=v)
    block_tokens = 128  # only a layout here: dense attention reads every block
    if torch.is_grad_enabled() and any(t.requires_grad for t in (q, k, v)):
        block_ids = _every_block(q.shape[0], k.shape[1], query_start, block_tokens)
        return attend_blocks(q, k, v, block_ids, query_start=query_start, block_tokens=block_tokens, scale=scale)
    spans = _queries(q.shape[0], k.shape[0], query_start, block_tokens)
    return kernels.attend(_contiguous(q), _blocks(k, v, None, block_tokens), spans, block_ids=None, scale=scale)
