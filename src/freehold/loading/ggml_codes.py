"""GGML's quantised matrices as codes with scales.

Scales are ggml's own products, so that what the codes stand for has the bits of the dequantised weight.
"""

from __future__ import annotations

import gguf
import numpy as np
import torch

from freehold.core.coded import CodedWeight
from freehold.loading.ggml_blocks import LAYOUTS, Floats

_CHUNK_ELEMENTS = 2**20  # unpacked at a time


def ggml_codes(kind: str, shape: tuple[int, ...], data: torch.Tensor) -> CodedWeight | None:
    """A matrix of `kind` as codes; None for a kind that is not scale * code + offset.

    data: uint8 (out, bytes of a row). It needs a byte for each element, and a few megabytes beside.
    """
    layout = LAYOUTS.get(kind)
    if layout is None or len(shape) != 2:
        return None
    rows, columns = shape
    _, block_nbytes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
    codes = np.empty(shape, np.int8 if layout.levels is None else np.uint8)
    scales: list[Floats] = []
    offsets: list[Floats] = []
    step = max(1, _CHUNK_ELEMENTS // columns)
    for first in range(0, rows, step):
        part = data[first : first + step]
        with np.errstate(all="ignore"):  # scales that are infinite or not a number are the file's, and are passed on
            split, scale, offset = layout.split(part.reshape(-1, block_nbytes).numpy())
        codes[first : first + step] = split.reshape(len(part), columns)
        scales.append(scale.reshape(len(part), -1))
        if offset is not None:
            offsets.append(offset.reshape(len(part), -1))
    return CodedWeight(
        8 if layout.levels is None else 4,
        torch.from_numpy(codes),
        torch.from_numpy(np.concatenate(scales)),
        torch.from_numpy(np.concatenate(offsets)) if offsets else None,
        () if layout.levels is None else tuple(layout.levels.tolist()),
    )
