"""What the golden fixtures cover: the inputs, which are made anew each time, and the rows that are stored."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from support.portable_random import portable_normal, raw_words

DIRECTORY = Path(__file__).parents[1] / "golden"


@dataclass(frozen=True, slots=True)
class OperatorCase:
    """One set of random operator inputs: `total` queries and as many keys, query i at position i."""

    name: str
    topk: int
    local_blocks: int
    block_tokens: int
    total: int = 2304
    num_q_heads: int = 4
    num_kv_heads: int = 2
    head_dim: int = 64
    index_dim: int = 32
    seed: int = 11

    def inputs(self) -> dict[str, NDArray[np.float32]]:
        """q, k, v, index_q and index_k, fp32, token-major."""
        shapes = {
            "q": (self.total, self.num_q_heads, self.head_dim),
            "k": (self.total, self.num_kv_heads, self.head_dim),
            "v": (self.total, self.num_kv_heads, self.head_dim),
            "index_q": (self.total, self.num_kv_heads, self.index_dim),
            "index_k": (self.total, self.index_dim),
        }
        return {
            name: portable_normal(shape, seed=self.seed, name=f"{self.name}.{name}") for name, shape in shapes.items()
        }


OPERATOR_CASES = (
    OperatorCase("release", topk=16, local_blocks=1, block_tokens=128),
    OperatorCase("narrow", topk=3, local_blocks=1, block_tokens=128),
    OperatorCase("two_local", topk=6, local_blocks=2, block_tokens=64, num_q_heads=6, head_dim=128, index_dim=64),
)


@dataclass(frozen=True, slots=True)
class ModelCase:
    """One stored run of a tiny M3: the prompt of `length` tokens of a shape."""

    shape: str
    length: int


MODEL_CASE = ModelCase("release_selection", 2500)


def sampled_rows(total: int, name: str, count: int = 40) -> list[int]:
    """The rows that a fixture stores: both ends, both sides of the 2,048th token, and random ones; ascending."""
    drawn = raw_words(count, 0, f"rows of {name}") % np.uint64(total)
    fixed = {0, 1, 127, 128, 2047, 2048, 2049, total - 1}
    return sorted({int(row) for row in drawn} | {row for row in fixed if row < total})


def stored(name: str) -> dict[str, Any]:
    """The arrays of one fixture file, by name."""
    from safetensors.numpy import load_file

    return dict(load_file(DIRECTORY / f"{name}.safetensors"))
