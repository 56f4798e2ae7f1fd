"""The small floats of the microscaling formats as float32 numbers, and bfloat16 as NumPy's missing type.

E4M3: sign, 4 bits of exponent (bias 7), 3 of mantissa; no infinities, 0x7F and 0xFF are NaN; largest value 448.
E2M1: sign, 2 bits of exponent (bias 1), 1 of mantissa; no NaN; largest value 6.
E8M0: a power of two, 2**(code - 127); 255 is NaN.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def _e4m3(code: int) -> float:
    sign, exponent, mantissa = -1.0 if code >> 7 else 1.0, code >> 3 & 15, code & 7
    if code & 127 == 127:
        return float("nan")
    return sign * (mantissa * 2.0**-9 if exponent == 0 else (8 + mantissa) * 2.0 ** (exponent - 10))


E4M3: NDArray[np.float32] = np.array([_e4m3(code) for code in range(256)], np.float32)
"""The value of each code; 128 is -0."""

E8M0: NDArray[np.float32] = np.array([2.0 ** (code - 127) for code in range(255)] + [np.nan], np.float32)
"""The value of each code; 0 stands for 2**-127, which float32 holds as a subnormal number."""

SMALLEST_BFLOAT16_EXPONENT = 3
"""Smallest E8M0 code whose products with E4M3 bfloat16 holds exactly: E4M3 counts in 2**-9, bfloat16 in 2**-133."""

E2M1: NDArray[np.float32] = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)
"""The value of each code; 8 is -0."""

# Both values of a byte as one number of 64 bits: the even column is the low code, and comes first.
_E2M1_PAIRS = np.stack([np.tile(E2M1, 16), np.repeat(E2M1, 16)], axis=1).view(np.uint64)[:, 0]


def e4m3(codes: NDArray[np.uint8], out: NDArray[np.float32]) -> None:
    """Fill out with the values of the codes, which has their shape."""
    np.take(E4M3, codes, out=out, mode="clip")


def e2m1_pairs(codes: NDArray[np.uint8], out: NDArray[np.float32]) -> None:
    """Fill out (rows, 2 * columns) with the values of codes (rows, columns), two in a byte."""
    np.take(_E2M1_PAIRS, codes, out=out.view(np.uint64), mode="clip")


def bfloat16_codes(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """The bits of the nearest bfloat16, ties to even; every NaN becomes 0x7FC0, as torch has it."""
    bits = values.view(np.uint32)
    rounded = ((bits + (0x7FFF + (bits >> 16 & 1))) >> 16).astype(np.uint16)
    rounded[np.isnan(values)] = 0x7FC0
    return rounded
