"""The gradients of attention over chosen blocks."""

from __future__ import annotations

import torch

from freehold.core.errors import ArgumentError
from freehold.kernels.library import MOST_BLOCK_TOKENS, STORAGE, check, check_whole, native, threads, three_axes

MOST_GROUP = 48
"""Query heads of a KV head that the kernel holds at once."""


def attend_backward(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    out: torch.Tensor,
    grad: torch.Tensor,
    lse: torch.Tensor,
    block_ids: torch.Tensor,
    *,
    query_start: int,
    block_tokens: int,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients for q (total_q, num_q_heads, head_dim), k and v (total_k, num_kv_heads, head_dim), of their type.

    q, k, v: float32 or bfloat16, all three alike. out, lse: what `attend` gave for block_ids int32 (total_q,
    num_kv_heads, topk); grad: the gradient of out, float32. Sums are float32 in one order, whatever the threads. Only
    the chosen blocks are computed with; beside its results it needs memory for one tile a thread.

    Raises ArgumentError for tensors that do not fit, groups of more than 48 heads, or ids out of place.
    """
    (total_q, num_q_heads, head_dim), (total_k, num_kv_heads, _) = three_axes("q", q), three_axes("k", k)
    check_whole("query_start", query_start, 0, 2**62)
    check_whole("block_tokens", block_tokens, 16, MOST_BLOCK_TOKENS)
    if num_kv_heads and num_q_heads // num_kv_heads > MOST_GROUP:
        raise ArgumentError(
            f"num_q_heads is {num_q_heads} and num_kv_heads {num_kv_heads}; the gradient takes at most {MOST_GROUP} "
            "query heads for a KV head; use impl='reference'"
        )
    if q.dtype not in STORAGE:
        raise ArgumentError(f"q has type {q.dtype}; the kernel takes float32 or bfloat16")
    dq, dk, dv = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
    try:
        native().attend_backward(
            check("q", q, q.dtype, total_q, num_q_heads, head_dim),
            check("k", k, q.dtype, total_k, num_kv_heads, head_dim),
            check("v", v, q.dtype, total_k, num_kv_heads, head_dim),
            check("out", out, torch.float32, total_q, num_q_heads, head_dim),
            check("grad", grad, torch.float32, total_q, num_q_heads, head_dim),
            check("lse", lse, torch.float32, total_q, num_q_heads),
            *(t.data_ptr() for t in (dq, dk, dv)),
            STORAGE[q.dtype],
            check("block_ids", block_ids, torch.int32, total_q, num_kv_heads, None),
            block_ids.shape[2],
            query_start,
            total_q,
            total_k,
            num_q_heads,
            num_kv_heads,
            head_dim,
            block_tokens,
            scale,
            threads(),
        )
    except ValueError as error:  # sizes and ids, which the kernel looks at itself
        sizes = f"q {tuple(q.shape)}, k {tuple(k.shape)}, query_start {query_start}, block_tokens {block_tokens}"
        raise ArgumentError(f"{error} ({sizes})") from None
    return dq, dk, dv
