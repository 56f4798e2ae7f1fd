"""From the bytes of an image to its pixels. Bytes come from strangers: every way in which they can be wrong is an error
with a name, and nothing is unpacked before its size is known."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import TypeVar

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError

from freehold.core.errors import RequestError

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
MAX_IMAGE_BYTES = 32 << 20
MAX_IMAGE_PIXELS = 50_000_000

_SIXTEEN_BITS = ("I;16", "I;16L", "I;16B", "I;16N")
_WITHOUT_RANGE = ("I", "F")

T = TypeVar("T")


def decode_image(data: bytes) -> torch.Tensor:
    """uint8 (3, height, width), upright: the EXIF orientation is applied, transparency laid on white. Of an animation
    the first frame.

    Raises RequestError for what is no image of a known format, damaged, cut off, or too large.
    """
    return upright_pixels(open_image(data))


def upright_pixels(picture: Image.Image) -> torch.Tensor:
    """uint8 (3, height, width) of an open image, its EXIF orientation applied. Raises RequestError as `to_pixels`."""
    return to_pixels(_try(lambda: _upright(picture)))


def open_image(data: bytes) -> Image.Image:
    """The image, its size checked and its pixels not yet unpacked. Raises RequestError as `decode_image` does."""
    if len(data) > MAX_IMAGE_BYTES:
        raise RequestError(f"the image has {len(data)} bytes; at most {MAX_IMAGE_BYTES} are taken")
    try:
        picture = Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError:
        raise RequestError(f"the data are no image of a known format; known are {', '.join(FORMATS)}") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise RequestError(f"the image is larger than {MAX_IMAGE_PIXELS} pixels; make it smaller") from None
    except Exception as error:  # decoders raise whatever they stumble over
        raise _damaged(error) from None
    width, height = picture.size
    if width * height > MAX_IMAGE_PIXELS:
        raise RequestError(
            f"the image has {width} x {height} pixels; at most {MAX_IMAGE_PIXELS} are taken, make it smaller"
        )
    return picture


def to_pixels(picture: Image.Image) -> torch.Tensor:
    """uint8 (3, height, width) of an image as it lies. Raises RequestError for damaged data, and for pixels that are
    numbers without a range (32-bit integers and floats)."""
    if picture.mode in _WITHOUT_RANGE:
        raise RequestError(
            f"the image's pixels are 32-bit numbers (mode {picture.mode!r}), and nothing says which is white; "
            "save it with 8 or 16 bits"
        )
    array = _try(lambda: np.array(_to_rgb(picture)))
    return torch.from_numpy(array).permute(2, 0, 1).contiguous()


def _to_rgb(picture: Image.Image) -> Image.Image:
    if picture.mode in _SIXTEEN_BITS:  # Pillow would clip them to 255
        picture = Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
    if "A" in picture.getbands() or picture.info.get("transparency") is not None:
        picture = picture.convert("RGBA")
        white = Image.new("RGBA", picture.size, (255, 255, 255, 255))
        picture = Image.alpha_composite(white, picture)
    return picture.convert("RGB")


def _upright(picture: Image.Image) -> Image.Image:
    picture.load()
    try:
        return ImageOps.exif_transpose(picture)
    except Exception:  # damaged metadata beside sound pixels
        return picture


def _try(work: Callable[[], T]) -> T:
    try:
        return work()
    except Exception as error:
        raise _damaged(error) from None


def _damaged(error: Exception) -> RequestError:
    return RequestError(f"the image is damaged or cut off: {str(error) or type(error).__name__}")
