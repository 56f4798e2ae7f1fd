"""Matrix products: right to the bound of their summation, and the same bits in any company."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from freehold import kernels
from freehold.core.errors import ArgumentError
from support.instruction_sets import supported

ISAS = supported()
BEST = ISAS[-1]


@pytest.fixture(params=ISAS, autouse=True)
def instruction_set(request):
    kernels.use_isa(request.param)
    yield request.param
    kernels.use_isa(BEST)


@settings(max_examples=30, deadline=None)
@given(
    rows=st.integers(1, 20),
    inputs=st.integers(1, 700),
    outputs=st.integers(1, 200),
    bf16=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_linear_errs_no_more_than_its_chain_of_additions_may(rows, inputs, outputs, bf16, seed):
    torch.manual_seed(seed)
    x, w = torch.randn(rows, inputs), torch.randn(outputs, inputs)
    if bf16:
        w = w.bfloat16()
    y = kernels.linear(x, kernels.pack_weight(w))
    exact = x.double() @ w.double().T
    bound = (inputs + 1) * 2.0**-23 * (x.double().abs() @ w.double().abs().T) + 1e-30
    assert ((y.double() - exact).abs() <= bound).all()


@pytest.mark.parametrize("rows", [2, 5, 6, 7, 13, 193])
def test_a_row_has_the_same_bits_alone_and_in_a_batch(rows):
    torch.manual_seed(rows)
    x, packed = torch.randn(rows, 577), kernels.pack_weight(torch.randn(130, 577))
    together = kernels.linear(x, packed)
    alone = torch.cat([kernels.linear(x[i : i + 1], packed) for i in range(rows)])
    assert torch.equal(together, alone)


def test_the_number_of_threads_changes_no_bit():
    torch.manual_seed(0)
    x, packed = torch.randn(300, 640), kernels.pack_weight(torch.randn(512, 640))
    before = kernels.threads()
    try:
        results = []
        for threads in (1, 2, 3):
            kernels.set_threads(threads)
            results.append(kernels.linear(x, packed))
    finally:
        kernels.set_threads(before)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


@pytest.mark.parametrize("rows", [1, 7, 40])
def test_float16_has_the_bits_of_its_values_as_float32(rows):
    torch.manual_seed(rows)
    x, w = torch.randn(rows, 200), (torch.randn(130, 200) * torch.logspace(-8, 4, 200)).half()
    w[0, :6] = torch.tensor([0.0, -0.0, 6e-8, -3e-6, 65504.0, 6.1e-5]).half()
    packed, wide = kernels.pack_weight(w), kernels.pack_weight(w.float())
    assert packed.nbytes * 2 == wide.nbytes
    assert torch.equal(kernels.linear(x, packed), kernels.linear(x, wide))
    ids = torch.arange(130)
    assert torch.equal(packed.rows(ids), w.float())


def test_packing_keeps_every_value():
    w = torch.randn(70, 9)
    packed = kernels.pack_weight(w)
    rows = packed.data.permute(0, 2, 1).reshape(-1, 9)
    assert torch.equal(rows[:70], w)
    assert not rows[70:].any()
    assert torch.equal(packed.rows(torch.tensor([69, 0, 3])), w[[69, 0, 3]])


def test_wrong_shapes_and_types_are_named():
    packed = kernels.pack_weight(torch.randn(4, 8))
    with pytest.raises(ArgumentError, match=r"x has shape \(2, 7\).*\(\*, 8\)"):
        kernels.linear(torch.randn(2, 7), packed)
    with pytest.raises(ArgumentError, match=r"x has type torch\.float64"):
        kernels.linear(torch.randn(2, 8).double(), packed)
    with pytest.raises(ArgumentError, match="not contiguous"):
        kernels.linear(torch.randn(8, 2).T, packed)
    with pytest.raises(ArgumentError, match="weight has type"):
        kernels.pack_weight(torch.ones(3, 3, dtype=torch.int32))


def test_an_unknown_instruction_set_is_refused_by_name():
    with pytest.raises(ArgumentError, match="'avx1024' is unknown; known are portable"):
        kernels.use_isa("avx1024")
