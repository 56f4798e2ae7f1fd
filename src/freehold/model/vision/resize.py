"""The size at which an image is looked at, and bringing it to that size."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from freehold.core.errors import RequestError

MAX_ASPECT_RATIO = 200


@dataclass(frozen=True, slots=True)
class Area:
    """Least and most pixels of an image after resizing."""

    least: int
    most: int


IMAGE_AREA = Area(least=4 * 28 * 28, most=451_584)
VIDEO_AREA = Area(least=4 * 28 * 28, most=768 * 28 * 28)


def wanted_size(height: int, width: int, factor: int, area: Area) -> tuple[int, int]:
    """(height, width) near the given one, both multiples of `factor`, within `area` as far as that goes.

    Halves are rounded to even numbers. Raises RequestError for an image more than 200 times as long as wide.
    """
    if max(height, width) > MAX_ASPECT_RATIO * min(height, width):
        raise RequestError(
            f"an image of {width} x {height} pixels is more than {MAX_ASPECT_RATIO} times as long as it is wide; "
            "cut it into pieces"
        )
    rows, columns = round(height / factor) * factor, round(width / factor) * factor
    if rows * columns > area.most:
        shrink = math.sqrt((height * width) / area.most)
        rows = max(factor, math.floor(height / shrink / factor) * factor)
        columns = max(factor, math.floor(width / shrink / factor) * factor)
    elif rows * columns < area.least:
        grow = math.sqrt(area.least / (height * width))
        rows = math.ceil(height * grow / factor) * factor
        columns = math.ceil(width * grow / factor) * factor
    return rows, columns


def resize(pixels: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """uint8 (frames, 3, h, w) -> (frames, 3, height, width): bicubic, with antialiasing, in whole numbers, so that
    the result does not depend on threads or processors."""
    if tuple(pixels.shape[-2:]) == (height, width):
        return pixels
    return F.interpolate(pixels, size=(height, width), mode="bicubic", align_corners=False, antialias=True)
