"""bfloat16 attention errs no more than eager bfloat16 attention does, measured against float64."""

from __future__ import annotations

import pytest
import torch

from freehold.attention import attend_blocks, select_blocks


def eager_bf16(q, k, v, mask) -> torch.Tensor:
    """What an eager model in bfloat16 computes: float32 softmax, weights rounded to bfloat16, bfloat16 products."""
    scores = torch.einsum("nhgd,thd->nhgt", q, k) * q.shape[-1] ** -0.5
    weights = scores.float().masked_fill(~mask, -torch.inf).softmax(dim=-1).bfloat16()
    return torch.einsum("nhgt,thd->nhgd", weights, v)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("sharpness", [1.0, 4.0])
def test_error_is_at_most_that_of_eager(seed, sharpness):
    torch.manual_seed(seed)
    n, total_k, heads, group, dim, block, topk = 64, 1500, 2, 4, 128, 128, 4
    q = (sharpness * torch.randn(n, heads * group, dim)).bfloat16()
    k, v = torch.randn(total_k, heads, dim).bfloat16(), torch.randn(total_k, heads, dim).bfloat16()
    where = {"query_start": total_k - n, "block_tokens": block}
    ids = select_blocks(torch.randn(n, heads, 32), torch.randn(total_k, 32), topk=topk, **where)
    exact = attend_blocks(q.double(), k.double(), v.double(), ids, impl="reference", **where)
    ours = attend_blocks(q, k, v, ids, impl="native", **where)
    block_of = torch.arange(total_k) // block
    chosen = (ids[..., None] == block_of).any(dim=2)
    seen = torch.arange(total_k) <= torch.arange(total_k - n, total_k)[:, None]
    mask = (chosen & seen[:, None])[:, :, None]
    eager = eager_bf16(q.view(n, heads, group, dim), k, v, mask).reshape(n, -1, dim)
    error, allowed = (ours - exact).abs(), (eager.double() - exact).abs()
    assert error.max() <= allowed.max()
    assert error.pow(2).mean() <= allowed.pow(2).mean()
