"""Gated networks and mixtures of them, against plain products and double precision."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from freehold import kernels
from freehold.core.errors import ArgumentError
from freehold.kernels import Experts, Gate
from support.instruction_sets import supported

M3_GATE = Gate(clamped=True, alpha=1.702, limit=7.0)


def network(features: int, width: int, *, biased: bool = False):
    parts = [
        kernels.pack_weight(torch.randn(o, i) / i**0.5)
        for o, i in ((width, features), (width, features), (features, width))
    ]
    return tuple(w.with_bias(torch.randn(w.out_features)) for w in parts) if biased else tuple(parts)


def gated(gate: torch.Tensor, up: torch.Tensor, kind: Gate) -> torch.Tensor:
    """The gate alone: networks whose projections pick halves of their input."""
    n = gate.shape[1]
    eye, none = torch.eye(n), torch.zeros(n, n)
    parts = [torch.cat((eye, none), 1), torch.cat((none, eye), 1), torch.cat((eye, none))]
    only = Experts([tuple(kernels.pack_weight(p) for p in parts)])
    return kernels.gated_mlp(torch.cat((gate, up), 1), only, kind)[:, :n].contiguous()


def close(got: torch.Tensor, exact: torch.Tensor, relative: float) -> bool:
    return bool(((got.double() - exact).abs() <= relative * exact.abs() + 1e-6 * exact.abs().max()).all())


def test_gates():
    torch.manual_seed(0)
    gate, up = torch.randn(33, 7) * 8, torch.randn(33, 7) * 8
    g, u = gate.double(), up.double()
    assert close(gated(gate, up, Gate()), g * g.sigmoid() * u, 3e-6)
    g, u = g.clamp(max=7), u.clamp(-7, 7)
    assert close(gated(gate, up, M3_GATE), (u + 1) * g * (1.702 * g).sigmoid(), 1e-5)


def test_extreme_gates_are_finite():
    gate = torch.tensor([[-1e30, -200.0, -88.0, 0.0, 88.0, 200.0, 1e30]])
    y = gated(gate, torch.ones_like(gate), Gate())
    assert y[0, :3].abs().max() < 1e-8
    assert torch.equal(y[0, 4:], gate[0, 4:])


@pytest.mark.parametrize("isa", supported())
@pytest.mark.parametrize("kind", [Gate(), M3_GATE])
@pytest.mark.parametrize("which", [0, 1, 2])
def test_a_weight_that_is_no_number_is_not_hidden_by_a_limit(isa, kind, which):
    torch.manual_seed(6)
    weights = [torch.randn(20, 9), torch.randn(20, 9), torch.randn(9, 20)]
    weights[which][:] = torch.nan
    kernels.use_isa(isa)
    try:
        y = kernels.gated_mlp(torch.randn(3, 9), Experts([tuple(map(kernels.pack_weight, weights))]), kind)
    finally:
        kernels.use_isa(supported()[-1])
    assert y.isnan().all()


@pytest.mark.parametrize("kind", [Gate(), M3_GATE])
@pytest.mark.parametrize("biased", [False, True])
def test_a_network_is_its_three_products(kind, biased):
    torch.manual_seed(1)
    gate, up, down = network(96, 130, biased=biased)
    x = torch.randn(211, 96)
    middle = gated(kernels.linear(x, gate), kernels.linear(x, up), kind)
    assert torch.equal(kernels.gated_mlp(x, Experts([(gate, up, down)]), kind), kernels.linear(middle, down))


def test_a_bias_is_added():
    weight = kernels.pack_weight(torch.randn(70, 5))
    bias, x = torch.randn(70), torch.randn(3, 5)
    assert torch.equal(kernels.linear(x, weight.with_bias(bias)), kernels.linear(x, weight) + bias)


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(1, 40), experts=st.integers(1, 9), topk=st.integers(1, 9), width=st.integers(1, 140),
    shared=st.booleans(), threads=st.integers(1, 3), seed=st.integers(0, 2**31),
)  # fmt: skip
def test_a_mixture_is_the_weighted_sum_of_its_networks_row_by_row(rows, experts, topk, width, shared, threads, seed):
    torch.manual_seed(seed)
    topk, features = min(topk, experts), 72
    networks = [network(features, width) for _ in range(experts)]
    routed = Experts(networks)
    beside = Experts([network(features, 50)] if shared else [])
    x, weights = torch.randn(rows, features), torch.rand(rows, topk)
    ids = torch.stack([torch.randperm(experts)[:topk].sort().values for _ in range(rows)]).int()
    before = kernels.threads()
    try:
        kernels.set_threads(threads)
        y = kernels.experts(x, ids, weights, routed, beside, gate=M3_GATE, scale=2.0)
        row = seed % rows
        alone = kernels.experts(
            x[row : row + 1], ids[row : row + 1], weights[row : row + 1], routed, beside, gate=M3_GATE, scale=2.0
        )
    finally:
        kernels.set_threads(before)
    assert torch.equal(alone[0], y[row])
    each = [kernels.gated_mlp(x, Experts([n]), M3_GATE).double() for n in networks]
    exact = torch.zeros(rows, features, dtype=torch.float64)
    for r in range(rows):
        for place in range(topk):
            exact[r] += 2.0 * weights[r, place].double() * each[ids[r, place]][r]
    if shared:
        exact += kernels.gated_mlp(x, beside, M3_GATE).double()
    assert (y.double() - exact).abs().max() <= 1e-5 * (1 + exact.abs().max())


def test_more_rows_than_a_tile_give_the_bits_of_each_alone():
    torch.manual_seed(2)
    routed = Experts([network(64, 70) for _ in range(2)])
    x, ids = torch.randn(450, 64), torch.zeros(450, 1, dtype=torch.int32)
    ids[::7] = 1
    weights = torch.rand(450, 1)
    y = kernels.experts(x, ids, weights, routed, Experts([]), gate=Gate(), scale=1.0)
    for r in (0, 191, 192, 193, 449):
        one = slice(r, r + 1)
        assert torch.equal(
            y[one], kernels.experts(x[one], ids[one], weights[one], routed, Experts([]), gate=Gate(), scale=1.0)
        )


def test_what_does_not_fit_is_named():
    a, b = network(64, 70), network(32, 70)
    with pytest.raises(ArgumentError, match="network 1 has gate, up and down of"):
        Experts([a, b])
    with pytest.raises(ArgumentError, match="ids go from 0 to 1, there are 1 experts"):
        kernels.experts(
            torch.randn(1, 64), torch.tensor([[0, 1]], dtype=torch.int32), torch.ones(1, 2), Experts([a]), Experts([]),
            gate=Gate(), scale=1.0,
        )  # fmt: skip
    with pytest.raises(ArgumentError, match=r"^x has shape \(1, 63\); the kernel takes \(\*, 64\)$"):
        kernels.experts(
            torch.randn(1, 63), torch.tensor([[0]], dtype=torch.int32), torch.ones(1, 1), Experts([a]), Experts([]),
            gate=Gate(), scale=1.0,
        )  # fmt: skip
    with pytest.raises(ArgumentError, match="there are 2 shared networks"):
        kernels.gated_mlp(torch.randn(1, 64), Experts([a, a]), Gate())
