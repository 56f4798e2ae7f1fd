"""Weights of 8 and 4 bits: products are those of the matrix that the codes stand for, bit for bit."""

from __future__ import annotations

import pytest
import torch

from freehold import kernels
from freehold.core.coded import CodedWeight
from freehold.core.errors import ArgumentError
from support.instruction_sets import supported

FP4 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)
COUNTING = tuple(float(i - 8) for i in range(16))


def coded(out: int, inner: int, *, bits: int, group: int, offsets: bool, table=COUNTING, seed: int = 0):
    """A packed weight and the float32 matrix it stands for."""
    torch.manual_seed(seed)
    scales = torch.rand(out, inner // group).half().float()  # short factors: products with codes are exact
    shift = torch.randn(out, inner // group).half().float() if offsets else None
    if bits == 8:
        codes = torch.randint(-128, 128, (out, inner), dtype=torch.int8)
        values, table = codes.float(), ()
    else:
        codes = torch.randint(0, 16, (out, inner), dtype=torch.uint8)
        values = torch.tensor(table)[codes.long()]
    matrix = values * scales.repeat_interleave(group, 1)
    if shift is not None:
        matrix = matrix + shift.repeat_interleave(group, 1)
    weight = CodedWeight(bits, codes, scales, shift, table)
    assert torch.equal(weight.floats(), matrix)
    return kernels.pack_codes(weight), matrix


@pytest.fixture(params=supported())
def isa(request):
    before = kernels.isa()
    kernels.use_isa(request.param)
    yield request.param
    kernels.use_isa(before)


@pytest.mark.parametrize("rows", [1, 3, 16, 17, 200])
@pytest.mark.parametrize(
    ("bits", "group", "offsets", "table"),
    [(8, 32, False, ()), (8, 16, True, ()), (4, 32, False, COUNTING), (4, 32, True, tuple(map(float, range(16)))),
     (4, 16, False, FP4)],
)  # fmt: skip
def test_products_have_the_bits_of_the_matrix(isa, rows, bits, group, offsets, table):
    packed, matrix = coded(130, 608, bits=bits, group=group, offsets=offsets, table=table)
    x = torch.randn(rows, 608)
    assert torch.equal(kernels.linear(x, packed), kernels.linear(x, kernels.pack_weight(matrix)))


@pytest.mark.parametrize("bits", [8, 4])
def test_rows_are_those_of_the_matrix(bits):
    packed, matrix = coded(70, 64, bits=bits, group=32, offsets=True)
    ids = torch.tensor([69, 0, 64, 63])
    assert torch.equal(packed.rows(ids), matrix[ids])
    assert packed.nbytes < 128 * 64 * (bits / 8 + 0.26)


def test_a_row_that_does_not_exist_is_refused():
    packed, _ = coded(70, 64, bits=8, group=32, offsets=False)
    with pytest.raises(ValueError, match="refused its arguments"):
        packed.rows(torch.tensor([70]))


def test_wrong_codes_are_named():
    codes, scales = torch.zeros(4, 64, dtype=torch.uint8), torch.ones(4, 2)
    for bits, wrong, table, message in (
        (5, scales, COUNTING, "bits is 5"),
        (8, scales, (), r"type torch\.uint8; with 8 bits"),
        (4, scales, (), "with 0 values; 4 bits take 16"),
        (4, torch.ones(4, 3), COUNTING, r"scales have shape \(4, 3\) for 64 inputs"),
        (4, torch.ones(5, 2), COUNTING, r"has shape \(5, 2\)"),
    ):
        with pytest.raises(ArgumentError, match=message):
            kernels.pack_codes(CodedWeight(bits, codes, wrong, None, table))
