"""The loss of the index branch: its value and gradients by other routes, and what gets none."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from freehold.attention import index_kl_loss, select_blocks
from freehold.attention.impl import kl
from freehold.core.errors import ArgumentError

BLOCK = 16


def inputs(total_q: int, total_k: int, heads: int, group: int, dim: int, index_dim: int, dtype=torch.float64, seed=0):
    torch.manual_seed(seed)
    q = torch.randn(total_q, heads * group, dim, dtype=dtype)
    k = torch.randn(total_k, heads, dim, dtype=dtype)
    index_q = torch.randn(total_q, heads, index_dim, dtype=dtype)
    index_k = torch.randn(total_k, index_dim, dtype=dtype)
    return q, k, index_q, index_k


def by_the_letter(q, k, index_q, index_k, positions, block_ids=None):
    """Equations 9 and 10 with everything in memory, for autograd."""
    total_k, heads = k.shape[:2]
    keys = torch.arange(total_k)
    support = (keys <= positions[:, None])[:, None].expand(-1, heads, -1)
    if block_ids is not None:
        chosen = torch.zeros(*block_ids.shape[:2], total_k // BLOCK + 2, dtype=torch.bool)
        chosen.scatter_(2, block_ids.long() % chosen.shape[2], True)  # -1 goes to the last one, which has no key
        support = support & chosen[:, :, :-1].repeat_interleave(BLOCK, 2)[:, :, :total_k]
    grouped = q.view(q.shape[0], heads, -1, q.shape[2])
    logits = torch.einsum("nhgd,thd->nhgt", grouped, k) * q.shape[2] ** -0.5
    teacher = logits.masked_fill(~support[:, :, None], -torch.inf).softmax(-1).mean(2)
    student = torch.einsum("nhd,td->nht", index_q, index_k) * index_q.shape[2] ** -0.5
    log_student = student.masked_fill(~support, -torch.inf).log_softmax(-1)
    terms = torch.where(support, teacher * (teacher.clamp_min(1e-300).log() - log_student), 0.0)
    return terms.sum() / (q.shape[0] * heads)


@settings(max_examples=40, deadline=None)
@given(
    total_q=st.integers(1, 40), past=st.integers(0, 60), heads=st.integers(1, 3), group=st.integers(1, 3),
    topk=st.one_of(st.none(), st.integers(1, 5)), seed=st.integers(0, 99), budget=st.sampled_from([1, 3000, 2**25]),
    tile=st.sampled_from([7, 32, 4096]),
)  # fmt: skip
def test_value_and_gradients_are_those_of_the_equations(total_q, past, heads, group, topk, seed, budget, tile):
    q, k, index_q, index_k = inputs(total_q, past + total_q, heads, group, 8, 6, seed=seed)
    ids = None
    if topk is not None:
        ids = select_blocks(index_q, index_k, query_start=past, block_tokens=BLOCK, topk=topk)
    index_q.requires_grad_(), index_k.requires_grad_()
    wanted = by_the_letter(q, k, index_q, index_k, torch.arange(past, past + total_q), ids)
    wanted_grads = torch.autograd.grad(wanted, (index_q, index_k))
    before = kl._BUDGET, kl._KEY_TILE
    kl._BUDGET, kl._KEY_TILE = budget, tile
    try:
        got = index_kl_loss(q, k, index_q, index_k, query_start=past, block_ids=ids, block_tokens=BLOCK)
    finally:
        kl._BUDGET, kl._KEY_TILE = before
    torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-12)
    for grad, expected in zip(torch.autograd.grad(got, (index_q, index_k)), wanted_grads, strict=True):
        torch.testing.assert_close(grad, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("sparse", [False, True])
def test_gradcheck(sparse):
    q, k, index_q, index_k = inputs(9, 40, 2, 2, 4, 3)
    ids = select_blocks(index_q, index_k, query_start=31, block_tokens=BLOCK, topk=2) if sparse else None

    def loss(index_q, index_k):
        return index_kl_loss(q, k, index_q, index_k, query_start=31, block_ids=ids, block_tokens=BLOCK)

    assert torch.autograd.gradcheck(loss, (index_q.requires_grad_(), index_k.requires_grad_()))


def test_teachers_and_what_projections_read_get_nothing():
    """The whole branch as a layer has it: x is detached before the projections, q and k teach."""
    torch.manual_seed(0)
    x = torch.randn(20, 12, requires_grad=True)
    to_q, to_k, index_to_q, index_to_k = (torch.randn(12, n, requires_grad=True) for n in (16, 8, 12, 6))
    q, k = (x @ to_q).view(20, 4, 4), (x @ to_k).view(20, 2, 4)
    index_q, index_k = (x.detach() @ index_to_q).view(20, 2, 6), x.detach() @ index_to_k
    loss = index_kl_loss(q, k, index_q, index_k)
    grads = torch.autograd.grad(loss, (x, q, k, to_q, to_k, index_to_q, index_to_k), allow_unused=True)
    assert grads[:5] == (None,) * 5
    assert all(bool((g != 0).any()) for g in grads[5:])


def test_a_second_gradient_is_refused():
    q, k = torch.randn(20, 2, 16), torch.randn(20, 1, 16)
    index_q, index_k = torch.randn(20, 1, 8, requires_grad=True), torch.randn(20, 8, requires_grad=True)
    first = torch.autograd.grad(index_kl_loss(q, k, index_q, index_k), (index_q, index_k), create_graph=True)
    with pytest.raises(ArgumentError, match="index_kl_loss is differentiable once"):
        torch.autograd.grad(first[0].square().sum(), index_q)


def test_a_sample_of_positions_is_part_of_the_whole():
    q, k, index_q, index_k = inputs(30, 30, 2, 2, 8, 6)
    each = torch.stack([index_kl_loss(q[i : i + 1], k, index_q[i : i + 1], index_k, query_start=i) for i in range(30)])
    torch.testing.assert_close(index_kl_loss(q, k, index_q, index_k), each.mean())
    some = torch.tensor([29, 3, 17])
    part = index_kl_loss(q[some], k, index_q[some], index_k, positions=some)
    torch.testing.assert_close(part, each[some].mean())


def test_enough_blocks_are_all_causal_keys():
    q, k, index_q, index_k = inputs(30, 30, 2, 2, 8, 6)
    ids = select_blocks(index_q, index_k, query_start=0, block_tokens=BLOCK, topk=2)
    sparse = index_kl_loss(q, k, index_q, index_k, block_ids=ids, block_tokens=BLOCK)
    torch.testing.assert_close(sparse, index_kl_loss(q, k, index_q, index_k))


def test_the_same_distribution_costs_nothing():
    """One head a group, and an index that is the attention itself."""
    q, k, _, _ = inputs(25, 25, 1, 1, 8, 8)
    assert float(index_kl_loss(q, k, q, k[:, 0])) == pytest.approx(0.0, abs=1e-12)


def test_float32_is_near_float64():
    q, k, index_q, index_k = inputs(50, 300, 2, 2, 8, 6)
    exact = index_kl_loss(q, k, index_q, index_k, query_start=250)
    short = index_kl_loss(*(t.float() for t in (q, k, index_q, index_k)), query_start=250)
    assert short.dtype == torch.float32
    assert float(short) == pytest.approx(float(exact), rel=1e-5)


def test_scores_that_are_far_apart_give_no_nan():
    q, k, index_q, index_k = (t * 100 for t in inputs(20, 20, 2, 2, 8, 6, dtype=torch.float32))
    index_q.requires_grad_()
    loss = index_kl_loss(q, k, index_q, index_k)
    assert loss.isfinite()
    assert torch.autograd.grad(loss, index_q)[0].isfinite().all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"positions": torch.tensor([0, 9])}, r"positions go from 0 to 9; there are keys from 0 to 7"),
        ({"positions": torch.tensor([0])}, r"positions has shape \(1,\)"),
        ({"positions": torch.tensor([0.0, 1.0])}, r"type torch\.float32; it must be int64 \(2,\)"),
        ({"query_start": 7}, "query_start is 7"),
        ({"block_ids": torch.zeros(2, 3, 1, dtype=torch.int32)}, r"block_ids has shape \(2, 3, 1\)"),
        ({"block_ids": torch.ones(2, 2, 1, dtype=torch.int32)}, "none after the query's own block"),
        ({"index_scale": 0.0}, "index_scale is 0.0; .* index_dim"),
    ],
)
def test_bad_input_is_named(change, message):
    q, k, index_q, index_k = inputs(2, 8, 2, 2, 8, 6)
    with pytest.raises(ArgumentError, match=message):
        index_kl_loss(q, k, index_q, index_k, **change)


def test_sizes_of_nothing_are_refused():
    q, k, index_q, index_k = inputs(3, 20, 2, 2, 8, 6)
    with pytest.raises(ArgumentError, match="index_dim is 0"):
        index_kl_loss(q, k, index_q[..., :0], index_k[:, :0])
    with pytest.raises(ArgumentError, match=r"must be int32 \(total_q, num_kv_heads, topk\) = \(3, 2, at least 1\)"):
        index_kl_loss(q, k, index_q, index_k, block_ids=torch.zeros(3, 2, 0, dtype=torch.int32), block_tokens=BLOCK)
    with pytest.raises(ArgumentError, match="positions is a list"):
        index_kl_loss(q, k, index_q, index_k, positions=[0, 1, 2])
