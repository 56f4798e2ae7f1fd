"""Images as they come from strangers: every odd kind is read as a person sees it, everything broken is refused."""

from __future__ import annotations

import base64
import contextlib
import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from freehold.core.errors import RequestError, UnsupportedFieldError
from freehold.model.vision.decode import MAX_IMAGE_BYTES, MAX_IMAGE_PIXELS, decode_image
from freehold.model.vision.image import read_pixels
from freehold.model.vision.resize import IMAGE_AREA, VIDEO_AREA, wanted_size
from freehold.model.vision.source import read_source


def _saved(picture: Image.Image, kind: str, **options: Any) -> bytes:
    out = io.BytesIO()
    picture.save(out, kind, **options)
    return out.getvalue()


def _noise(height: int = 20, width: int = 30, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, channels), dtype=np.uint8)


def _rows(pixels: torch.Tensor) -> np.ndarray:
    return pixels.permute(1, 2, 0).numpy()


# ------------------------------------------------------------------------------------------------ kinds of pixels


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "GIF", "BMP", "TIFF", "JPEG"])
def test_every_known_format_is_read(kind: str) -> None:
    flat = np.full((20, 30, 3), (200, 100, 50), np.uint8)
    pixels = decode_image(_saved(Image.fromarray(flat), kind))
    assert pixels.dtype == torch.uint8
    assert pixels.shape == (3, 20, 30)
    assert np.abs(_rows(pixels).astype(int) - flat).max() <= 6  # JPEG and WebP are lossy


def test_sixteen_bits_keep_their_upper_half() -> None:
    grey = np.arange(0, 65536, 256, dtype=np.uint16).reshape(16, 16) + 77
    pixels = decode_image(_saved(Image.fromarray(grey), "PNG"))
    assert (_rows(pixels) == (grey >> 8).astype(np.uint8)[..., None]).all()


def test_what_is_transparent_lies_on_white() -> None:
    picture = np.zeros((4, 4, 4), np.uint8)
    picture[0] = (10, 20, 30, 255)
    rows = _rows(decode_image(_saved(Image.fromarray(picture), "PNG")))
    assert (rows[0] == (10, 20, 30)).all()
    assert (rows[1:] == 255).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_photographs_stand_upright(orientation: int) -> None:
    upright = _noise(16, 24)
    stored = {
        1: upright, 2: upright[:, ::-1], 3: upright[::-1, ::-1], 4: upright[::-1], 5: upright.swapaxes(0, 1),
        6: np.rot90(upright), 7: np.rot90(upright.swapaxes(0, 1), 2), 8: np.rot90(upright, -1),
    }[orientation]  # fmt: skip
    picture = Image.fromarray(np.ascontiguousarray(stored))
    exif = picture.getexif()
    exif[0x0112] = orientation
    assert (_rows(decode_image(_saved(picture, "PNG", exif=exif))) == upright).all()


def test_damaged_metadata_harm_no_sound_pixels() -> None:
    picture = Image.fromarray(_noise())
    data = _saved(picture, "PNG", exif=b"Exif\x00\x00MM\x00*\xff\xff\xff\xff\x00")
    assert (_rows(decode_image(data)) == _noise()).all()


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_of_an_animation_the_first_frame_counts(kind: str) -> None:
    shades = [Image.new("RGB", (8, 8), (shade, shade, shade)) for shade in (50, 150, 250)]
    options = {"lossless": True} if kind == "WEBP" else {}
    data = _saved(shades[0], kind, save_all=True, append_images=shades[1:], duration=100, **options)
    assert (_rows(decode_image(data)) == 50).all()


# ---------------------------------------------------------------------------------------------------- hostile files


def _png(width: int, height: int, body: bytes = b"", *, depth: int = 8, colour: int = 2, clear: bytes = b"") -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    head += chunk(b"tRNS", clear) if clear else b""
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(body)) + chunk(b"IEND", b"")


def _many_scans(count: int) -> bytes:
    """A progressive JPEG whose last scan comes `count` times."""
    data = _saved(Image.fromarray(_noise(64, 64)), "JPEG", progressive=True)
    last = data[data.rindex(b"\xff\xda") : -2]
    return data[:-2] + last * (count - 1) + data[-2:]


