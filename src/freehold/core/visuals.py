"""Images and pieces of video, as the rooms hand them to each other: pixels of the model's size, and their place in a
prompt."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from freehold.core.errors import ArgumentError

VisualKind = Literal["image", "video"]


@dataclass(frozen=True, slots=True, eq=False)
class Frames:
    """What a vision tower looks at in one go: a still image, or a segment of a video.

    pixels: uint8 (frames, 3, height, width), already of the size that the model wants; a still image is one frame.
    grid: patches along time, height and width. num_tokens: how many tokens of a prompt it takes.
    digest: 32 bytes over all of it; equal digests mean equal features.
    """

    kind: VisualKind
    pixels: torch.Tensor
    grid: tuple[int, int, int]
    num_tokens: int
    digest: bytes

    @staticmethod
    def of(kind: VisualKind, pixels: torch.Tensor, grid: tuple[int, int, int], num_tokens: int) -> Frames:
        """Frames with their digest. Raises ArgumentError for pixels of another type or shape."""
        if pixels.dtype != torch.uint8 or pixels.ndim != 4 or pixels.shape[1] != 3:
            raise ArgumentError(
                f"pixels are {pixels.dtype} {tuple(pixels.shape)}; they must be torch.uint8 (frames, 3, height, width)"
            )
        pixels = pixels.contiguous()
        said = hashlib.sha256(f"frames {tuple(pixels.shape)} {grid} {num_tokens}\0".encode("ascii"))
        said.update(pixels.numpy().data)
        return Frames(kind, pixels, grid, num_tokens, said.digest())


@dataclass(frozen=True, slots=True, eq=False)
class Placed:
    """Frames, and the positions of the prompt whose tokens stand for them: runs in ascending order, as long together
    as the frames have tokens. A segment of a video has one run for each pair of frames."""

    frames: Frames
    runs: tuple[range, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Overlay:
    """Rows of a step that take features in place of a token's embedding.

    token_ids: (rows of the step,) int64, of all rows. rows: (n,) int64, ascending; perhaps none. features: (n,
    hidden_size) float32.
    """

    token_ids: torch.Tensor
    rows: torch.Tensor
    features: torch.Tensor


def content_keys(prompt: Sequence[int], placed: Sequence[Placed]) -> list[int]:
    """What the block cache knows a prompt by: its token ids, but numbers below zero where frames stand.

    Each of those has 63 bits of a digest over the frames and its place among their rows, so that equal images share
    blocks and others never do. The token before a run, which opens it, has such a number too: a block that ends with
    a run's first row still tells images apart by twice as many bits.
    """
    keys = list(prompt)
    for item in placed:
        digest, row = item.frames.digest, 0
        for run in item.runs:
            drawn = hashlib.shake_256(digest + row.to_bytes(8, "little")).digest(8 * len(run))
            for place, position in enumerate(run):
                keys[position] = _below_zero(drawn[8 * place : 8 * place + 8])
            if run.start > 0 and keys[run.start - 1] >= 0:
                opened = f"{row} {prompt[run.start - 1]}".encode("ascii")
                keys[run.start - 1] = _below_zero(hashlib.sha256(b"before\0" + digest + opened).digest()[:8])
            row += len(run)
    return keys


def _below_zero(eight: bytes) -> int:
    return -1 - (int.from_bytes(eight, "little") >> 1)
