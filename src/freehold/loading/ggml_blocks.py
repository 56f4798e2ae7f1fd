"""GGML's quantised blocks as float32 numbers: one function for each type.

Every function takes blocks (num_blocks, bytes of a block) uint8 and fills `out` (num_blocks, elements of a block)
float32. Layouts and the order of the operations are ggml's, so that the results are those of the gguf package to the
bit. They are written for NumPy, whose loops let other threads run.

Names: `d` and `m` are a block's float16 scale and offset; a block of 256 has sub-blocks with small integer scales.
"""

from __future__ import annotations

from collections.abc import Callable
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]

IQ4_LEVELS = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.float32)
# Twice the values of FP4 (E2M1); the scale is halved instead, so that all of them are integers.
DOUBLED_E2M1 = np.array([0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12], np.float32)
# Half of each E8M0 scale. Code 255 is not taken for NaN by ggml, which goes on counting.
HALVED_E8M0 = np.array([2.0 ** (code - 128) for code in range(256)], np.float32)


def half(blocks: Bytes, at: int) -> Floats:
    """The float16 at byte `at` of each block, (num_blocks, 1)."""
    return np.ascontiguousarray(blocks[:, at : at + 2]).view(np.float16).astype(np.float32)


def fields(packed: Bytes, groups: int, bits: int) -> Bytes:
    """Small integers out of bytes: all lowest fields of a group of bytes come first, then all second ones, ...

    packed (num_blocks, n) -> (num_blocks, 8 // bits * n).
    """
    num_blocks, width, count = len(packed), packed.shape[1] // groups, 8 // bits
    packed = np.ascontiguousarray(packed).reshape(num_blocks, groups, width)
    fields = np.empty((num_blocks, groups, count, width), np.uint8)
    for place in range(count):
        np.bitwise_and(packed >> (bits * place), 2**bits - 1, out=fields[:, :, place])
    return fields.reshape(num_blocks, -1)


def _scale(out: Floats, d: Floats) -> None:
    """out *= d, where d (num_blocks, n) has one number for each of n sub-blocks."""
    parts = out.reshape(*d.shape, -1)
    parts *= d[:, :, None]


def _shift(out: Floats, m: Floats) -> None:
    """out -= m, as `_scale`."""
    parts = out.reshape(*m.shape, -1)
    parts -= m[:, :, None]


def _q4_0(blocks: Bytes, out: Floats) -> None:
    np.subtract(fields(blocks[:, 2:], 1, 4), 8, out=out, dtype=np.float32)
    out *= half(blocks, 0)


def _q4_1(blocks: Bytes, out: Floats) -> None:
    np.multiply(fields(blocks[:, 4:], 1, 4), half(blocks, 0), out=out)
    out += half(blocks, 2)


def five_bits(high: Bytes, low: Bytes) -> Bytes:
    """Bit i of `high` (num_blocks, 4) is the fifth bit of element i."""
    fifth = np.unpackbits(np.ascontiguousarray(high), axis=1, bitorder="little")
    codes: Bytes = fields(low, 1, 4) | (fifth << np.uint8(4))
    return codes


def _q5_0(blocks: Bytes, out: Floats) -> None:
    np.subtract(five_bits(blocks[:, 2:6], blocks[:, 6:]), 16, out=out, dtype=np.float32)
    out *= half(blocks, 0)


def _q5_1(blocks: Bytes, out: Floats) -> None:
    np.multiply(five_bits(blocks[:, 4:8], blocks[:, 8:]), half(blocks, 0), out=out)
    out += half(blocks, 2)


def _q8_0(blocks: Bytes, out: Floats) -> None:
    np.multiply(blocks[:, 2:].view(np.int8), half(blocks, 0), out=out)


def _q2_k(blocks: Bytes, out: Floats) -> None:
    scales = blocks[:, :16]
    out[...] = fields(blocks[:, 16:80], 2, 2)
    _scale(out, half(blocks, 80) * (scales & 15))
    _shift(out, half(blocks, 82) * (scales >> 4))


def _q3_k(blocks: Bytes, out: Floats) -> None:
    """The high bit is stored inverted: where it is missing, 4 is taken off."""
    scales = fields(blocks[:, 96:104], 1, 4) | (fields(blocks[:, 104:108], 1, 2) << 4)
    codes = fields(blocks[:, 32:96], 2, 2) | (fields(blocks[:, :32], 1, 1) << 2)
    np.subtract(codes, 4, out=out, dtype=np.float32)
    _scale(out, half(blocks, 108) * np.subtract(scales, 32, dtype=np.float32))