def _large_tile(side: int) -> bytes:
    """A TIFF of 2 x 1 pixels in one tile."""
    body = zlib.compress(bytes(side * side))
    values = {256: 2, 257: 1, 258: 8, 259: 8, 262: 1, 277: 1, 322: side, 323: side, 324: 134, 325: len(body)}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in values.items())
    return b"II*\0" + struct.pack("<IH", 8, len(values)) + entries + bytes(4) + body


def _tiff(data: bytes, *, bits: int, channels: int = 1, white: int = 1, form: int = 1, planes: int = 1) -> bytes:
    """A TIFF of one row of 2 pixels. white: 0 where 0 is white, 2 for colours. form: 1 whole numbers, 2 signed ones, 3
    floats. planes: 2 where each channel lies by itself."""
    values = {
        256: 2,
        257: 1,
        258: bits,
        259: 1,
        262: white,
        277: channels,
        278: 1,
        279: len(data),
        284: planes,
        339: form,
    }
    repeated = {258, 339} if channels > 1 else set()
    start = 8 + 2 + 12 * (len(values) + 1) + 4
    behind, entries = b"", {273: struct.pack("<HHII", 273, 4, 1, start + 2 * channels * len(repeated))}
    for tag, value in values.items():
        if tag in repeated:
            entries[tag] = struct.pack("<HHII", tag, 3, channels, start + len(behind))
            behind += struct.pack(f"<{channels}H", *[value] * channels)
        else:
            entries[tag] = struct.pack("<HHII", tag, 4 if tag == 279 else 3, 1, value)
    directory = struct.pack("<H", len(entries)) + b"".join(entries[tag] for tag in sorted(entries)) + bytes(4)
    return b"II*\0" + struct.pack("<I", 8) + directory + behind + data


def test_a_grey_of_sixteen_bits_may_be_transparent() -> None:
    row = b"\0" + struct.pack(">5H", 1000, 0, 0x8000, 0xFFFF, 1001)
    pixels = decode_image(_png(5, 1, row, depth=16, colour=0, clear=struct.pack(">H", 1000)))
    assert _rows(pixels)[0, :, 0].tolist() == [255, 0, 128, 255, 3]


@pytest.mark.parametrize(
    ("depth", "body", "greys"), [(2, b"\x1b", [0, 255, 170, 255]), (4, b"\x01\x23", [0, 255, 34, 51])]
)
def test_a_grey_of_few_bits_may_be_transparent(depth: int, body: bytes, greys: list[int]) -> None:
    pixels = decode_image(_png(4, 1, b"\0" + body, depth=depth, colour=0, clear=struct.pack(">H", 1)))
    assert _rows(pixels)[0, :, 0].tolist() == greys


@pytest.mark.parametrize(
    ("data", "greys"),
    [
        (_tiff(b"\0\x80", bits=8), [0, 128]),
        (_tiff(b"\0\x80", bits=8, white=0), [255, 127]),
        (_tiff(struct.pack("<2H", 0x1234, 0x8000), bits=16), [0x12, 0x80]),
        (_tiff(struct.pack("<6H", *range(0x1000, 0x7000, 0x1000)), bits=16, channels=3, white=2), [0x10, 0x40]),
    ],
)
def test_a_tiff_of_whole_numbers_is_read(data: bytes, greys: list[int]) -> None:
    assert _rows(decode_image(data))[0, :, 0].tolist() == greys


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (_tiff(b"\0\x08\0", bits=12), "of 12 bits"),
        (_tiff(b"\0\0\0\x80", bits=16, white=0), "0 is white"),
        (_tiff(b"\0\x80", bits=8, form=2), "signed"),
        (_tiff(bytes(12), bits=16, channels=3, white=2, planes=2), "each channel by itself"),
        (_tiff(bytes(24), bits=32, channels=3, white=2, form=3), "floats of several channels"),
        (_tiff(bytes(4), bits=16, form=3), "a kind that is not read"),
        (_tiff(bytes(8), bits=32, form=3), "32-bit"),
        (_png(1, 1, bytes(7), depth=16, clear=bytes(6)), "16 bits a channel and one transparent colour"),
    ],
    ids=range(8),
)
def test_pixels_that_would_be_read_wrongly_are_refused_by_name(data: bytes, said: str) -> None:
    with pytest.raises(RequestError, match=f"{said}.*; save it with"):
        decode_image(data)


