"""From frames to the rows that the tower reads: normalised, and cut into patches."""

from __future__ import annotations

import torch

from freehold.core.errors import ArgumentError
from freehold.core.visuals import Frames, VisualKind
from freehold.model.vision.config import VisionConfig

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)


def to_frames(kind: VisualKind, pixels: torch.Tensor, config: VisionConfig) -> Frames:
    """Frames of uint8 pixels (frames, 3, height, width), whose sides are multiples of `config.factor`."""
    count, _, height, width = pixels.shape
    if height % config.factor or width % config.factor:
        raise ArgumentError(f"pixels are {width} x {height}; both sides must be multiples of {config.factor}")
    grid = (-(-count // config.temporal_patch_size), height // config.patch_size, width // config.patch_size)
    return Frames.of(kind, pixels, grid, grid[0] * grid[1] * grid[2] // config.merge_size**2)


def patch_rows(frames: Frames, config: VisionConfig) -> torch.Tensor:
    """(patches, channels * time * height * width of a patch) float32.

    The patches of one token follow each other; tokens go by time, then height, then width. The last frame is repeated
    where a patch in time is not full: a still image is seen twice.
    """
    t, h, w = frames.grid
    time, merge, size = config.temporal_patch_size, config.merge_size, config.patch_size
    mean, std = torch.tensor(MEAN) * 255.0, torch.tensor(STD) * 255.0
    x = (frames.pixels.float() - mean[:, None, None]) / std[:, None, None]
    missing = t * time - x.shape[0]
    if missing:
        x = torch.cat((x, x[-1:].expand(missing, -1, -1, -1)))
    x = x.view(t, time, 3, h // merge, merge, size, w // merge, merge, size)
    x = x.permute(0, 3, 6, 4, 7, 2, 1, 5, 8)  # (t, h / merge, w / merge, merge, merge, channels, time, rows, columns)
    return x.reshape(t * h * w, config.patch_numbers)
