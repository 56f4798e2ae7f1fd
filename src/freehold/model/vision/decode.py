"""From the bytes of an image to its pixels. Bytes come from strangers: every way in which they can be wrong is an error
with a name, and nothing is unpacked before its size is known."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from typing import TypeVar

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile

from freehold.core.axes import ceil_div
from freehold.core.errors import RequestError

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
MAX_IMAGE_BYTES = 32 << 20
MAX_IMAGE_PIXELS = 50_000_000
MAX_JPEG_SCANS = 64
"""Scans of a progressive JPEG; usual ones have about ten. Each passes over the whole image, however few its bytes."""
MAX_JPEG_SEGMENTS = 10_000
TILE_PIXELS, TILE_SHARE = 2**20, 4
"""What the tiles of a TIFF may cover: so many pixels, or so many times those of the image."""

_SIXTEEN_BITS = ("I;16", "I;16L", "I;16B", "I;16N")
_WITHOUT_RANGE = ("I", "F")
_PREMULTIPLIED = {"La": "LA", "RGBa": "RGBA"}
_SMALL_GREYS = {"L;2": 85, "L;4": 17}
"""How PNG files with fewer bits lie, and what Pillow multiplies their greys with."""
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_BITS, _PHOTOMETRIC, _PLANES, _TILE_WIDTH, _TILE_LENGTH, _SAMPLE_FORMAT = 258, 262, 284, 322, 323, 339
_JPEG_MARKER = re.compile(rb"\xff([^\x00\xff\xd0-\xd7])")
"""What ends a stretch of coded pixels; escaped bytes, fillers and restarts stand within it."""
_TEM, _SOI, _EOI, _SOS = 0x01, 0xD8, 0xD9, 0xDA

T = TypeVar("T")


def decode_image(data: bytes) -> torch.Tensor:
    """uint8 (3, height, width), upright: the EXIF orientation is applied, transparency laid on white. Of an animation
    the first frame.

    Raises RequestError for what is no image of a known format, damaged, cut off, or too large.
    """
    return upright_pixels(open_image(data))


def upright_pixels(picture: Image.Image) -> torch.Tensor:
    """uint8 (3, height, width) of an open image, its EXIF orientation applied. Raises RequestError as `to_pixels`, and
    for kinds of pixels that Pillow reads wrongly."""
    check_kind(picture)
    return to_pixels(_try(lambda: _upright(picture)))


def open_image(data: bytes) -> Image.Image:
    """The image, its size checked and its pixels not yet unpacked. Raises RequestError as `decode_image` does."""
    if len(data) > MAX_IMAGE_BYTES:
        raise RequestError(f"the image has {len(data)} bytes; at most {MAX_IMAGE_BYTES} are taken")
    try:
        picture = Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError:
        if data.startswith(_TIFF):
            raise _unread("of a kind that is not read, such as floats of several channels") from None
        raise RequestError(f"the data are no image of a known format; known are {', '.join(FORMATS)}") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise RequestError(f"the image is larger than {MAX_IMAGE_PIXELS} pixels; make it smaller") from None
    except Exception as error:  # decoders raise whatever they stumble over
        raise _damaged(error) from None
    check_kind(picture)
    if isinstance(picture, JpegImageFile):
        _check_scans(data)
    return picture


def check_kind(picture: Image.Image) -> None:
    """Raises RequestError for an image without pixels or with too many, and for those that Pillow would read wrongly
    without a word."""
    width, height = picture.size
    if not width or not height:
        raise RequestError(f"the image has {width} x {height} pixels; it must have one at least")
    if width * height > MAX_IMAGE_PIXELS:
        raise RequestError(
            f"the image has {width} x {height} pixels; at most {MAX_IMAGE_PIXELS} are taken, make it smaller"
        )
    if isinstance(picture, TiffImageFile):
        _check_tiff(picture)
    raw = picture.tile[0].args if isinstance(picture, PngImageFile) and picture.tile else None
    transparent = picture.info.get("transparency")
    if raw == "RGB;16B" and transparent is not None:  # it is compared with the upper halves of the pixels
        raise RequestError("the image has 16 bits a channel and one transparent colour; save it with an alpha channel")
    if raw in _SMALL_GREYS and isinstance(transparent, int) and transparent <= 255 // _SMALL_GREYS[raw]:
        picture.info["transparency"] = transparent * _SMALL_GREYS[raw]  # the pixels are made 8 bits wide, it is not


def _check_scans(data: bytes) -> None:
    """Raises RequestError for a JPEG with more scans than any encoder makes: each would take the time of an image."""
    scans = at = 0
    for _ in range(MAX_JPEG_SEGMENTS):
        found = _JPEG_MARKER.search(data, at)
        if found is None or found[1][0] == _EOI:  # what follows is not decoded
            return
        at = found.end()
        scans += found[1][0] == _SOS
        if scans > MAX_JPEG_SCANS:
            raise RequestError(f"the JPEG has more than {MAX_JPEG_SCANS} scans; save it again")
        if found[1][0] not in (_TEM, _SOI):
            at += int.from_bytes(data[at : at + 2], "big")
    raise RequestError(f"the JPEG has more than {MAX_JPEG_SEGMENTS} segments; save it again")


def _check_tiff(picture: TiffImageFile) -> None:
    tags = picture.tag_v2
    _check_tiles(picture)
    bits = _try(lambda: int(max(tags.get(_BITS, (1,)))))  # tags of damaged files may be anything
    formats = _try(lambda: set(tags.get(_SAMPLE_FORMAT, (1,))))
    black, planes = _try(lambda: (tags.get(_PHOTOMETRIC), tags.get(_PLANES)))
    if picture.mode in _WITHOUT_RANGE:
        return  # refused for that
    if formats != {1}:
        raise _unread("of signed numbers or floats")
    if picture.mode in _SIXTEEN_BITS and bits != 16:
        raise _unread(f"of {bits} bits")
    if picture.mode in _SIXTEEN_BITS and black == 0:
        raise _unread("of 16 bits, of which 0 is white")
    if bits > 8 and planes == 2:
        raise _unread(f"of {bits} bits, each channel by itself")


def _check_tiles(picture: TiffImageFile) -> None:
    """Raises RequestError for tiles that are far larger than the image: they are unpacked whole."""
    tags, (width, height) = picture.tag_v2, picture.size
    across, down = _try(lambda: (int(tags.get(_TILE_WIDTH, 1)), int(tags.get(_TILE_LENGTH, 1))))
    if across < 1 or down < 1:
        raise _damaged(ValueError(f"its tiles have {across} x {down} pixels"))
    covered = ceil_div(width, across) * across * ceil_div(height, down) * down
    if covered > max(TILE_PIXELS, TILE_SHARE * width * height):
        raise RequestError(
            f"the TIFF has {width} x {height} pixels in tiles of {across} x {down}; save it without tiles"
        )


def _unread(kind: str) -> RequestError:
    return RequestError(f"the TIFF has pixels {kind}; save it with 8 bits a channel, or as PNG")


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
        whole, transparent = np.asarray(picture), picture.info.get("transparency")
        grey = (whole >> 8).astype(np.uint8)
        if isinstance(transparent, int):
            grey[whole == transparent] = 255
        picture = Image.fromarray(grey)
    if picture.mode in _PREMULTIPLIED:
        picture = picture.convert(_PREMULTIPLIED[picture.mode])
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
