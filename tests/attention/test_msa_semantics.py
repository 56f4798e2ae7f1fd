"""What MiniMax Sparse Attention means, one property a test, for every implementation of it."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from hypothesis import strategies as st

from freehold.attention import attend_blocks, dense_attention, select_blocks, sparse_attention
from freehold.attention.impl.reference import block_scores
from support.proofs import tried

IMPLS = ("reference", "native")
impls = pytest.mark.parametrize("impl", IMPLS)


def draw(
    total_q: int,
    total_k: int | None = None,
    *,
    num_q_heads: int = 4,
    num_kv_heads: int = 2,
    head_dim: int = 32,
    index_dim: int = 32,
    seed: int = 0,
) -> dict[str, torch.Tensor]:
    """Random fp32 inputs q, k, v, index_q, index_k of one sequence; total_k is total_q if None."""
    generator = torch.Generator().manual_seed(seed)
    total_k = total_q if total_k is None else total_k
    shapes = {
        "q": (total_q, num_q_heads, head_dim),
        "k": (total_k, num_kv_heads, head_dim),
        "v": (total_k, num_kv_heads, head_dim),
        "index_q": (total_q, num_kv_heads, index_dim),
        "index_k": (total_k, index_dim),
    }
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def select(x: dict[str, torch.Tensor], **options: Any) -> torch.Tensor:
    return select_blocks(x["index_q"], x["index_k"], **options)


def attend(x: dict[str, torch.Tensor], block_ids: torch.Tensor, **options: Any) -> torch.Tensor:
    return attend_blocks(x["q"], x["k"], x["v"], block_ids, **options)


def sparse(x: dict[str, torch.Tensor], **options: Any) -> torch.Tensor:
    return sparse_attention(x["q"], x["k"], x["v"], x["index_q"], x["index_k"], **options)


def as_sets(block_ids: torch.Tensor) -> list[list[set[int]]]:
    """[row][head] -> the ids chosen."""
    return [[set(head) - {-1} for head in row] for row in block_ids.tolist()]


# ---------------------------------------------------------------------- where sparse and dense must agree


@impls
@pytest.mark.parametrize("total", [1, 15, 16, 17, 63, 64])
def test_contexts_up_to_topk_blocks_are_exactly_dense(total: int, impl: str) -> None:
    x = draw(total)
    chosen = sparse(x, query_start=0, block_tokens=16, topk=4, impl=impl)
    dense = dense_attention(x["q"], x["k"], x["v"], query_start=0, impl=impl)
    torch.testing.assert_close(chosen, dense, atol=2e-6, rtol=0)


@impls
@pytest.mark.parametrize("total", [1, 100, 333])
def test_topk_of_all_blocks_is_dense_at_any_length(total: int, impl: str) -> None:
    x = draw(total, seed=1)
    chosen = sparse(x, query_start=0, block_tokens=16, topk=-(-total // 16), impl=impl)
    dense = dense_attention(x["q"], x["k"], x["v"], query_start=0, impl=impl)
    torch.testing.assert_close(chosen, dense, atol=2e-6, rtol=0)


@impls
def test_one_token_beyond_the_dense_window_leaves_a_block_out(impl: str) -> None:
    x = draw(65, seed=2)
    chosen = sparse(x, query_start=0, block_tokens=16, topk=4, impl=impl)
    dense = dense_attention(x["q"], x["k"], x["v"], query_start=0, impl=impl)
    torch.testing.assert_close(chosen[:64], dense[:64], atol=2e-6, rtol=0)
    assert float((chosen[64] - dense[64]).abs().max()) > 1e-2


@impls
def test_dense_attention_is_softmax_over_the_past(impl: str) -> None:
    """By another route: torch's own attention."""
    x = draw(77, seed=3, num_q_heads=6, num_kv_heads=3)
    heads_first = {name: x[name].transpose(0, 1) for name in ("q", "k", "v")}
    wanted = torch.nn.functional.scaled_dot_product_attention(
        heads_first["q"].double(),
        heads_first["k"].double().repeat_interleave(2, dim=0),
        heads_first["v"].double().repeat_interleave(2, dim=0),
        is_causal=True,
    ).transpose(0, 1)
    out = dense_attention(x["q"], x["k"], x["v"], query_start=0, impl=impl)
    torch.testing.assert_close(out.double(), wanted, atol=2e-6, rtol=0)