def test_any_byte_of_a_tiff_may_be_another() -> None:
    data, generator = _tiff(struct.pack("<6H", *range(6)), bits=16, channels=3, white=2), np.random.default_rng(3)
    for _ in range(3000):
        changed = bytearray(data)
        for place in generator.integers(0, len(data), 3):
            changed[place] = generator.integers(0, 256)
        with contextlib.suppress(RequestError):
            decode_image(bytes(changed))


@pytest.mark.parametrize("size", [(0, 0), (0, 5), (5, 0)])
def test_an_image_without_pixels_is_refused(size: tuple[int, int]) -> None:
    with pytest.raises(RequestError, match=f"{size[0]} x {size[1]} pixels; it must have one at least"):
        read_pixels(Image.new("RGB", size), local=True)


def test_an_open_image_has_the_same_limit() -> None:
    with pytest.raises(RequestError, match=f"7100 x 7100 pixels; at most {MAX_IMAGE_PIXELS} are taken"):
        read_pixels(Image.new("1", (7100, 7100)), local=True)


@pytest.mark.parametrize("mode", ["La", "RGBa"])
def test_premultiplied_pixels_lie_on_white(mode: str) -> None:
    assert (read_pixels(Image.new(mode, (2, 2)), local=True) == 255).all()


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "known are PNG"),
        (b"hello", "known are PNG"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "known are PNG"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "known are PNG"),
        (_png(7100, 7100), str(MAX_IMAGE_PIXELS)),  # above ours, below Pillow's
        (_png(11_000, 11_000), str(MAX_IMAGE_PIXELS)),  # where Pillow warns
        (_png(60_000, 60_000), str(MAX_IMAGE_PIXELS)),  # where Pillow refuses
        (_png(0x7FFFFFFF, 0x7FFFFFFF), str(MAX_IMAGE_PIXELS)),
        (_png(100, 100), "damaged or cut off"),
        (_png(0, 5), "damaged|known are PNG|pixels"),
        (bytes(MAX_IMAGE_BYTES + 1), f"at most {MAX_IMAGE_BYTES}"),
        (_saved(Image.fromarray(np.ones((4, 4), np.float32)), "TIFF"), "32-bit"),
        (_saved(Image.fromarray(np.ones((4, 4), np.int32)), "TIFF"), "32-bit"),
        (_many_scans(65), "more than 64 scans"),  # each takes the time of an image, and a few bytes
        (b"\xff\xd8" + b"\xff\xfe\0\2" * 10_000 + _many_scans(1)[2:], "more than 10000 segments"),
        (_large_tile(2048), "2 x 1 pixels in tiles of 2048 x 2048"),
    ],
    ids=range(16),
)
def test_hostile_files_are_refused_by_name(data: bytes, said: str) -> None:
    with pytest.raises(RequestError, match=said):
        decode_image(data)


