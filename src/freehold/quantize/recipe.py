"""Which tensor is stored how."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import gguf
import torch

from freehold.kernels.encode import BLOCK
from freehold.loading.checkpoint import Checkpoint, TensorInfo
from freehold.loading.safetensors_header import BITS_PER_ELEMENT
from freehold.model.registry import matrix_names

Bits = Literal[4, 8]

_INT8, _INT4 = "Q8_0", "Q4_1"
_DELICATE = ("embed_tokens", "token_embd", "lm_head", "output.weight", "self_attn.", ".attn_", ".indexer.")
"""Parts of the names of embeddings and of attention, its index branch included. Four bits cost most there, and in a
mixture of experts they are a small part of the bytes (of M3's, 2 %): they keep 8."""


@dataclass(frozen=True, slots=True)
class Item:
    """One tensor of the new checkpoint.

    kind: "Q8_0" or "Q4_1" of a matrix that is encoded; otherwise the floating type that it is copied or expanded to.
    """

    name: str
    shape: tuple[int, ...]
    kind: str

    @property
    def is_encoded(self) -> bool:
        """Whether its values become codes."""
        return self.kind in (_INT8, _INT4)

    @property
    def row_nbytes(self) -> int:
        """Bytes of a row of its last axis."""
        columns = self.shape[-1] if self.shape else 1
        if not self.is_encoded:
            return columns * BITS_PER_ELEMENT[self.kind] // 8
        block, nbytes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[self.kind]]
        return int(columns // block * nbytes)

    @property
    def nbytes(self) -> int:
        """Bytes in the file."""
        return math.prod(self.shape[:-1]) * self.row_nbytes


def plan_items(checkpoint: Checkpoint, bits: Bits) -> list[Item]:
    """Every tensor of the checkpoint in its order, and what becomes of it.

    Encoded are the matrices that the model multiplies with, where 32 divides their rows. All else keeps its values:
    what is stored as floats is copied, what is quantised in another way is expanded.
    """
    matrices = matrix_names(checkpoint)
    return [
        Item(name, info.shape, _kind(checkpoint, name, info, bits, matrices))
        for name, info in checkpoint.tensors.items()
    ]


def _kind(checkpoint: Checkpoint, name: str, info: TensorInfo, bits: Bits, matrices: frozenset[str]) -> str:
    if name in matrices and len(info.shape) > 1 and info.shape[-1] % BLOCK == 0:
        return _INT8 if bits == 8 or any(part in name for part in _DELICATE) else _INT4
    stored = checkpoint.quantized(name)
    if stored is None:
        return info.dtype
    return "BF16" if stored.lossless_dtype == torch.bfloat16 else "F32"
