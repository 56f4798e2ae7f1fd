"""Norms, rotation and router against torch in double precision."""

from __future__ import annotations

import pytest
import torch

from freehold import kernels
from freehold.core.errors import ArgumentError


def close(got: torch.Tensor, exact: torch.Tensor, relative: float = 3e-6) -> bool:
    return bool(((got.double() - exact).abs() <= relative * exact.abs() + 1e-6 * exact.abs().max()).all())


@pytest.mark.parametrize("dim", [1, 5, 16, 72, 128, 576, 1000])
def test_rms_norm(dim):
    torch.manual_seed(dim)
    x, w = torch.randn(7, 3, dim), torch.randn(dim)
    d = x.double()
    exact = d * torch.rsqrt(d.pow(2).mean(-1, keepdim=True) + 1e-5) * w.double()
    assert close(kernels.rms_norm(x, w, 1e-5), exact)


@pytest.mark.parametrize(("head_dim", "half"), [(64, 32), (128, 32), (72, 20), (6, 3)])
def test_rope_turns_pairs_and_leaves_the_rest(head_dim, half):
    torch.manual_seed(0)
    positions = torch.tensor([0, 1, 77, 1_000_000])
    inv_freq = 1.0 / 5e6 ** (torch.arange(half) / half)
    cos, sin = kernels.rope_table(positions, inv_freq, 1.0)
    angles = (positions[:, None].float() * inv_freq).double()
    assert (cos.double() - angles.cos()).abs().max() < 1e-7
    assert (sin.double() - angles.sin()).abs().max() < 1e-7
    x = torch.randn(4, 2, head_dim)
    turned = kernels.rope_(x.clone(), cos, sin)
    pairs = torch.complex(x[..., :half].double(), x[..., half : 2 * half].double())
    exact = pairs * torch.polar(torch.ones_like(angles), angles)[:, None]
    assert (turned[..., :half].double() - exact.real).abs().max() < 1e-5
    assert (turned[..., half : 2 * half].double() - exact.imag).abs().max() < 1e-5
    assert torch.equal(turned[..., 2 * half :], x[..., 2 * half :])


def test_router_selects_with_the_bias_and_weighs_without_it():
    logits = torch.tensor([[0.0, 2.0, -1.0, 1.0]])
    ids, weights = kernels.route_sigmoid(logits, torch.tensor([0.0, -9.0, 9.0, 0.0]), 2)
    assert ids.tolist() == [[2, 3]]
    scores = logits.sigmoid()[0, [2, 3]]
    assert torch.allclose(weights[0], scores / scores.sum(), atol=1e-7)


def test_router_ties_go_to_the_lower_expert():
    ids, _ = kernels.route_sigmoid(torch.zeros(1, 6), torch.zeros(6), 3)
    assert ids.tolist() == [[0, 1, 2]]


def test_router_refuses_more_experts_than_there_are():
    with pytest.raises(ArgumentError, match="topk is 7"):
        kernels.route_sigmoid(torch.zeros(1, 6), torch.zeros(6), 7)
