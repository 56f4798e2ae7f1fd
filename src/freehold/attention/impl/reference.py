"""The oracle: MSA in plain torch, readable beside the paper's equations, differentiable, on any device.

Queries are taken in chunks, so that no tensor of total_q x total_k for all heads is ever made.
"""

from __future__ import annotations

import torch

from freehold.core.axes import ceil_div

_BUDGET = 1 << 26
"""Most elements of an intermediate tensor."""


def block_scores(
    index_q: torch.Tensor, index_k: torch.Tensor, positions: torch.Tensor, block_tokens: int
) -> torch.Tensor:
    """M[i, r, b] = max over visible j in block b of q_idx[i, r] . k_idx[j]: (total_q, num_index_heads, num_blocks).

    float64 (Eq. 6 without its scale, which cannot change an order); -inf where a block has no visible key. The
    mask comes before the maximum, so a future key cannot lift its block. A score that is NaN counts as -inf.
    """
    dots = torch.einsum("ihd,jd->ihj", index_q.double(), index_k.double())
    return _pool(dots, positions[:, None], block_tokens)


def _pool(dots: torch.Tensor, positions: torch.Tensor, block_tokens: int) -> torch.Tensor:
    """dots (..., total_k) -> each block's largest visible one (..., num_blocks); positions (...) of the queries."""
    total_k = dots.shape[-1]
    future = torch.arange(total_k, device=dots.device) > positions[..., None]
    dots = dots.masked_fill(future | dots.isnan(), -torch.inf)
    num_blocks = ceil_div(total_k, block_tokens)
    dots = torch.nn.functional.pad(dots, (0, num_blocks * block_tokens - total_k), value=-torch.inf)
    return dots.view(*dots.shape[:-1], num_blocks, block_tokens).amax(dim=-1)


def _dots_in_order(index_q: torch.Tensor, index_k: torch.Tensor) -> torch.Tensor:
    """q . k in float64 with one order of additions for all: (rows, total_k) for index_q (rows, index_dim).

    A library's product may sum two equal keys in different orders, and break their tie by its rounding. Here eight
    chains run over the dimensions and are then halved; the products of float32 numbers are exact.
    """
    pad = -index_q.shape[1] % 8
    q = torch.nn.functional.pad(index_q.double(), (0, pad)).view(index_q.shape[0], 1, -1, 8)
    k = torch.nn.functional.pad(index_k.double(), (0, pad)).view(1, index_k.shape[0], -1, 8)
    lanes = q[:, :, 0] * k[:, :, 0]
    for step in range(1, q.shape[2]):
        lanes = lanes + q[:, :, step] * k[:, :, step]
    for half in (4, 2, 1):
        lanes = lanes[..., :half] + lanes[..., half:]
    return lanes[..., 0]