def test_scans_and_tiles_as_encoders_make_them_are_read() -> None:
    noise = Image.fromarray(_noise(300, 300))
    remark = b"\xff\xda\0\2" * 100  # what looks like a scan in a comment, or behind the end, is none
    for data in (
        _many_scans(40),
        _saved(noise, "JPEG", progressive=True, restart_marker_blocks=1, comment=remark) + remark,
        _saved(noise, "MPO", save_all=True, append_images=[noise] * 80),
        _saved(noise, "TIFF", compression="jpeg"),
        _large_tile(1024),
    ):
        assert decode_image(data).shape[0] == 3


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
def test_files_that_are_cut_off_are_refused(kind: str) -> None:
    data = _saved(Image.fromarray(_noise(64, 64)), kind)
    for length in (1, 10, len(data) // 3, len(data) // 2):
        with pytest.raises(RequestError):
            decode_image(data[:length])


_SEEDS = [_saved(Image.fromarray(_noise(12, 12)), kind) for kind in ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")]


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(_SEEDS), st.lists(st.tuples(st.integers(0, 4000), st.integers(0, 255)), min_size=1, max_size=9))
def test_changed_bytes_give_pixels_or_a_named_error(data: bytes, changes: list[tuple[int, int]]) -> None:
    changed = bytearray(data)
    for place, value in changes:
        changed[place % len(changed)] = value
    try:
        pixels = decode_image(bytes(changed))
    except RequestError:
        return
    assert pixels.dtype == torch.uint8
    assert pixels.shape[0] == 3


# --------------------------------------------------------------------------------------------------------- sources


@pytest.mark.parametrize(
    "url",
    [
        "data:image/png;base64,aGk=",
        "data:;base64,aGk=",
        "DATA:image/png;BASE64,a Gk\n=",
        "data:,hi",
        "data:text/x,%68i",
    ],
)
def test_data_urls_are_read(url: str) -> None:
    assert read_source(url, local=False, limit=10) == b"hi"


@pytest.mark.parametrize(
    ("source", "error"),
    [
        ("http://127.0.0.1/x.png", UnsupportedFieldError),
        ("HTTPS://example.org/x.png", UnsupportedFieldError),
        ("file:///etc/passwd", UnsupportedFieldError),
        ("ftp://example.org/x", UnsupportedFieldError),
        ("/etc/passwd", RequestError),
        (Path("/etc/passwd"), RequestError),
        ("", RequestError),
        (None, RequestError),
        ({"url": "x"}, RequestError),
        ("data:image/png;base64,****", RequestError),
        ("data:image/png;base64,aGk", RequestError),
        ("data:image/png;base64," + base64.b64encode(bytes(11)).decode(), RequestError),
        (bytes(11), RequestError),
        ("data:," + "x" * 3000, RequestError),
        ("data:,\ud800", RequestError),
        ("data:image/png;base64,\ud800", RequestError),
    ],
)
def test_other_sources_are_refused(source: Any, error: type[RequestError]) -> None:
    with pytest.raises(RequestError) as caught:
        read_source(source, local=False, limit=10)
    assert type(caught.value) is error


def test_network_addresses_are_refused_for_local_callers_too() -> None:
    with pytest.raises(UnsupportedFieldError):
        read_source("http://127.0.0.1/x.png", local=True, limit=10)


def test_paths_are_read_for_local_callers(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"hi")
    assert read_source(str(tmp_path / "x"), local=True, limit=2) == b"hi"
    for wrong in (tmp_path / "y", tmp_path, "x\0y", "\ud800", "x" * 5000):
        with pytest.raises(RequestError, match="cannot be read"):
            read_source(wrong, local=True, limit=2)
    with pytest.raises(RequestError, match="at most 1"):
        read_source(tmp_path / "x", local=True, limit=1)


# ----------------------------------------------------------------------------------------------------------- sizes


@given(st.integers(1, 9000), st.integers(1, 9000), st.sampled_from([IMAGE_AREA, VIDEO_AREA]))
def test_sizes_are_whole_tokens_within_the_area(height: int, width: int, area: Any) -> None:
    if max(height, width) > 200 * min(height, width):
        with pytest.raises(RequestError):
            wanted_size(height, width, 28, area)
        return
    rows, columns = wanted_size(height, width, 28, area)
    assert rows % 28 == columns % 28 == 0
    assert min(rows, columns) >= 28
    assert rows * columns >= area.least
    # A side that is rounded up to one token may make a very long image a little larger than the limit.
    assert rows * columns <= area.most or min(rows, columns) == 28


@pytest.mark.parametrize(
    ("size", "wanted"),
    [
        ((1080, 1920), (504, 896)), ((672, 672), (672, 672)), ((480, 640), (476, 644)), ((1024, 1024), (672, 672)),
        ((4000, 3000), (756, 560)), ((2000, 100), (1988, 112)), ((30, 30), (56, 56)), ((20, 300), (28, 308)),
        ((14, 14), (56, 56)), ((42, 700), (56, 700)),
    ],
)  # fmt: skip
def test_sizes_of_known_images(size: tuple[int, int], wanted: tuple[int, int]) -> None:
    assert wanted_size(*size, 28, IMAGE_AREA) == wanted


def test_resizing_is_the_same_with_any_number_of_threads() -> None:
    from freehold.model.vision.resize import resize

    pixels = torch.from_numpy(_noise(700, 500)).permute(2, 0, 1)[None].contiguous()
    before = torch.get_num_threads()
    made = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            made.append(resize(pixels, 336, 252))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(one, made[0]) for one in made)
