"""What the operators take, and what they refuse: by name, and the same with each implementation."""

from __future__ import annotations

import pytest
import torch

from freehold.attention import attend_blocks, dense_attention, index_kl_loss, select_blocks, sparse_attention
from freehold.core.errors import ArgumentError

IMPLS = ("reference", "native")
LAST = {"query_start": 296}
"""Where four queries stand at the end of 300 keys."""


def tensors(*, dim: int = 16, heads: int = 2) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    return torch.randn(4, heads, dim), torch.randn(300, 2, dim), torch.randn(300, 2, dim)


@pytest.mark.parametrize("impl", IMPLS)
def test_tensors_need_not_be_contiguous(impl):
    q, k, v = tensors(heads=4)
    ids = select_blocks(q[:, :2], k[:, 0], block_tokens=16, topk=3, **LAST)
    *scattered, scattered_ids = (t.permute(2, 1, 0).contiguous().permute(2, 1, 0) for t in (q, k, v, ids))
    wanted = dense_attention(q, k, v, **LAST, impl=impl)
    torch.testing.assert_close(dense_attention(*scattered, **LAST, impl=impl), wanted)
    wanted = attend_blocks(q, k, v, ids, block_tokens=16, **LAST, impl=impl)
    torch.testing.assert_close(attend_blocks(*scattered, scattered_ids, block_tokens=16, **LAST, impl=impl), wanted)


@pytest.mark.parametrize("impl", IMPLS)
def test_block_ids_without_a_place_are_refused(impl):
    none = torch.zeros(4, 2, 0, dtype=torch.int32)
    with pytest.raises(ArgumentError, match=r"block_ids has shape \(4, 2, 0\)"):
        attend_blocks(*tensors(), none, **LAST, impl=impl)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("ids", [(0, -1, 1), (-1, 0, 1), (-1, -1, -1), (0, 1, 1), (1, 0, -1), (0, 1, -2), (0, 1, 99)])
def test_block_ids_out_of_place_are_refused(impl, ids):
    """Above all one behind a -1: where the row ends for one implementation, another one would read on."""
    q, k, v = tensors()
    chosen = torch.tensor([[(0, 1, 2), (0, 1, -1)]] * 4, dtype=torch.int32)
    attend_blocks(q, k, v, chosen, block_tokens=16, **LAST, impl=impl)
    chosen[2, 1] = torch.tensor(ids)
    with pytest.raises(ArgumentError, match="block_ids must be ascending"):
        attend_blocks(q, k, v, chosen, block_tokens=16, **LAST, impl=impl)
    with pytest.raises(ArgumentError, match="block_ids must be ascending"):
        index_kl_loss(q, k, q, k[:, 0], block_ids=chosen, block_tokens=16, **LAST)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("block_tokens", [2**17, 2**27, 2**31, 2**40, 2**62, 0, 24, 32.0, None])
def test_blocks_of_a_size_that_no_kernel_takes_are_refused(impl, block_tokens):
    q, k, v = tensors()
    with pytest.raises(ArgumentError, match="block_tokens is"):
        attend_blocks(q, k, v, torch.zeros(4, 2, 1, dtype=torch.int32), block_tokens=block_tokens, **LAST, impl=impl)
    with pytest.raises(ArgumentError, match="block_tokens is"):
        select_blocks(q, k[:, 0], block_tokens=block_tokens, **LAST, impl=impl)


@pytest.mark.parametrize("impl", [*IMPLS, "auto"])
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("query_start", 1.5),
        ("query_start", None),
        ("topk", 2.5),
        ("topk", None),
        ("topk", 2**31),
        ("local_blocks", True),
    ],
)
def test_sizes_that_are_no_whole_numbers_are_refused_by_name(impl, name, value):
    q, k, _ = tensors()
    with pytest.raises(ArgumentError, match=f"{name} is {value}"):
        select_blocks(q, k[:, 0], **{**LAST, "topk": 2, name: value}, impl=impl)