def _settle_close(
    scores: torch.Tensor,
    index_q: torch.Tensor,
    index_k: torch.Tensor,
    positions: torch.Tensor,
    block_tokens: int,
    topk: int,
) -> None:
    """Scores again, in one order of additions, the rows whose choice hangs on less than that order may change."""
    num_blocks = scores.shape[2]
    if num_blocks <= topk:
        return
    size = index_q.double().norm(dim=-1) * index_k.double().norm(dim=-1).max()
    best = scores.topk(min(num_blocks, topk + 1), dim=-1).values
    # Forced blocks take places too, so any of the gaps around the last places may be the one that decides.
    gaps = (best[..., :-1] - best[..., 1:]).nan_to_num(nan=torch.inf).amin(dim=-1)
    close = ((gaps <= 2.0**-40 * size) | ~size.isfinite()).nonzero()
    step = max(1, _BUDGET // max(1, 8 * index_k.shape[0]))
    for part in close.split(step) if len(close) else ():
        row, head = part.unbind(dim=1)
        scores[row, head] = _pool(_dots_in_order(index_q[row, head], index_k), positions[row], block_tokens)


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
    total_q, num_index_heads, _ = index_q.shape
    chosen = torch.full((total_q, num_index_heads, topk), -1, dtype=torch.int32, device=index_q.device)
    rows = max(1, _BUDGET // max(1, num_index_heads * index_k.shape[0]))
    for first in range(0, total_q, rows):
        chunk = slice(first, min(first + rows, total_q))
        positions = torch.arange(chunk.start, chunk.stop, device=index_q.device) + query_start
        visible_k = query_start + chunk.stop
        q, k = index_q[chunk].detach(), index_k[:visible_k].detach()
        scores = block_scores(q, k, positions, block_tokens)
        _settle_close(scores, q, k, positions, block_tokens, topk)
        chosen[chunk] = top_blocks(scores, positions // block_tokens, topk, local_blocks, init_blocks)
    return chosen


def top_blocks(
    scores: torch.Tensor, local: torch.Tensor, topk: int, local_blocks: int, init_blocks: int
) -> torch.Tensor:
    """The topk best blocks of scores (rows, heads, num_blocks), given each row's own block `local` (rows,)."""
    rows, heads, num_blocks = scores.shape
    block = torch.arange(num_blocks, device=scores.device)
    distance = (local[:, None] - block)[:, None, :]  # (rows, 1, num_blocks); negative: in the future
    forced = ((distance < local_blocks) | (block < init_blocks)) & (distance >= 0)
    visible = (distance >= 0).expand(rows, heads, num_blocks)
    # A score may be infinite too; only forced blocks stand at infinity. The stable sort leaves ties in ascending
    # order of block id.
    order = (
        scores.clamp(max=torch.finfo(scores.dtype).max).masked_fill(forced, torch.inf).masked_fill(~visible, -torch.inf)
    )
    ids = order.sort(dim=-1, descending=True, stable=True).indices[..., :topk]
    ids = ids.masked_fill(~visible.gather(-1, ids), num_blocks).sort(dim=-1).values
    ids = ids.masked_fill(ids == num_blocks, -1)
    return torch.nn.functional.pad(ids, (0, topk - ids.shape[-1]), value=-1).to(torch.int32)


def tokens_of(
    block_ids: torch.Tensor, positions: torch.Tensor, block_tokens: int, total_k: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The tokens of chosen blocks, int64 (rows, num_kv_heads, topk * block_tokens), and which of them the queries at
    `positions` (rows,) see; those that are not seen may stand for any token."""
    tokens = block_ids[..., None] * block_tokens + torch.arange(block_tokens, device=block_ids.device)
    seen = (block_ids[..., None] >= 0) & (tokens <= positions[:, None, None, None])
    return tokens.flatten(2).clamp(0, total_k - 1), seen.flatten(2)


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
    """O[i, h] = softmax(scale * q[i, h] . K[I]) V[I], I the visible tokens of the blocks of h's group (Eq. 8)."""
    total_q, num_q_heads, head_dim = q.shape
    total_k, num_kv_heads, _ = k.shape
    group = num_q_heads // num_kv_heads
    width = block_ids.shape[-1] * block_tokens
    rows = max(1, _BUDGET // max(1, num_kv_heads * width * head_dim))
    q, k, v = (t.float() if t.dtype != torch.float64 else t for t in (q, k, v))
    pieces = []
    for first in range(0, total_q, rows):
        ids = block_ids[first : first + rows].long()  # (rows, num_kv_heads, topk)
        n = ids.shape[0]
        positions = torch.arange(first, first + n, device=q.device) + query_start
        tokens, seen = tokens_of(ids, positions, block_tokens, total_k)
        head = torch.arange(num_kv_heads, device=q.device)[None, :, None]
        queries = q[first : first + n].view(n, num_kv_heads, group, head_dim)
        logits = torch.einsum("nhgd,nhtd->nhgt", queries, k[tokens, head]) * scale
        weights = logits.masked_fill(~seen[:, :, None], -torch.inf).softmax(dim=-1)
        out = torch.einsum("nhgt,nhtd->nhgd", weights, v[tokens, head])
        pieces.append(out.reshape(n, num_q_heads, head_dim))
    return torch.cat(pieces) if pieces else torch.empty_like(q)


def dense_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *, query_start: int, scale: float
) -> torch.Tensor:
    """Causal attention of every query to every key at or before its position."""
    total_q, num_q_heads, head_dim = q.shape
    total_k, num_kv_heads, _ = k.shape
    group = num_q_heads // num_kv_heads
    rows = max(1, _BUDGET // max(1, num_q_heads * total_k))
    q, k, v = (t.float() if t.dtype != torch.float64 else t for t in (q, k, v))
    pieces = []
    for first in range(0, total_q, rows):
        queries = q[first : first + rows]
        n = queries.shape[0]
        positions = torch.arange(first, first + n, device=q.device) + query_start
        future = torch.arange(total_k, device=q.device)[None, :] > positions[:, None]  # (n, total_k)
        logits = torch.einsum("nhgd,thd->nhgt", queries.view(n, num_kv_heads, group, head_dim), k) * scale
        weights = logits.masked_fill(future[:, None, None, :], -torch.inf).softmax(dim=-1)
        pieces.append(torch.einsum("nhgt,thd->nhgd", weights, v).reshape(n, num_q_heads, head_dim))
    return torch.cat(pieces) if pieces else torch.empty_like(q)
