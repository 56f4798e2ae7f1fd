"""Where attention really goes: what each block gets of it, and the blocks that get most. To judge a choice by."""

from __future__ import annotations

import torch
from torch import Tensor

from freehold.core.axes import ceil_div


def block_masses(q: Tensor, k: Tensor, positions: Tensor, block_tokens: int, scale: float) -> Tensor:
    """How much attention each block gets, the mean over a group's heads: (rows, num_kv_heads, num_blocks).

    q (rows, num_q_heads, head_dim) at `positions` (rows,), k (total_k, num_kv_heads, head_dim) from position 0 on.
    Memory grows with rows * num_q_heads * total_k: take some rows at a time.
    """
    rows, total_k, heads = q.shape[0], k.shape[0], k.shape[1]
    logits = torch.einsum("nhgd,thd->nhgt", q.view(rows, heads, -1, q.shape[2]), k) * scale
    future = torch.arange(total_k) > positions[:, None]
    weights = logits.masked_fill_(future[:, None, None], -torch.inf).softmax(dim=-1).mean(dim=2)
    weights = torch.nn.functional.pad(weights, (0, ceil_div(total_k, block_tokens) * block_tokens - total_k))
    return weights.view(rows, heads, -1, block_tokens).sum(dim=-1)
