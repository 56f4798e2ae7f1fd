"""GGML's quantised blocks: what they are made of, and as float32 numbers.

Of most types a value is scale * code + offset. For these one function says where in a block the three stand, and
both the float32 numbers and the codes that kernels compute with (`ggml_codes`) come from it. Layouts and the order of
the operations are ggml's, so that the results are those of the gguf package to the bit. They are written for NumPy,
whose loops let other threads run.

Names: a block of 256 has sub-blocks with small integer scales, which its float16 scale is multiplied with.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]
Parts = tuple[NDArray[np.integer], Floats, Floats | None]
"""Codes (num_blocks, elements of a block), scales (num_blocks, sub-blocks), and offsets, the same or None."""

_IQ4_LEVELS = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.float32)
# Twice the values of FP4 (E2M1); the scale is halved instead, so that all of them are integers.
_DOUBLED_E2M1 = np.array([0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12], np.float32)
# Half of each E8M0 scale. Code 255 is not taken for NaN by ggml, which goes on counting.
_HALVED_E8M0 = np.array([2.0 ** (code - 128) for code in range(256)], np.float32)
_UP = np.arange(16, dtype=np.float32)
_MIDDLE = np.arange(-8, 8, dtype=np.float32)


def _half(blocks: Bytes, at: int) -> Floats:
    """The float16 at byte `at` of each block, (num_blocks, 1)."""
    return np.ascontiguousarray(blocks[:, at : at + 2]).view(np.float16).astype(np.float32)


def _fields(packed: Bytes, groups: int, bits: int) -> Bytes:
    """Small integers out of bytes: all lowest fields of a group of bytes come first, then all second ones, ...

    packed (num_blocks, n) -> (num_blocks, 8 // bits * n).
    """
    num_blocks, width, count = len(packed), packed.shape[1] // groups, 8 // bits
    packed = np.ascontiguousarray(packed).reshape(num_blocks, groups, width)
    fields = np.empty((num_blocks, groups, count, width), np.uint8)
    for place in range(count):
        np.bitwise_and(packed >> (bits * place), 2**bits - 1, out=fields[:, :, place])
    return fields.reshape(num_blocks, -1)


def _five_bits(high: Bytes, low: Bytes) -> Bytes:
    """Bit i of `high` (num_blocks, 4) is the fifth bit of element i."""
    fifth = np.unpackbits(np.ascontiguousarray(high), axis=1, bitorder="little")
    codes: Bytes = _fields(low, 1, 4) | (fifth << np.uint8(4))
    return codes


def _six_bit_scales(packed: Bytes) -> tuple[Bytes, Bytes]:
    """Eight scales and eight offsets of 6 bits out of (num_blocks, 12).

    The first four of each stand in the low six bits of bytes 0-3 and 4-7. Of the others, the low nibbles share bytes
    8-11, and the two high bits stand on top of the first four.
    """
    scales, offsets, nibbles = packed[:, :4], packed[:, 4:8], packed[:, 8:]
    return (
        np.concatenate([scales & 63, (nibbles & 15) | ((scales >> 2) & 48)], axis=1),
        np.concatenate([offsets & 63, (nibbles >> 4) | ((offsets >> 2) & 48)], axis=1),
    )


def _iq4_xs_scales(blocks: Bytes) -> Floats:
    """Sub-blocks of 32; their scales have four low bits in two a byte and two high bits in four a byte."""
    low = np.stack([blocks[:, 4:8] & 15, blocks[:, 4:8] >> 4], axis=2).reshape(-1, 8)
    high = (blocks[:, 2:4, None] >> np.arange(0, 8, 2, dtype=np.uint8)).reshape(-1, 8) & 3
    scales: Floats = _half(blocks, 0) * np.subtract(low | (high << 4), 32, dtype=np.float32)
    return scales


def _q4_0(blocks: Bytes) -> Parts:
    return _fields(blocks[:, 2:], 1, 4), _half(blocks, 0), None


def _q4_1(blocks: Bytes) -> Parts:
    return _fields(blocks[:, 4:], 1, 4), _half(blocks, 0), _half(blocks, 2)


def _q5_0(blocks: Bytes) -> Parts:
    return _signed(_five_bits(blocks[:, 2:6], blocks[:, 6:]), 16), _half(blocks, 0), None


def _q5_1(blocks: Bytes) -> Parts:
    return _five_bits(blocks[:, 4:8], blocks[:, 8:]), _half(blocks, 0), _half(blocks, 2)


def _q8_0(blocks: Bytes) -> Parts:
    return blocks[:, 2:].view(np.int8), _half(blocks, 0), None


def _q2_k(blocks: Bytes) -> Parts:
    scales, offsets = _half(blocks, 80) * (blocks[:, :16] & 15), _half(blocks, 82) * (blocks[:, :16] >> 4)
    return _fields(blocks[:, 16:80], 2, 2), scales, -offsets


def _q3_k(blocks: Bytes) -> Parts:
    """The high bit is stored inverted: where it is missing, 4 is taken off."""
    scales = _fields(blocks[:, 96:104], 1, 4) | (_fields(blocks[:, 104:108], 1, 2) << 4)
    codes = _fields(blocks[:, 32:96], 2, 2) | (_fields(blocks[:, :32], 1, 1) << 2)
    return _signed(codes, 4), _half(blocks, 108) * np.subtract(scales, 32, dtype=np.float32), None


def _k_scales(blocks: Bytes) -> tuple[Floats, Floats]:
    """Q4_K and Q5_K: d, m and the packed scales begin a block; sub-blocks have 32 elements."""
    scales, offsets = _six_bit_scales(blocks[:, 4:16])
    return _half(blocks, 0) * scales, -(_half(blocks, 2) * offsets)


def _q4_k(blocks: Bytes) -> Parts:
    return _fields(blocks[:, 16:], 4, 4), *_k_scales(blocks)


def _q5_k(blocks: Bytes) -> Parts:
    high = _fields(blocks[:, 16:48], 1, 1) << np.uint8(4)
    return _fields(blocks[:, 48:], 4, 4) | high, *_k_scales(blocks)


def _q6_k(blocks: Bytes) -> Parts:
    codes = _fields(blocks[:, :128], 2, 4) | (_fields(blocks[:, 128:192], 2, 2) << 4)
    return _signed(codes, 32), _half(blocks, 208) * blocks[:, 192:208].view(np.int8), None


def _mxfp4(blocks: Bytes) -> Parts:
    return _fields(blocks[:, 1:], 1, 4), _HALVED_E8M0[blocks[:, :1]], None


def _iq4_nl(blocks: Bytes) -> Parts:
    return _fields(blocks[:, 2:], 1, 4), _half(blocks, 0), None


def _iq4_xs(blocks: Bytes) -> Parts:
    return _fields(blocks[:, 8:], 8, 4), _iq4_xs_scales(blocks), None


def _signed(codes: NDArray[np.integer], middle: int) -> NDArray[np.int8]:
    signed: NDArray[np.int8] = codes.astype(np.int8) - np.int8(middle)
    return signed


@dataclass(frozen=True, slots=True)
class Layout:
    """A type of blocks whose values are scale * code + offset.

    split: blocks (num_blocks, bytes of a block) -> their parts. levels: the 16 values of codes of 4 bits; None: codes
    of 8 bits, which are their own values.
    """

    split: Callable[[Bytes], Parts]
    levels: Floats | None = None

    def decode(self, blocks: Bytes, out: Floats) -> None:
        """Fills out (num_blocks, elements of a block)."""
        codes, scales, offsets = self.split(blocks)
        if self.levels is None:
            out[...] = codes
        elif (np.diff(self.levels) == 1).all():  # half the time of looking them up
            np.add(codes, self.levels[0], out=out, dtype=np.float32)
        else:
            np.take(self.levels, codes, out=out, mode="clip")
        sub_blocks = out.reshape(*scales.shape, -1)
        sub_blocks *= scales[:, :, None]
        if offsets is not None:
            sub_blocks += offsets[:, :, None]


LAYOUTS = MappingProxyType(
    {
        "Q4_0": Layout(_q4_0, _MIDDLE),
        "Q4_1": Layout(_q4_1, _UP),
        "Q5_0": Layout(_q5_0),
        "Q5_1": Layout(_q5_1),
        "Q8_0": Layout(_q8_0),
        "Q2_K": Layout(_q2_k, _UP),
        "Q3_K": Layout(_q3_k),
        "Q4_K": Layout(_q4_k, _UP),
        "Q5_K": Layout(_q5_k),
        "Q6_K": Layout(_q6_k),
        "MXFP4": Layout(_mxfp4, _DOUBLED_E2M1),
        "IQ4_NL": Layout(_iq4_nl, _IQ4_LEVELS),
        "IQ4_XS": Layout(_iq4_xs, _IQ4_LEVELS),
    }
)
"""By ggml's name."""


def _trits(packed: Bytes, count: int) -> NDArray[np.uint16]:
    """`count` base-3 digits of each byte, which holds them as a fraction of 256: all first digits, all second, ..."""
    powers = np.array([1, 3, 9, 27, 81][:count], np.uint8)[:, None]
    shifted = (packed[:, None, :] * powers).reshape(len(packed), -1)  # modulo 256 on purpose
    digits: NDArray[np.uint16] = (shifted.astype(np.uint16) * np.uint16(3)) >> np.uint16(8)
    return digits


def _tq1_0(blocks: Bytes, out: Floats) -> None:
    digits = (_trits(blocks[:, :32], 5), _trits(blocks[:, 32:48], 5), _trits(blocks[:, 48:52], 4))
    np.subtract(np.concatenate(digits, axis=1), 1, out=out, dtype=np.float32)
    out *= _half(blocks, 52)


def _tq2_0(blocks: Bytes, out: Floats) -> None:
    np.subtract(_fields(blocks[:, :64], 2, 2), 1, out=out, dtype=np.float32)
    out *= _half(blocks, 64)


DECODERS: MappingProxyType[str, Callable[[Bytes, Floats], None]] = MappingProxyType(
    {**{kind: layout.decode for kind, layout in LAYOUTS.items()}, "TQ1_0": _tq1_0, "TQ2_0": _tq2_0}
)
"""By ggml's name: each fills its second argument. Types that are missing here are dequantised by the gguf package."""
