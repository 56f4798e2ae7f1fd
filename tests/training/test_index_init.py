"""Where a branch begins: what the complex form keeps exactly, and what it approximates better than a mean."""

from __future__ import annotations

import pytest
import torch

from freehold.model.compute import ReferenceCompute
from freehold.training.index_init import Projections, first_index

GROUPS, GROUP, DIM, HIDDEN, ROWS = 3, 2, 16, 40, 300


def rotate(t: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """t (rows, heads, DIM) turned as the model turns it."""
    angles = positions[:, None] * 10000.0 ** (-torch.arange(DIM // 2) * 2 / DIM)
    return ReferenceCompute().rope(t, angles.cos(), angles.sin())


def scores(q: torch.Tensor, k: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """(groups, rows, rows) of projections q (groups * DIM, HIDDEN) and k (1 or groups * DIM, HIDDEN)."""
    positions = torch.arange(len(x)).float()
    queries = rotate((x @ q.T).view(len(x), -1, DIM), positions)
    keys = rotate((x @ k.T).view(len(x), -1, DIM), positions)
    return torch.einsum("igd,jgd->gij", queries, keys.expand(-1, queries.shape[1], -1))


def mean_queries(attention: Projections) -> torch.Tensor:
    return attention.q.view(GROUPS, GROUP, DIM, HIDDEN).mean(dim=1).reshape(-1, HIDDEN)


def make(attention: Projections, x: torch.Tensor, init: str) -> Projections:
    generator = torch.Generator().manual_seed(1)
    return first_index(attention, x, num_kv_heads=GROUPS, head_dim=DIM, init=init, generator=generator)  # type: ignore[arg-type]


def turned(key: torch.Tensor, size: torch.Tensor, phase: torch.Tensor) -> torch.Tensor:
    """A key (DIM, HIDDEN) with each frequency scaled and turned."""
    half = DIM // 2
    c, s = (size * phase.cos())[:, None], (size * phase.sin())[:, None]
    return torch.cat((c * key[:half] - s * key[half:], c * key[half:] + s * key[:half]))


def test_keys_that_are_multiples_of_one_are_kept_exactly():
    torch.manual_seed(0)
    one, half = torch.randn(DIM, HIDDEN), DIM // 2
    keys = torch.cat([turned(one, torch.rand(half) + 0.5, torch.rand(half) * 6) for _ in range(GROUPS)])
    attention, x = Projections(torch.randn(GROUPS * GROUP * DIM, HIDDEN), keys), torch.randn(ROWS, HIDDEN)
    index = make(attention, x, "svd")
    assert index.q.shape == (GROUPS * DIM, HIDDEN)
    assert index.k.shape == (DIM, HIDDEN)
    wanted = scores(mean_queries(attention), keys, x)
    torch.testing.assert_close(scores(index.q, index.k, x), wanted, rtol=1e-3, atol=1e-3 * float(wanted.abs().max()))


def test_one_key_for_all_is_nearer_than_the_mean_of_keys():
    torch.manual_seed(0)
    attention = Projections(torch.randn(GROUPS * GROUP * DIM, HIDDEN), torch.randn(GROUPS * DIM, HIDDEN))
    x = torch.randn(ROWS, HIDDEN)
    wanted = scores(mean_queries(attention), attention.k, x)
    errors = {
        init: float((scores(*(lambda p: (p.q, p.k))(make(attention, x, init)), x) - wanted).norm())
        for init in ("svd", "mean", "random")
    }
    assert errors["svd"] < 0.9 * errors["mean"]
    assert errors["svd"] < 0.9 * errors["random"]


@pytest.mark.parametrize("init", ["svd", "mean", "random"])
def test_the_same_every_time(init):
    torch.manual_seed(0)
    attention = Projections(torch.randn(GROUPS * GROUP * DIM, HIDDEN), torch.randn(GROUPS * DIM, HIDDEN))
    x = torch.randn(ROWS, HIDDEN)
    first, second = make(attention, x, init), make(attention, x, init)
    assert torch.equal(first.q, second.q)
    assert torch.equal(first.k, second.k)
