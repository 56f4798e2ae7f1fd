"""Rotary position embedding over three axes: time, height, width."""

from __future__ import annotations

import torch
from torch import Tensor

from freehold.model.compute import Compute
from freehold.model.vision.config import VisionConfig


def patch_positions(grid: tuple[int, int, int], merge: int) -> Tensor:
    """(patches, 3) int64: time, height and width of each patch, in the order of `patch_rows`."""
    t, h, w = grid
    times, rows, columns = torch.meshgrid(torch.arange(t), torch.arange(h), torch.arange(w), indexing="ij")
    axes = torch.stack((times, rows, columns), dim=-1)
    axes = axes.view(t, h // merge, merge, w // merge, merge, 3).transpose(2, 3)
    return axes.reshape(t * h * w, 3)


def axis_tables(config: VisionConfig, compute: Compute, grid: tuple[int, int, int]) -> tuple[Tensor, Tensor]:
    """cos, sin (patches, 3 * axis_frequencies): the angles of time, then of height, then of width.

    Channel i of a head turns with channel i + 3 * axis_frequencies; what is left of the head stays as it is.
    """
    count = config.axis_frequencies
    inv_freq = 1.0 / config.rope_theta ** (torch.arange(count, dtype=torch.float32) / count)
    positions = patch_positions(grid, config.merge_size)
    tables = [compute.rope_table(positions[:, axis].contiguous(), inv_freq, 1.0) for axis in range(3)]
    return torch.cat([cos for cos, _ in tables], dim=1), torch.cat([sin for _, sin in tables], dim=1)
