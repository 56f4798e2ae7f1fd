"""Products of coded weights with inputs that are rounded to codes of 8 bits."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from freehold import kernels
from freehold.core.coded import CodedWeight
from freehold.kernels import Experts, Gate
from freehold.kernels.experts import gated_mlp
from support.instruction_sets import supported

FP4 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)
IQ4 = (-127.0, -104.0, -83.0, -65.0, -49.0, -35.0, -22.0, -10.0, 1.0, 13.0, 25.0, 38.0, 53.0, 69.0, 89.0, 113.0)
COUNTING = tuple(float(i - 8) for i in range(16))
FORMS = [
    (8, 32, False, ()), (8, 16, True, ()), (8, 64, False, ()), (4, 32, False, COUNTING),
    (4, 32, True, tuple(map(float, range(16)))), (4, 16, False, FP4), (4, 8, False, COUNTING), (4, 96, True, IQ4),
]  # fmt: skip


@pytest.fixture(params=supported())
def isa(request):
    before = kernels.isa()
    kernels.use_isa(request.param)
    yield request.param
    kernels.use_isa(before)


def coded(out: int, inner: int, bits: int, group: int, offsets: bool, table) -> CodedWeight:
    scales = torch.rand(out, inner // group).half().float()
    shift = torch.randn(out, inner // group).half().float() if offsets else None
    if bits == 8:
        return CodedWeight(8, torch.randint(-128, 128, (out, inner), dtype=torch.int8), scales, shift)
    return CodedWeight(4, torch.randint(0, 16, (out, inner), dtype=torch.uint8), scales, shift, table)


def rounded(x: torch.Tensor) -> torch.Tensor:
    """What inputs (rows, n) become, in float64."""
    rows, n = x.shape
    parts = torch.nn.functional.pad(x, (0, -n % 32)).view(rows, -1, 32)
    most = parts.abs().amax(-1, keepdim=True)
    codes = (parts * torch.where(most > 0, 127 / most, 0)).round().clamp(-127, 127)
    return (codes.double() * (most / 127).double()).view(rows, -1)[:, :n]


@pytest.mark.parametrize("rows", [1, 5, 16, 17, 200])
@pytest.mark.parametrize(("bits", "group", "offsets", "table"), FORMS)
def test_products_are_those_of_rounded_inputs(isa, rows, bits, group, offsets, table):
    torch.manual_seed(rows + group)
    inner = 8 * 96 if group == 96 else 616 if group == 8 else 704
    weight = coded(130, inner, bits, group, offsets, table)
    packed = kernels.pack_codes(weight, coded_inputs=True)
    assert packed.handle.coded_inputs
    x = torch.randn(rows, inner) * 10.0 ** torch.randint(-3, 3, (rows, inner))
    x[0, :32] = 0.0
    got, matrix = kernels.linear(x, packed).double(), weight.floats().double()
    wanted, size = rounded(x) @ matrix.T, rounded(x).abs() @ (weight_size(weight).double()).T
    # Three roundings and two additions for each stretch of inputs that share both scales, most of which is 8 long.
    assert ((got - wanted).abs() <= size * (5 + 2 * inner / 8) * 2.0**-24).all()
    assert (got - x.double() @ matrix.T).abs().max() > 0  # inputs were rounded


def weight_size(weight: CodedWeight) -> torch.Tensor:
    """An upper bound of what products add up, in sizes: values and offsets may cancel."""
    plain = dataclasses.replace(weight, offsets=None).floats().abs()
    return plain if weight.offsets is None else plain + weight.offsets.abs().repeat_interleave(weight.group, 1)


@pytest.mark.parametrize(("bits", "group", "offsets", "table"), FORMS)
def test_a_row_alone_has_the_bits_it_has_in_company(isa, bits, group, offsets, table):
    torch.manual_seed(1)
    packed = kernels.pack_codes(coded(200, 8 * 96, bits, group, offsets, table), coded_inputs=True)
    x = torch.randn(230, 8 * 96)
    together, before = kernels.linear(x, packed), kernels.threads()
    try:
        for count in (1, 2, 3):
            kernels.set_threads(count)
            for row in (0, 5, 191, 192, 229):
                assert torch.equal(kernels.linear(x[row : row + 1], packed)[0], together[row])
            assert torch.equal(kernels.linear(x[3:20], packed), together[3:20])
    finally:
        kernels.set_threads(before)


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(supported()), st.data())
def test_no_code_overflows(isa, data):
    bits, group, offsets, table = data.draw(st.sampled_from(FORMS[:-1]))
    sign = data.draw(st.sampled_from([1.0, -1.0]))
    kernels.use_isa(isa)
    try:
        weight = coded(64, 192, bits, group, offsets, table)
        weight.codes.fill_(data.draw(st.sampled_from([-128, 127] if bits == 8 else [0, 15])))
        x = torch.full((2, 192), sign * data.draw(st.floats(1e-3, 1e6)))
        got = kernels.linear(x, kernels.pack_codes(weight, coded_inputs=True)).double()
        bound = rounded(x).abs() @ weight_size(weight).double().T * 60 * 2.0**-24
        assert ((got - rounded(x) @ weight.floats().double().T).abs() <= bound).all()
    finally:
        kernels.use_isa(supported()[-1])


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_stays_visible_in_its_row(isa, value):
    packed = kernels.pack_codes(coded(64, 96, 4, 32, False, COUNTING), coded_inputs=True)
    x = torch.randn(3, 96)
    x[1, 40] = value
    y = kernels.linear(x, packed)
    assert y[1].isnan().all()
    assert y[[0, 2]].isfinite().all()


def test_codes_whose_values_are_no_small_integers_keep_their_inputs():
    table = tuple(i * 0.1 for i in range(16))
    weight = coded(64, 96, 4, 32, False, table)
    packed = kernels.pack_codes(weight, coded_inputs=True)
    assert not packed.handle.coded_inputs
    x = torch.randn(2, 96)
    assert torch.equal(kernels.linear(x, packed), kernels.linear(x, kernels.pack_codes(weight)))


@pytest.mark.parametrize("rows", [1, 40])
def test_networks_round_what_goes_into_each_of_their_products(isa, rows):
    torch.manual_seed(3)
    shapes = [(200, 96), (200, 96), (96, 200)]
    weights = [coded(out, inner, 4, 8, False, COUNTING) for out, inner in shapes]
    for weight in weights:
        weight.scales.mul_(0.05)
    coded_parts = [kernels.pack_codes(w, coded_inputs=True) for w in weights]
    x, gate = torch.randn(rows, 96), Gate()
    got = gated_mlp(x, Experts([tuple(coded_parts)]), gate)
    middle = torch.nn.functional.silu(kernels.linear(x, coded_parts[0])) * kernels.linear(x, coded_parts[1])
    wanted = kernels.linear(middle, coded_parts[2])
    # The two ways to compute silu differ in the last bits, which moves a code by one at most where it lies between two.
    assert (got - wanted).abs().max() <= 0.01 * wanted.abs().max()
    alone = gated_mlp(x[-1:], Experts([tuple(coded_parts)]), gate)
    assert torch.equal(alone[0], got[-1])
    plain = gated_mlp(x, Experts([tuple(kernels.pack_codes(w) for w in weights)]), gate)
    assert not torch.equal(plain, got)
    assert (plain - got).norm() <= 0.02 * plain.norm()