def six_bit_scales(packed: Bytes) -> tuple[Bytes, Bytes]:
    """Eight scales and eight offsets of 6 bits out of (num_blocks, 12).

    The first four of each stand in the low six bits of bytes 0-3 and 4-7. Of the others, the low nibbles share bytes
    8-11, and the two high bits stand on top of the first four.
    """
    scales, offsets, nibbles = packed[:, :4], packed[:, 4:8], packed[:, 8:]
    return (
        np.concatenate([scales & 63, (nibbles & 15) | ((scales >> 2) & 48)], axis=1),
        np.concatenate([offsets & 63, (nibbles >> 4) | ((offsets >> 2) & 48)], axis=1),
    )


def _scale_and_shift(blocks: Bytes, codes: Bytes, out: Floats) -> None:
    """Q4_K and Q5_K: d, m and the packed scales begin a block; sub-blocks have 32 elements."""
    scales, offsets = six_bit_scales(blocks[:, 4:16])
    out[...] = codes
    _scale(out, half(blocks, 0) * scales)
    _shift(out, half(blocks, 2) * offsets)


def _q4_k(blocks: Bytes, out: Floats) -> None:
    _scale_and_shift(blocks, fields(blocks[:, 16:], 4, 4), out)


def _q5_k(blocks: Bytes, out: Floats) -> None:
    _scale_and_shift(blocks, fields(blocks[:, 48:], 4, 4) | (fields(blocks[:, 16:48], 1, 1) << np.uint8(4)), out)


def _q6_k(blocks: Bytes, out: Floats) -> None:
    codes = fields(blocks[:, :128], 2, 4) | (fields(blocks[:, 128:192], 2, 2) << 4)
    np.subtract(codes, 32, out=out, dtype=np.float32)
    _scale(out, half(blocks, 208) * blocks[:, 192:208].view(np.int8))


def _trits(packed: Bytes, count: int) -> NDArray[np.uint16]:
    """`count` base-3 digits of each byte, which holds them as a fraction of 256: all first digits, all second, ..."""
    powers = np.array([1, 3, 9, 27, 81][:count], np.uint8)[:, None]
    shifted = (packed[:, None, :] * powers).reshape(len(packed), -1)  # modulo 256 on purpose
    digits: NDArray[np.uint16] = (shifted.astype(np.uint16) * np.uint16(3)) >> np.uint16(8)
    return digits


def _tq1_0(blocks: Bytes, out: Floats) -> None:
    digits = (_trits(blocks[:, :32], 5), _trits(blocks[:, 32:48], 5), _trits(blocks[:, 48:52], 4))
    np.subtract(np.concatenate(digits, axis=1), 1, out=out, dtype=np.float32)
    out *= half(blocks, 52)


def _tq2_0(blocks: Bytes, out: Floats) -> None:
    np.subtract(fields(blocks[:, :64], 2, 2), 1, out=out, dtype=np.float32)
    out *= half(blocks, 64)


def _mxfp4(blocks: Bytes, out: Floats) -> None:
    np.take(DOUBLED_E2M1, fields(blocks[:, 1:], 1, 4), out=out, mode="clip")
    out *= HALVED_E8M0[blocks[:, :1]]


def _iq4_nl(blocks: Bytes, out: Floats) -> None:
    np.take(IQ4_LEVELS, fields(blocks[:, 2:], 1, 4), out=out, mode="clip")
    out *= half(blocks, 0)


def iq4_xs_scales(blocks: Bytes) -> Floats:
    """Sub-blocks of 32; their scales have four low bits in two a byte and two high bits in four a byte."""
    low = np.stack([blocks[:, 4:8] & 15, blocks[:, 4:8] >> 4], axis=2).reshape(-1, 8)
    high = (blocks[:, 2:4, None] >> np.arange(0, 8, 2, dtype=np.uint8)).reshape(-1, 8) & 3
    scales: Floats = half(blocks, 0) * np.subtract(low | (high << 4), 32, dtype=np.float32)
    return scales


def _iq4_xs(blocks: Bytes, out: Floats) -> None:
    np.take(IQ4_LEVELS, fields(blocks[:, 8:], 8, 4), out=out, mode="clip")
    _scale(out, iq4_xs_scales(blocks))


DECODERS: MappingProxyType[str, Callable[[Bytes, Floats], None]] = MappingProxyType(
    {
        "Q4_0": _q4_0,
        "Q4_1": _q4_1,
        "Q5_0": _q5_0,
        "Q5_1": _q5_1,
        "Q8_0": _q8_0,
        "Q2_K": _q2_k,
        "Q3_K": _q3_k,
        "Q4_K": _q4_k,
        "Q5_K": _q5_k,
        "Q6_K": _q6_k,
        "TQ1_0": _tq1_0,
        "TQ2_0": _tq2_0,
        "MXFP4": _mxfp4,
        "IQ4_NL": _iq4_nl,
        "IQ4_XS": _iq4_xs,
    }
)
"""By ggml's name. Types that are missing here are dequantised by the gguf package."""
