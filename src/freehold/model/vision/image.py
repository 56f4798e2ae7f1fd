"""A still image, as the tower sees it."""

from __future__ import annotations

from typing import Any

import torch
from PIL import Image

from freehold.core.visuals import Frames
from freehold.model.vision.config import VisionConfig
from freehold.model.vision.decode import MAX_IMAGE_BYTES, decode_image, upright_pixels
from freehold.model.vision.patches import to_frames
from freehold.model.vision.resize import IMAGE_AREA, resize, wanted_size
from freehold.model.vision.source import read_source


def read_pixels(source: Any, *, local: bool) -> torch.Tensor:
    """uint8 (3, height, width) of an image: bytes, a data URL and, if `local`, a path or an open Pillow image.

    Raises RequestError or UnsupportedFieldError as `read_source` and `decode_image` do.
    """
    if local and isinstance(source, Image.Image):
        return upright_pixels(source)
    return decode_image(read_source(source, local=local, limit=MAX_IMAGE_BYTES))


def image_frames(pixels: torch.Tensor, config: VisionConfig) -> Frames:
    """The frames of one image, uint8 (3, height, width). Raises RequestError for one that is too long and thin."""
    height, width = pixels.shape[1:]
    size = wanted_size(height, width, config.factor, IMAGE_AREA)
    return to_frames("image", resize(pixels[None], *size), config)
