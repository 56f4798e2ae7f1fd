"""MXFP8, FP8 and NVFP4 give the numbers that their definitions give, to the bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from freehold.core.errors import ArgumentError
from freehold.loading.quantized import ScaledTensor
from freehold.loading.scaled_floats import bfloat16_codes
from support.scaled_matrices import fp8_values, mxfp8_values, nvfp4_values

# Zeros, subnormal numbers, the largest numbers, NaN and both signs turn up more often than chance would have it.
CODES = st.sampled_from([0x00, 0x80, 0x01, 0x07, 0x7E, 0xFE, 0x7F, 0xFF]) | st.integers(0, 255)
EXPONENTS = st.sampled_from([0, 1, 2, 3, 127, 247, 248, 254, 255]) | st.integers(0, 255)
SCALES = st.floats(width=32, allow_nan=False, min_value=-(2.0**120), max_value=2.0**120)


def scaled(kind: Any, codes: Any, scales: Any, block: tuple[int, int], tensor_scale: float = 1.0) -> ScaledTensor:
    shape = (codes.shape[0], codes.shape[1] * (2 if kind == "NVFP4" else 1))
    data, held = torch.from_numpy(codes), torch.from_numpy(scales)
    held = held.view(torch.float8_e4m3fn) if kind == "NVFP4" else held
    return ScaledTensor("test", "x", kind, shape, data, held, block, tensor_scale)


def same_bits(read: torch.Tensor, expected: NDArray[np.float32]) -> bool:
    """Equal bits, the sign of zero included; what is not a number counts as equal to itself."""
    found, nan = read.numpy(), np.isnan(expected)
    return (
        found.shape == expected.shape
        and bool((np.isnan(found) == nan).all())
        and bool((found.view(np.uint32) == expected.view(np.uint32))[~nan].all())
    )


@given(arrays(np.uint8, (3, 70), elements=CODES), arrays(np.uint8, (3, 3), elements=EXPONENTS))
def test_mxfp8(codes: NDArray[np.uint8], scales: NDArray[np.uint8]) -> None:
    """70 columns: the last block of a row is partly full."""
    assert same_bits(scaled("MXFP8", codes, scales, (1, 32)).dequantize(), mxfp8_values(codes, scales))


@given(arrays(np.uint8, (5, 8), elements=CODES), arrays(np.float32, (3, 3), elements=SCALES))
def test_fp8_blocks(codes: NDArray[np.uint8], scales: NDArray[np.float32]) -> None:
    assert same_bits(scaled("FP8", codes, scales, (2, 3)).dequantize(), fp8_values(codes, scales, 2, 3))


@given(arrays(np.uint8, (2, 16), elements=CODES), arrays(np.uint8, (2, 2), elements=CODES), SCALES)
def test_nvfp4(codes: NDArray[np.uint8], scales: NDArray[np.uint8], tensor_scale: float) -> None:
    expected = nvfp4_values(codes, scales, tensor_scale)
    assert same_bits(scaled("NVFP4", codes, scales, (1, 16), tensor_scale).dequantize(), expected)


@given(arrays(np.uint8, (2, 16), elements=CODES), arrays(np.uint8, (2, 2), elements=CODES), SCALES)
def test_nvfp4_as_codes(codes: NDArray[np.uint8], scales: NDArray[np.uint8], tensor_scale: float) -> None:
    """What kernels compute with stands for the bits of the dequantised weight."""
    tensor = scaled("NVFP4", codes, scales, (1, 16), tensor_scale)
    coded = tensor.codes()
    assert coded is not None
    assert (coded.bits, coded.shape, coded.group) == (4, (2, 32), 16)
    assert same_bits(coded.floats(), tensor.dequantize().numpy())


def test_every_code_as_torch_has_it() -> None:
    codes, one = np.arange(256, dtype=np.uint8).reshape(1, 256), np.full((1, 8), 127, np.uint8)
    expected = torch.from_numpy(codes).view(torch.float8_e4m3fn).float().numpy()
    assert same_bits(scaled("MXFP8", codes, one, (1, 32)).dequantize(), expected)


def test_matrices_of_many_chunks() -> None:
    """Rows are expanded in parts, by several threads; blocks of 128 rows do not begin where parts do."""
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 0x7F, (700, 1024), dtype=np.uint8)
    scales = rng.standard_normal((6, 8)).astype(np.float32)
    values = torch.from_numpy(codes).view(torch.float8_e4m3fn).float().numpy()
    expected = values * np.repeat(np.repeat(scales, 128, 0)[:700], 128, 1)
    assert same_bits(scaled("FP8", codes, scales, (128, 128)).dequantize(), expected)


@given(arrays(np.uint32, (64,), elements=st.integers(0, 2**32 - 1)))
def test_bfloat16_is_rounded_as_torch_rounds(bits: NDArray[np.uint32]) -> None:
    values = bits.view(np.float32)
    expected = torch.from_numpy(values.copy()).bfloat16().view(torch.uint16).numpy()
    finite = ~np.isnan(values)
    assert np.array_equal(bfloat16_codes(values)[finite], expected[finite])
    assert (bfloat16_codes(values)[~finite] == 0x7FC0).all()


@pytest.mark.parametrize("exponent", range(256))
def test_bfloat16_holds_mxfp8_exactly_where_it_says_so(exponent: int) -> None:
    codes = np.arange(256, dtype=np.uint8).reshape(8, 32)
    tensor = scaled("MXFP8", codes, np.full((8, 1), exponent, np.uint8), (1, 32))
    wide, narrow = tensor.dequantize(), tensor.dequantize(torch.bfloat16)
    exact = torch.equal(narrow.float().nan_to_num(7.0), wide.nan_to_num(7.0))
    assert exact == (tensor.lossless_dtype == torch.bfloat16) == (exponent >= 3)


@given(arrays(np.uint8, (5, 64), elements=CODES), arrays(np.uint8, (3, 2), elements=st.integers(0, 4)))
def test_small_scales_of_what_bfloat16_holds_are_no_hindrance(
    codes: NDArray[np.uint8], scales: NDArray[np.uint8]
) -> None:
    """Blocks of zeros have the smallest scale; a matrix with one is no larger in memory than others."""
    for matrix in (codes, codes & 0x80, codes & 0xF8):
        tensor = scaled("MXFP8", matrix, scales, (2, 32))
        wide, narrow = tensor.dequantize(), tensor.dequantize(torch.bfloat16)
        exact = torch.equal(narrow.float().nan_to_num(7.0), wide.nan_to_num(7.0))
        assert exact == (tensor.lossless_dtype == torch.bfloat16)
    assert scaled("MXFP8", codes & 0x80, scales, (2, 32)).lossless_dtype == torch.bfloat16


def test_others_may_need_float32() -> None:
    ones = np.ones((1, 1), np.float32)
    assert scaled("FP8", np.zeros((1, 1), np.uint8), ones, (1, 1)).lossless_dtype == torch.float32
    assert (
        scaled("NVFP4", np.zeros((1, 8), np.uint8), np.zeros((1, 1), np.uint8), (1, 16)).lossless_dtype == torch.float32
    )


def test_other_types_are_refused() -> None:
    tensor = scaled("FP8", np.zeros((1, 1), np.uint8), np.ones((1, 1), np.float32), (1, 1))
    with pytest.raises(ArgumentError, match=r"dtype is torch\.float16"):
        tensor.dequantize(torch.float16)
    with pytest.raises(ArgumentError, match="'x' is one matrix of FP8; it has no part 0"):
        tensor.part(0)
