"""Matrices of small floats with scales, made and read one number at a time, by the formats' own definitions."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]


def small_float(code: int, exponent_bits: int, mantissa_bits: int, bias: int) -> float:
    """A float of few bits by its fields. The sign is the bit above the exponent; no code means infinity."""
    mantissa = code & (1 << mantissa_bits) - 1
    exponent = code >> mantissa_bits & (1 << exponent_bits) - 1
    sign = -1.0 if code >> mantissa_bits + exponent_bits else 1.0
    if exponent == 0:
        return sign * math.ldexp(mantissa, 1 - bias - mantissa_bits)
    return sign * math.ldexp(mantissa + (1 << mantissa_bits), exponent - bias - mantissa_bits)


def e4m3(code: int) -> float:
    return math.nan if code in (0x7F, 0xFF) else small_float(code, 4, 3, 7)


def e2m1(code: int) -> float:
    return small_float(code, 2, 1, 1)


def e8m0(code: int) -> float:
    return math.nan if code == 255 else math.ldexp(1.0, code - 127)


def as_float32(values: Any) -> Floats:
    """Doubles rounded once. Products of these small floats and one float32 are exact doubles."""
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        return np.asarray(values, np.float64).astype(np.float32)


def mxfp8_values(codes: Bytes, scales: Bytes, rows: int = 1, columns: int = 32) -> Floats:
    return as_float32(
        [
            [e4m3(int(code)) * e8m0(int(scales[i // rows, j // columns])) for j, code in enumerate(row)]
            for i, row in enumerate(codes)
        ]
    )


def fp8_values(codes: Bytes, scales: Floats, rows: int, columns: int) -> Floats:
    return as_float32(
        [
            [e4m3(int(code)) * float(scales[i // rows, j // columns]) for j, code in enumerate(row)]
            for i, row in enumerate(codes)
        ]
    )


def nvfp4_values(codes: Bytes, scales: Bytes, tensor_scale: float) -> Floats:
    """codes (out, in / 2), scales (out, in / 16). The product of both scales is rounded first."""
    fours = [[code >> shift & 15 for code in map(int, row) for shift in (0, 4)] for row in codes]
    both = as_float32([[e4m3(int(code)) * tensor_scale for code in row] for row in scales])
    return as_float32(
        [[e2m1(four) * float(both[i, j // 16]) for j, four in enumerate(row)] for i, row in enumerate(fours)]
    )


def nearest(values: NDArray[np.float64], table: list[float]) -> Bytes:
    """For each value the code of the closest entry of `table`, which may hold NaN."""
    distance = np.abs(values[..., None] - np.nan_to_num(np.array(table), nan=np.inf))
    return distance.argmin(axis=-1).astype(np.uint8)


def mxfp8_codes(weight: Floats) -> tuple[Bytes, Bytes]:
    """Codes (out, in) and exponents (out, ceil(in / 32))."""
    groups = [weight[:, at : at + 32] for at in range(0, weight.shape[1], 32)]
    peaks = np.stack([np.abs(group).max(axis=1) for group in groups], axis=1)
    scales = np.clip(np.ceil(np.log2(np.maximum(peaks, 1e-30) / 448)) + 127, 0, 254).astype(np.uint8)
    wide = np.repeat(np.exp2(scales.astype(np.float64) - 127), 32, axis=1)[:, : weight.shape[1]]
    return nearest(weight / wide, [e4m3(code) for code in range(256)]), scales


def fp8_codes(weight: Floats, rows: int, columns: int) -> tuple[Bytes, Floats]:
    """Codes (out, in) and scales for each block of rows and columns."""
    grid = (-(-weight.shape[0] // rows), -(-weight.shape[1] // columns))
    scales = np.zeros(grid, np.float32)
    for i, j in np.ndindex(grid):
        scales[i, j] = np.abs(weight[i * rows : (i + 1) * rows, j * columns : (j + 1) * columns]).max() / 448
    wide = np.repeat(np.repeat(scales, rows, 0), columns, 1)[: weight.shape[0], : weight.shape[1]]
    return nearest(weight / wide.astype(np.float64), [e4m3(code) for code in range(256)]), scales


def nvfp4_codes(weight: Floats) -> tuple[Bytes, Bytes, float]:
    """Packed codes (out, in / 2), scales (out, in / 16), and the scale of the whole matrix."""
    tensor_scale = float(np.float32(np.abs(weight).max() / (448 * 6)))
    groups = weight.reshape(len(weight), -1, 16).astype(np.float64)
    scales = nearest(np.abs(groups).max(axis=2) / 6 / tensor_scale, [e4m3(code) for code in range(128)])
    wide = np.array([e4m3(code) for code in range(256)])[scales] * tensor_scale
    fours = nearest(groups / np.maximum(wide, 1e-30)[:, :, None], [e2m1(code) for code in range(16)])
    pairs = fours.reshape(len(weight), -1, 2)
    return pairs[:, :, 0] | pairs[:, :, 1] << np.uint8(4), scales, tensor_scale
