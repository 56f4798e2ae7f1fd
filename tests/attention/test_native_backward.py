"""The kernels' gradients of attention: those of the reference, deterministic, and of nothing but what was read."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from freehold import kernels
from freehold.attention import attend_blocks, dense_attention, select_blocks, sparse_attention
from freehold.core.errors import ArgumentError
from support.instruction_sets import supported


def inputs(total_q: int, past: int, heads: int, group: int, dim: int, dtype=torch.float32, seed=0):
    torch.manual_seed(seed)
    total_k = past + total_q
    q = torch.randn(total_q, heads * group, dim).to(dtype)
    k, v = (torch.randn(total_k, heads, dim).to(dtype) for _ in range(2))
    index = torch.randn(total_q, heads, 8), torch.randn(total_k, 8)
    return q, k, v, *index


def gradients(attend, q, k, v, grad):
    leaves = [t.detach().clone().requires_grad_() for t in (q, k, v)]
    out = attend(*leaves)
    return out.detach(), torch.autograd.grad(out, leaves, grad.to(out.dtype))


@settings(max_examples=60, deadline=None)
@given(
    isa=st.sampled_from(supported()), total_q=st.integers(1, 70), past=st.integers(0, 90), heads=st.integers(1, 3),
    group=st.integers(1, 5), dim=st.sampled_from([8, 16, 24, 64, 80]), block=st.sampled_from([16, 32, 48]),
    topk=st.integers(1, 6), dtype=st.sampled_from([torch.float32, torch.bfloat16]), threads=st.integers(1, 3),
    seed=st.integers(0, 99),
)  # fmt: skip
def test_gradients_are_those_of_the_reference(isa, total_q, past, heads, group, dim, block, topk, dtype, threads, seed):
    q, k, v, index_q, index_k = inputs(total_q, past, heads, group, dim, dtype, seed)
    where = {"query_start": past, "block_tokens": block}
    ids = select_blocks(index_q, index_k, topk=topk, **where)
    grad = torch.randn(q.shape)
    exact = [t.double() for t in (q, k, v)]
    _, wanted = gradients(lambda q, k, v: attend_blocks(q, k, v, ids, **where, impl="reference"), *exact, grad)
    kernels.use_isa(isa)
    before = kernels.threads()
    kernels.set_threads(threads)
    try:
        _, got = gradients(lambda q, k, v: attend_blocks(q, k, v, ids, **where, impl="native"), q, k, v, grad)
    finally:
        kernels.set_threads(before)
        kernels.use_isa(supported()[-1])
    # In bfloat16 the forward pass rounds weights and the results are rounded; sums are float32 either way.
    relative = 2e-5 if dtype == torch.float32 else 3e-2
    for name, mine, theirs in zip("qkv", got, wanted, strict=True):
        assert mine.dtype == dtype
        assert (mine.double() - theirs).norm() <= relative * theirs.norm() + 1e-6, name


def test_dense_attention_has_gradients_too():
    q, k, v, _, _ = inputs(150, 200, 2, 3, 16)
    grad = torch.randn(q.shape)
    exact = [t.double() for t in (q, k, v)]
    _, wanted = gradients(lambda *t: dense_attention(*t, query_start=200, impl="reference"), *exact, grad)
    _, got = gradients(lambda *t: dense_attention(*t, query_start=200, impl="native"), q, k, v, grad)
    for mine, theirs in zip(got, wanted, strict=True):
        assert (mine - theirs).norm() <= 2e-5 * theirs.norm()


@pytest.mark.parametrize("rows", [1, 7, 64, 299])
def test_the_same_bits_however_many_queries_are_widened_at_a_time(monkeypatch, rows):
    q, k, v, index_q, index_k = inputs(300, 500, 2, 4, 32, torch.bfloat16)
    ids = select_blocks(index_q, index_k, query_start=500, block_tokens=32, topk=4)
    grad, calls, attend = torch.randn(q.shape), [], kernels.attend

    def counting(q, *others, **named):
        calls.append(len(q))
        return attend(q, *others, **named)

    def run(*t):
        return attend_blocks(*t, ids, query_start=500, block_tokens=32, impl="native")

    wanted, wanted_grads = gradients(run, q, k, v, grad)
    monkeypatch.setattr("freehold.attention.impl.native._ROWS", rows)
    monkeypatch.setattr(kernels, "attend", counting)
    got, grads = gradients(run, q, k, v, grad)
    assert max(calls) == rows
    assert sum(calls) == 300
    assert torch.equal(got, wanted)
    assert all(map(torch.equal, grads, wanted_grads))


def test_the_same_bits_with_any_number_of_threads():
    q, k, v, index_q, index_k = inputs(300, 500, 2, 4, 32)
    grad, before, seen = torch.randn(q.shape), kernels.threads(), []
    try:
        for threads in (1, 2, 5):
            kernels.set_threads(threads)
            attend = lambda q, k, v: sparse_attention(  # noqa: E731
                q, k, v, index_q, index_k, query_start=500, block_tokens=32, topk=4, impl="native"
            )
            seen.append(gradients(attend, q, k, v, grad)[1])
    finally:
        kernels.set_threads(before)
    for others in seen[1:]:
        assert all(torch.equal(a, b) for a, b in zip(seen[0], others, strict=True))


def test_tokens_that_nobody_read_get_zeros():
    q, k, v, _, _ = inputs(1, 63, 2, 1, 16)
    ids = torch.tensor([[[0, 3], [1, 3]]], dtype=torch.int32)
    attend = lambda q, k, v: attend_blocks(q, k, v, ids, query_start=63, block_tokens=16, impl="native")  # noqa: E731
    _, (_, dk, dv) = gradients(attend, q, k, v, torch.ones(q.shape))
    for grad in (dk, dv):
        reached = grad.abs().amax(dim=-1).view(4, 16, 2).amax(dim=1) > 0  # (block, KV head)
        assert reached.tolist() == [[True, False], [False, True], [False, False], [True, True]]


@pytest.mark.parametrize("power", [1, 2])
@pytest.mark.parametrize("which", [0, 1, 2])
def test_a_second_gradient_is_refused(power, which):
    # Below a sum the gradient that comes in is a constant: torch's once_differentiable then says nothing.
    tensors = [torch.randn(20, 2, 16, requires_grad=True) for _ in range(3)]
    out = dense_attention(*tensors, query_start=0, impl="native")
    first = torch.autograd.grad((out**power).sum(), tensors, create_graph=True)
    assert first[which].requires_grad
    with pytest.raises(ArgumentError, match="differentiable once: give impl='reference'"):
        torch.autograd.grad(first[which].square().sum(), tensors, allow_unused=True)


def test_bad_input_is_named():
    q, k, v, _, _ = inputs(4, 0, 2, 1, 16)
    ids, row = torch.zeros(4, 2, 1, dtype=torch.int32), torch.zeros(4, 2)
    where = {"query_start": 0, "block_tokens": 16, "scale": 0.25}
    with pytest.raises(ArgumentError, match="k has type"):
        kernels.attend_backward(q, k.bfloat16(), v, q, q, row, ids, **where)
    with pytest.raises(ArgumentError, match=r"lse has shape \(4,\)"):
        kernels.attend_backward(q, k, v, q, q, row[:, 0].contiguous(), ids, **where)
    with pytest.raises(ArgumentError, match="block_ids must ascend"):
        kernels.attend_backward(q, k, v, q, q, row, ids + 1, **where)
    with pytest.raises(ArgumentError, match=r"query_start 1"):
        kernels.attend_backward(q, k, v, q, q, row, ids, **{**where, "query_start": 1})