@pytest.mark.parametrize("impl", [*IMPLS, "auto"])
def test_what_is_no_tensor_of_real_numbers_is_refused_by_name(impl):
    q, k, v = tensors()
    with pytest.raises(ArgumentError, match=r"q has type torch\.complex64"):
        dense_attention(*(t.to(torch.complex64) for t in (q, k, v)), **LAST, impl=impl)
    with pytest.raises(ArgumentError, match="index_k is a ndarray"):
        select_blocks(q, k[:, 0].numpy(), **LAST, impl=impl)
    with pytest.raises(ArgumentError, match="v is a ndarray"):
        sparse_attention(q, k, v.numpy(), q, k[:, 0], **LAST, impl=impl)
    with pytest.raises(ArgumentError, match="block_ids is a list"):
        attend_blocks(q, k, v, [[0]], **LAST, impl=impl)


def test_a_gradient_of_too_large_a_group_says_how_many_it_takes():
    q, k, v = torch.randn(4, 98, 16, requires_grad=True), *torch.randn(2, 300, 2, 16)
    with pytest.raises(ArgumentError, match="at most 48"):
        dense_attention(q, k, v, **LAST).sum().backward()


@pytest.mark.parametrize("impl", IMPLS)
def test_axes_without_extent_are_refused_by_name(impl):
    q, k, v = tensors()
    with pytest.raises(ArgumentError, match="num_q_heads is 0"):
        dense_attention(q[:, :0], k, v, **LAST, impl=impl)
    with pytest.raises(ArgumentError, match="num_kv_heads is 0"):
        dense_attention(q, k[:, :0], v[:, :0], **LAST, impl=impl)
    with pytest.raises(ArgumentError, match="head_dim is 0"):
        dense_attention(q[..., :0], k[..., :0], v[..., :0], **LAST, impl=impl)
    with pytest.raises(ArgumentError, match="num_index_heads is 0"):
        select_blocks(q[:, :0], k[:, 0], **LAST, impl=impl)
    with pytest.raises(ArgumentError, match="index_dim is 0"):
        select_blocks(q[..., :0], k[:, 0, :0], **LAST, impl=impl)


@pytest.mark.parametrize("impl", IMPLS)
def test_no_queries_give_nothing(impl):
    q, k, v = tensors()
    assert select_blocks(q[:0], k[:, 0], query_start=300, topk=3, impl=impl).shape == (0, 2, 3)
    assert dense_attention(q[:0], k, v, query_start=300, impl=impl).shape == (0, 2, 16)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("scale", [0.0, -1.0, float("nan"), float("inf"), 1e-60, 1e60, "1"])
def test_a_scale_that_is_no_positive_number_of_float32_is_refused(impl, scale):
    with pytest.raises(ArgumentError, match="scale is"):
        dense_attention(*tensors(), **LAST, scale=scale, impl=impl)


@pytest.mark.parametrize("impl", [*IMPLS, "auto"])
def test_types_that_one_tensor_alone_would_be_rounded_from_are_refused(impl):
    q, k, v = tensors()
    for mixed in ((q, k.bfloat16(), v), (q, k, v.bfloat16()), (q.double(), k, v), (q, k.double(), v.double())):
        with pytest.raises(ArgumentError, match=f"q has type {mixed[0].dtype}, k {mixed[1].dtype}"):
            dense_attention(*mixed, **LAST, impl=impl)


def test_the_kernels_refuse_types_that_they_would_round():
    q, k, v = tensors()
    with pytest.raises(ArgumentError, match="q has type"):
        dense_attention(q.double(), k.double(), v.double(), **LAST, impl="native")
    with pytest.raises(ArgumentError, match="index_q has type"):
        select_blocks(q.double(), k[:, 0], **LAST, impl="native")


def test_auto_looks_at_the_index_branch_too():
    q, k, v = tensors()
    index_q, index_k = q.double(), k[:, 0].double()
    options = {"block_tokens": 16, "topk": 3, **LAST}
    wanted = sparse_attention(q, k, v, index_q, index_k, **options, impl="reference")
    assert torch.equal(sparse_attention(q, k, v, index_q, index_k, **options), wanted)


def test_an_index_branch_of_another_shape_is_refused_by_name():
    q, k, v = tensors()
    with pytest.raises(ArgumentError, match=r"index_q has shape \(16,\)"):
        sparse_attention(q, k, v, q[0, 0], k[:, 0], **LAST)
    with pytest.raises(ArgumentError, match="total_q differs: q has 4, index_q has 3"):
        sparse_attention(q, k, v, q[:3], k[:, 0], **LAST)
    with pytest.raises(ArgumentError, match="total_k differs: k has 300, index_k has 301"):
        sparse_attention(q, k, v, q, torch.randn(301, 16), **LAST)
