"""Random numbers with the same bits on every machine, so that a checkpoint need not be stored to be known.

NumPy promises a stable stream for the raw words of PCG64 and for SeedSequence, but not for `standard_normal`;
only the two that are promised are used here, with exact integer arithmetic on top.
"""

from __future__ import annotations

import math
import zlib

import numpy as np
from numpy.typing import NDArray

_LANES = 4  # 16-bit lanes in a 64-bit word
_LANE_VALUES = 1 << 16
# The sum of four independent uniform integers below 2**16: its mean and its standard deviation.
_MEAN = _LANES * (_LANE_VALUES - 1) / 2
_STD = math.sqrt(_LANES * (_LANE_VALUES**2 - 1) / 12)


def raw_words(count: int, seed: int, name: str) -> NDArray[np.uint64]:
    """`count` raw 64-bit words of the stream that `seed` and `name` own together."""
    sequence = np.random.SeedSequence([seed, zlib.crc32(name.encode())])
    words: NDArray[np.uint64] = np.random.PCG64(sequence).random_raw(count)
    return words


def portable_normal(shape: tuple[int, ...], *, seed: int, name: str) -> NDArray[np.float32]:
    """Nearly normal numbers: mean 0, standard deviation 1, the sum of four uniform ones; bounded by 3.47.

    Every (seed, name) has its own stream, so the order in which tensors are drawn does not matter.
    """
    words = raw_words(math.prod(shape), seed, name)
    lanes = [((words >> np.uint64(16 * lane)) & np.uint64(0xFFFF)).astype(np.int64) for lane in range(_LANES)]
    normal: NDArray[np.float32] = ((np.sum(lanes, axis=0) - _MEAN) / _STD).astype(np.float32)
    return normal.reshape(shape)


def portable_tokens(count: int, *, seed: int, name: str, vocab: int = 256) -> NDArray[np.int64]:
    """`count` token ids below `vocab`, which must be a power of two so that every id is equally likely."""
    assert vocab & (vocab - 1) == 0, f"vocab is {vocab}; it must be a power of two"
    tokens: NDArray[np.int64] = (raw_words(count, seed, name) & np.uint64(vocab - 1)).astype(np.int64)
    return tokens
