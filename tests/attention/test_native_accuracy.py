"""Attention errs no more than eager attention of the same type does, measured against float64."""

from __future__ import annotations

import pytest
import torch

from freehold import kernels
from freehold.attention import attend_blocks, dense_attention, select_blocks
from support.instruction_sets import supported


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


def eager_fp32(q, k, v, mask) -> torch.Tensor:
    """What an eager model in float32 computes."""
    scores = torch.einsum("nhgd,thd->nhgt", q, k) * q.shape[-1] ** -0.5
    return torch.einsum("nhgt,thd->nhgd", scores.masked_fill(~mask, -torch.inf).softmax(dim=-1), v)


@pytest.fixture(params=supported())
def instruction_set(request):
    before = kernels.isa()
    kernels.use_isa(request.param)
    yield request.param
    kernels.use_isa(before)


@pytest.mark.usefixtures("instruction_set")
@pytest.mark.parametrize("block", [16, 128, 512])
@pytest.mark.parametrize("shift", [0.0, 10.0])
@pytest.mark.parametrize("sharpness", [1.0, 4.0])
def test_error_in_float32_is_at_most_that_of_eager(block, sharpness, shift):
    """Dense and over chosen blocks. Values that are off by a constant are where a long chain of additions errs most."""
    torch.manual_seed(7)
    n, total_k, heads, group, dim, topk = 64, 1400, 2, 4, 128, 1024 // block
    q, k = sharpness * torch.randn(n, heads * group, dim), torch.randn(total_k, heads, dim)
    v = torch.randn(total_k, heads, dim) + shift
    where = {"query_start": total_k - n}
    ids = select_blocks(torch.randn(n, heads, 32), torch.randn(total_k, 32), topk=topk, block_tokens=block, **where)
    seen = torch.arange(total_k) <= torch.arange(total_k - n, total_k)[:, None]
    chosen = (ids[..., None] == torch.arange(total_k) // block).any(dim=2) & seen[:, None]
    for mask in (seen[:, None].expand_as(chosen), chosen):
        if mask is chosen:
            ours = attend_blocks(q, k, v, ids, block_tokens=block, impl="native", **where)
            exact = (q.double(), k.double(), v.double(), ids)
            wanted = attend_blocks(*exact, block_tokens=block, impl="reference", **where)
        else:
            ours = dense_attention(q, k, v, impl="native", **where)
            wanted = dense_attention(q.double(), k.double(), v.double(), impl="reference", **where)
        eager = eager_fp32(q.view(n, heads, group, dim), k, v, mask[:, :, None]).reshape(n, -1, dim)
        error, allowed = (ours - wanted).abs(), (eager.double() - wanted).abs()
        assert error.pow(2).mean().sqrt() <= allowed.pow(2).mean().sqrt()
        assert error.max() <= allowed.max()