# ---------------------------------------------------------------------------------------------- selection


@impls
def test_every_index_head_chooses_for_itself(impl: str) -> None:
    """One strong key in block 1 along the first axis, one in block 2 along the second."""
    x = draw(16 * 6, num_kv_heads=2, index_dim=32)
    x["index_k"].zero_()
    x["index_q"].zero_()
    x["index_k"][20, 0] = x["index_k"][40, 1] = 1.0
    x["index_q"][:, 0, 0] = x["index_q"][:, 1, 1] = 1.0
    block_ids = select(x, query_start=0, block_tokens=16, topk=2, impl=impl)
    assert as_sets(block_ids[-1:]) == [[{1, 5}, {2, 5}]]


@impls
def test_query_heads_read_the_blocks_of_their_own_group(impl: str) -> None:
    """The output of a head is the mean value of its group's block, as all scores are equal."""
    x = draw(64, num_q_heads=4, num_kv_heads=2)
    x["q"].zero_()
    x["v"] = (torch.arange(64).view(64, 1, 1) // 16).float().expand(64, 2, 32).contiguous()
    block_ids = torch.tensor([[[0], [2]]], dtype=torch.int32)
    x["q"] = x["q"][63:]
    out = attend(x, block_ids, query_start=63, block_tokens=16, impl=impl)
    torch.testing.assert_close(out[0, :, 0], torch.tensor([0.0, 0.0, 2.0, 2.0]), atol=1e-6, rtol=0)


@impls
def test_the_score_of_a_block_is_its_largest_visible_key(impl: str) -> None:
    """Not its sum or mean: one high key beats a block of middling ones."""
    x = draw(16 * 4, num_kv_heads=1)
    x["index_q"].fill_(1.0)
    x["index_k"].fill_(0.0)
    x["index_k"][16:32] = 0.5
    x["index_k"][7] = 0.6
    assert as_sets(select(x, query_start=0, block_tokens=16, topk=2, impl=impl)[-1:]) == [[{0, 3}]]


def test_future_tokens_do_not_change_block_scores() -> None:
    """The mask comes before the maximum, inside the query's own block too."""
    x = draw(64)
    position = torch.tensor([37])
    before = block_scores(x["index_q"][37:38], x["index_k"], position, 16)
    x["index_k"][38:] = 1e4
    assert torch.equal(block_scores(x["index_q"][37:38], x["index_k"], position, 16), before)


@impls
def test_future_tokens_change_nothing_before_them(impl: str) -> None:
    x, options = draw(200, seed=4), {"query_start": 0, "block_tokens": 16, "topk": 3, "impl": impl}
    block_ids = select(x, **options)
    out = sparse(x, **options)
    for name in ("k", "v", "index_k"):
        x[name][117:] *= -1e3
    assert torch.equal(select(x, **options)[:117], block_ids[:117])
    assert torch.equal(sparse(x, **options)[:117], out[:117])
    assert not torch.equal(sparse(x, **options)[117:], out[117:])


@impls
def test_ties_go_to_the_lower_block_id(impl: str) -> None:
    x = draw(16 * 8)
    x["index_q"].fill_(1.0)
    x["index_k"].fill_(1.0)
    block_ids = select(x, query_start=0, block_tokens=16, topk=3, impl=impl)
    for position in (16 * 8 - 1, 16 * 5, 16 * 3):
        assert block_ids[position].tolist() == [[0, 1, position // 16]] * 2


@impls
def test_negative_zero_ties_with_zero(impl: str) -> None:
    x = draw(16 * 5, num_kv_heads=1)
    x["index_q"].fill_(1.0)
    x["index_k"].fill_(0.0)
    x["index_k"][:16] = -0.0
    assert select(x, query_start=0, block_tokens=16, topk=2, impl=impl)[-1].tolist() == [[0, 4]]


@impls
def test_a_score_that_is_no_number_loses(impl: str) -> None:
    x = draw(16 * 5, num_kv_heads=1)
    x["index_k"][:16] = float("nan")
    assert as_sets(select(x, query_start=0, block_tokens=16, topk=4, impl=impl)[-1:]) == [[{1, 2, 3, 4}]]


@impls
@pytest.mark.parametrize("local_blocks", [1, 2, 3])
def test_local_blocks_always_win_and_use_slots(local_blocks: int, impl: str) -> None:
    """The last blocks hold the worst keys there are."""
    x = draw(16 * 8, seed=5, num_kv_heads=1)
    x["index_q"].fill_(1.0)
    x["index_k"] = torch.linspace(9.0, 1.0, 128)[:, None].expand(128, 32).contiguous()
    chosen = as_sets(select(x, query_start=0, block_tokens=16, topk=4, local_blocks=local_blocks, impl=impl))
    local = set(range(8 - local_blocks, 8))
    assert chosen[-1] == [local | set(range(4 - local_blocks))]
    assert chosen[0] == [{0}]


@impls
def test_first_blocks_can_be_forced(impl: str) -> None:
    x = draw(16 * 8, num_kv_heads=1)
    x["index_q"].fill_(1.0)
    x["index_k"] = torch.linspace(1.0, 9.0, 128)[:, None].expand(128, 32).contiguous()
    chosen = select(x, query_start=0, block_tokens=16, topk=4, init_blocks=2, impl=impl)
    assert chosen[-1].tolist() == [[0, 1, 6, 7]]


@impls
@pytest.mark.parametrize("topk", [1, 2, 5, 40])
def test_ids_ascend_and_the_tail_is_minus_one(topk: int, impl: str) -> None:
    total = 333
    block_ids = select(draw(total, seed=6), query_start=0, block_tokens=16, topk=topk, impl=impl)
    assert block_ids.shape == (total, 2, topk)
    assert block_ids.dtype == torch.int32
    for position, row in enumerate(block_ids.tolist()):
        for ids in row:
            valid = ids[: min(topk, position // 16 + 1)]
            assert valid == sorted(set(valid))
            assert valid[0] >= 0
            assert valid[-1] == position // 16
            assert set(ids[len(valid) :]) <= {-1}


# ----------------------------------------------------------------------- the same answer by another route


@impls
@pytest.mark.parametrize("cuts", [[1], [5, 17], [100, 101], [16, 32], [63, 129, 200]])
def test_chunked_and_whole_prefill_agree(cuts: list[int], impl: str) -> None:
    """Cut points inside blocks and at their edges; a chunk sees the keys of the past and its own only."""
    total, options = 213, {"block_tokens": 16, "topk": 3, "local_blocks": 2, "impl": impl}
    x = draw(total, seed=7)
    whole_ids = select(x, query_start=0, **options)
    whole = sparse(x, query_start=0, **options)
    bounds = [0, *cuts, total]
    for start, end in itertools.pairwise(bounds):
        part = {name: tensor[start:end] if name in ("q", "index_q") else tensor[:end] for name, tensor in x.items()}
        assert torch.equal(select(part, query_start=start, **options), whole_ids[start:end])
        out = sparse(part, query_start=start, **options)
        if impl == "native":
            assert torch.equal(out, whole[start:end])
        else:
            torch.testing.assert_close(out, whole[start:end], atol=1e-6, rtol=0)


@impls
def test_token_by_token_equals_whole_prefill(impl: str) -> None:
    x, options = draw(70, seed=8), {"block_tokens": 16, "topk": 2, "impl": impl}
    whole = sparse(x, query_start=0, **options)
    for position in range(70):
        part = {
            name: tensor[position : position + 1] if name in ("q", "index_q") else tensor[: position + 1]
            for name, tensor in x.items()
        }
        out = sparse(part, query_start=position, **options)
        torch.testing.assert_close(out[0], whole[position], atol=0 if impl == "native" else 1e-6, rtol=0)


@impls
def test_no_queries_give_no_rows(impl: str) -> None:
    x = draw(0, 40)
    block_ids = select(x, query_start=40, block_tokens=16, topk=2, impl=impl)
    assert block_ids.shape == (0, 2, 2)
    assert attend(x, block_ids, query_start=40, block_tokens=16, impl=impl).shape == (0, 4, 32)


@impls
def test_scale_multiplies_the_logits(impl: str) -> None:
    x = draw(50, seed=9)
    options = {"query_start": 0, "block_tokens": 16, "topk": 2, "impl": impl}
    scaled = sparse(x, scale=0.5, **options)
    torch.testing.assert_close(sparse({**x, "q": x["q"] * 2}, scale=0.25, **options), scaled)
    default = sparse(x, **options)
    torch.testing.assert_close(sparse(x, scale=32**-0.5, **options), default, atol=0, rtol=0)
    assert float((scaled - default).abs().max()) > 1e-2


@impls
def test_large_logits_do_not_overflow(impl: str) -> None:
    x = draw(64, seed=10)
    out = sparse({**x, "q": x["q"] * 1e4}, query_start=0, block_tokens=16, topk=2, impl=impl)
    assert bool(out.isfinite().all())


# ---------------------------------------------------------------------------------------------- gradients


@pytest.mark.parametrize("rows", [2, pytest.param(37, marks=pytest.mark.slow)])
def test_gradients_of_the_reference_are_exact(rows: int) -> None:
    x = {name: tensor.double() for name, tensor in draw(rows, 37, seed=11, head_dim=2, index_dim=4).items()}
    inputs = [x[name].requires_grad_() for name in ("q", "k", "v")]

    def run(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return sparse_attention(
            q, k, v, x["index_q"], x["index_k"], query_start=37 - rows, block_tokens=16, topk=2, impl="reference"
        )

    assert torch.autograd.gradcheck(run, inputs)


def test_the_index_branch_gets_no_gradient_from_attention() -> None:
    x = draw(37, seed=12)
    for tensor in x.values():
        tensor.requires_grad_()
    sparse(x, query_start=0, block_tokens=16, topk=2, impl="auto").sum().backward()  # type: ignore[no-untyped-call]
    assert x["index_q"].grad is None
    assert x["index_k"].grad is None
    for name in ("q", "k", "v"):
        assert float(x[name].grad.abs().sum()) > 0  # type: ignore[union-attr]


def test_unread_tokens_get_no_gradient() -> None:
    x = draw(16 * 4, seed=13)
    x["v"].requires_grad_()
    block_ids = torch.tensor([[[0, 3], [1, 3]]], dtype=torch.int32)
    x["q"] = x["q"][-1:]
    attend(x, block_ids, query_start=63, block_tokens=16, impl="reference").sum().backward()  # type: ignore[no-untyped-call]
    grad = x["v"].grad
    assert grad is not None
    reached = grad.abs().amax(dim=-1).view(4, 16, 2).amax(dim=1) > 0  # (block, KV head)
    assert reached.tolist() == [[True, False], [False, True], [False, False], [True, True]]


# ---------------------------------------------------------------------------------- any shape, any values


@st.composite
def problems(draw_value: st.DrawFn) -> tuple[dict[str, int], dict[str, int]]:
    """Sizes of the inputs, and the options of a selection; sizes are odd on purpose wherever they may be."""
    num_kv_heads = draw_value(st.integers(1, 4))
    total_q = draw_value(st.integers(1, 90))
    local_blocks = draw_value(st.integers(1, 3))
    sizes = {
        "total_q": total_q,
        "total_k": total_q + draw_value(st.integers(0, 260)),
        "num_kv_heads": num_kv_heads,
        "num_q_heads": num_kv_heads * draw_value(st.sampled_from([1, 2, 3, 8, 17])),
        "head_dim": draw_value(st.sampled_from([2, 18, 32, 64, 80, 128])),
        "index_dim": draw_value(st.sampled_from([1, 8, 33, 64, 128])),
        "seed": draw_value(st.integers(0, 10_000)),
    }
    options = {
        "query_start": draw_value(st.integers(0, sizes["total_k"] - total_q)),
        "block_tokens": draw_value(st.sampled_from([16, 32, 48, 128])),
        "local_blocks": local_blocks,
        "init_blocks": draw_value(st.integers(0, 2)),
        "topk": local_blocks + 2 + draw_value(st.integers(0, 6)),
    }
    return sizes, options


@tried(15, 60, problems(), st.sampled_from(["random", "few values", "bfloat16", "tiny", "huge", "near ties"]))
def test_native_selects_what_the_reference_selects(problem: tuple[dict[str, int], dict[str, int]], values: str) -> None:
    """With many exact ties, with ties that only fp32 sees, and near both ends of fp32 as well."""
    sizes, options = problem
    x = draw(**sizes)
    if values == "few values":
        x = {name: tensor.round() for name, tensor in x.items()}
    elif values == "bfloat16":
        x = {name: tensor.bfloat16() for name, tensor in x.items()}
    elif values in ("tiny", "huge"):
        x["index_q"] *= 1e-25 if values == "tiny" else 1e25
        x["index_k"] *= 1e-20 if values == "tiny" else 1e20
    elif values == "near ties":
        noise = torch.randn(x["index_k"].shape, generator=torch.Generator().manual_seed(sizes["seed"]))
        x["index_k"] = x["index_k"][:1] * (1 + 1e-7 * noise)
    assert torch.equal(select(x, impl="native", **options), select(x, impl="reference", **options))


@tried(15, 60, problems(), st.sampled_from([1.0, 30.0]))
def test_native_attention_errs_by_rounding_only(
    problem: tuple[dict[str, int], dict[str, int]], sharpness: float
) -> None:
    """Against float64: a logit may be off by the rounding of its dot product, whose size |q| |k| bounds, and a
    weighted mean of v by twice that; the 8 is for the exponential and the sums."""
    sizes, options = problem
    x = draw(**sizes)
    x["q"] = x["q"] * sharpness
    block_ids = select(x, impl="reference", **options)
    where = {name: options[name] for name in ("query_start", "block_tokens")}
    doubled = {name: tensor.double() for name, tensor in x.items()}
    error = attend(x, block_ids, impl="native", **where) - attend(doubled, block_ids, impl="reference", **where)
    norms = [float(x[name].norm(dim=-1).max()) for name in ("q", "k")]
    logit_size = norms[0] * norms[1] * sizes["head_dim"] ** -0.5
    allowed = torch.finfo(torch.float32).eps * (2 * logit_size + 8) * float(x["v"].abs().max())
    assert float(error.abs().max()) <= allowed


@tried(10, 40, problems())
def test_the_reference_attends_like_a_masked_softmax(problem: tuple[dict[str, int], dict[str, int]]) -> None:
    """By another route: a full score matrix, a mask built from the ids, torch's softmax, in float64."""
    sizes, options = problem
    x = {name: tensor.double() for name, tensor in draw(**sizes).items()}
    block_ids = select(x, impl="reference", **options)
    group = sizes["num_q_heads"] // sizes["num_kv_heads"]
    key = torch.arange(sizes["total_k"])
    position = options["query_start"] + torch.arange(sizes["total_q"])
    # (total_q, num_kv_heads, topk, total_k) -> without topk
    chosen = (block_ids.long()[..., None] == key // options["block_tokens"]).any(dim=2)
    seen = (chosen & (key <= position[:, None])[:, None]).repeat_interleave(group, dim=1)
    k, v = (x[name].repeat_interleave(group, dim=1) for name in ("k", "v"))
    logits = torch.einsum("ihd,jhd->ihj", x["q"], k) * sizes["head_dim"] ** -0.5
    wanted = torch.einsum("ihj,jhd->ihd", logits.masked_fill(~seen, float("-inf")).softmax(-1), v)
    where = {name: options[name] for name in ("query_start", "block_tokens")}
    out = attend(x, block_ids, impl="reference", **where)
    torch.testing.assert_close(out, wanted, atol=1e-12, rtol=0)
