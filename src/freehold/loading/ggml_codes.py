"""GGML's quantised blocks as codes with scales, for the types whose values are scale * code + offset.

Every function takes blocks (num_blocks, bytes of a block) uint8 and returns the codes (num_blocks, elements of a
block), the scales (num_blocks, sub-blocks) and the offsets, the same or None. Scales are ggml's own products, so that
what the codes stand for has the bits of the dequantised weight.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import MappingProxyType

import gguf
import numpy as np
import torch
from numpy.typing import NDArray

from freehold.core.coded import CodedWeight
from freehold.loading.ggml_blocks import (
    DOUBLED_E2M1,
    HALVED_E8M0,
    IQ4_LEVELS,
    fields,
    five_bits,
    half,
    iq4_xs_scales,
    six_bit_scales,
)

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]
Parts = tuple[NDArray[np.integer], Floats, Floats | None]

_CHUNK_ELEMENTS = 2**20  # elements that are unpacked at a time
_UP = tuple(float(i) for i in range(16))
_MIDDLE = tuple(float(i - 8) for i in range(16))


def _q4_0(b: Bytes) -> Parts:
    return fields(b[:, 2:], 1, 4), half(b, 0), None


def _q4_1(b: Bytes) -> Parts:
    return fields(b[:, 4:], 1, 4), half(b, 0), half(b, 2)


def _q5_0(b: Bytes) -> Parts:
    return _signed(five_bits(b[:, 2:6], b[:, 6:]), 16), half(b, 0), None


def _q5_1(b: Bytes) -> Parts:
    return five_bits(b[:, 4:8], b[:, 8:]), half(b, 0), half(b, 2)


def _q8_0(b: Bytes) -> Parts:
    return b[:, 2:].view(np.int8), half(b, 0), None


def _q2_k(b: Bytes) -> Parts:
    scales, offsets = half(b, 80) * (b[:, :16] & 15), half(b, 82) * (b[:, :16] >> 4)
    return fields(b[:, 16:80], 2, 2), scales, -offsets


def _q3_k(b: Bytes) -> Parts:
    scales = fields(b[:, 96:104], 1, 4) | (fields(b[:, 104:108], 1, 2) << 4)
    codes = fields(b[:, 32:96], 2, 2) | (fields(b[:, :32], 1, 1) << 2)
    return _signed(codes, 4), half(b, 108) * np.subtract(scales, 32, dtype=np.float32), None


def _k_scales(b: Bytes) -> tuple[Floats, Floats]:
    scales, offsets = six_bit_scales(b[:, 4:16])
    return half(b, 0) * scales, -(half(b, 2) * offsets)


def _q4_k(b: Bytes) -> Parts:
    return fields(b[:, 16:], 4, 4), *_k_scales(b)


def _q5_k(b: Bytes) -> Parts:
    high = fields(b[:, 16:48], 1, 1) << np.uint8(4)
    return fields(b[:, 48:], 4, 4) | high, *_k_scales(b)


def _q6_k(b: Bytes) -> Parts:
    codes = fields(b[:, :128], 2, 4) | (fields(b[:, 128:192], 2, 2) << 4)
    return _signed(codes, 32), half(b, 208) * b[:, 192:208].view(np.int8), None


def _mxfp4(b: Bytes) -> Parts:
    return fields(b[:, 1:], 1, 4), HALVED_E8M0[b[:, :1]], None


def _iq4_nl(b: Bytes) -> Parts:
    return fields(b[:, 2:], 1, 4), half(b, 0), None


def _iq4_xs(b: Bytes) -> Parts:
    return fields(b[:, 8:], 8, 4), iq4_xs_scales(b), None


def _signed(codes: NDArray[np.integer], middle: int) -> NDArray[np.int8]:
    signed: NDArray[np.int8] = codes.astype(np.int8) - np.int8(middle)
    return signed


@dataclass(frozen=True, slots=True)
class _Kind:
    split: Callable[[Bytes], Parts]
    table: tuple[float, ...] = ()  # of codes of 4 bits; empty: the codes have 8


_KINDS = MappingProxyType(
    {
        "Q4_0": _Kind(_q4_0, _MIDDLE),
        "Q4_1": _Kind(_q4_1, _UP),
        "Q5_0": _Kind(_q5_0),
        "Q5_1": _Kind(_q5_1),
        "Q8_0": _Kind(_q8_0),
        "Q2_K": _Kind(_q2_k, _UP),
        "Q3_K": _Kind(_q3_k),
        "Q4_K": _Kind(_q4_k, _UP),
        "Q5_K": _Kind(_q5_k),
        "Q6_K": _Kind(_q6_k),
        "MXFP4": _Kind(_mxfp4, tuple(map(float, DOUBLED_E2M1))),
        "IQ4_NL": _Kind(_iq4_nl, tuple(map(float, IQ4_LEVELS))),
        "IQ4_XS": _Kind(_iq4_xs, tuple(map(float, IQ4_LEVELS))),
    }
)


def ggml_codes(kind: str, shape: tuple[int, ...], data: torch.Tensor) -> CodedWeight | None:
    """A matrix of `kind` as codes; None for a kind that is not scale * code + offset.

    data: uint8 (out, bytes of a row). It needs a byte for each element, and a few megabytes beside.
    """
    known = _KINDS.get(kind)
    if known is None or len(shape) != 2:
        return None
    rows, columns = shape
    _, block_nbytes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
    codes = np.empty(shape, np.uint8 if known.table else np.int8)
    scales: list[Floats] = []
    offsets: list[Floats] = []
    step = max(1, _CHUNK_ELEMENTS // columns)
    for first in range(0, rows, step):
        part = data[first : first + step]
        split, scale, offset = known.split(part.reshape(-1, block_nbytes).numpy())
        codes[first : first + step] = split.reshape(len(part), columns)
        scales.append(scale.reshape(len(part), -1))
        if offset is not None:
            offsets.append(offset.reshape(len(part), -1))
    return CodedWeight(
        4 if known.table else 8,
        torch.from_numpy(codes),
        torch.from_numpy(np.concatenate(scales)),
        torch.from_numpy(np.concatenate(offsets)) if offsets else None,
        known.table,
    )
