"""Videos: which frames are looked at, when they are, and what is refused."""

from __future__ import annotations

import io
import struct
from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from freehold.core.errors import RequestError
from freehold.model.vision.budget import LIMITS, Budget, Kind
from freehold.model.vision.config import VisionConfig
from freehold.model.vision.cut_off import is_cut_off
from freehold.model.vision.video import MAX_FRAMES, MAX_TOKENS, choose_frames, frame_area, video_frames
from freehold.model.vision.video_file import read_video
from support.tiny_m3 import SHAPES, release_config

CONFIG = VisionConfig.from_hf(release_config(SHAPES["release_selection"]), "test")


def _frame(shade: int, height: int = 56, width: int = 84) -> torch.Tensor:
    return torch.full((3, height, width), shade, dtype=torch.uint8)


# ---------------------------------------------------------------------------------------------------- choosing frames


@given(st.lists(st.floats(0.001, 3.0), min_size=1, max_size=400))
def test_chosen_frames_are_the_first_of_their_seconds(gaps: list[float]) -> None:
    times = np.cumsum([0.0, *gaps]).tolist()
    chosen = choose_frames(times)
    assert chosen == sorted(set(chosen))
    assert min(4, len(times)) <= len(chosen) <= MAX_FRAMES
    if times[-1] >= 4 + max(gaps) * 4:  # long enough for a frame a second
        for second in range(int(times[-1]) + 1):
            first = next(n for n, time in enumerate(times) if time >= second - 1e-6)
            assert first in chosen


def test_thirty_frames_a_second_become_one() -> None:
    times = [n / 30 for n in range(301)]
    assert choose_frames(times) == list(range(0, 301, 30))


def test_short_videos_give_four_frames_and_long_ones_no_more_than_768() -> None:
    assert choose_frames([n / 30 for n in range(31)]) == [0, 10, 20, 30]
    assert choose_frames([0.0, 0.1]) == [0, 1]
    assert choose_frames([0.0]) == [0]
    hour = choose_frames([float(n) for n in range(3600)])
    assert len(hour) == MAX_FRAMES
    assert (hour[0], hour[-1]) == (0, 3599)


@pytest.mark.parametrize("count", [1, 4, 75, 160, 400, MAX_FRAMES])
def test_a_video_has_a_most_of_tokens(count: int) -> None:
    area = frame_area(count, CONFIG)
    pairs = -(-count // 2)
    assert area.most <= 602_112
    assert pairs * (area.most // 784) <= MAX_TOKENS
    assert area.most == 602_112 or pairs * (area.most // 784 + 1) > MAX_TOKENS


def test_segments_of_eight_frames_and_times_of_pairs() -> None:
    video = video_frames((_frame(n) for n in range(11)), 11, [n / 2 for n in range(11)], CONFIG)
    assert [segment.grid for segment in video.segments] == [(4, 4, 6), (2, 4, 6)]
    assert [len(segment.pixels) for segment in video.segments] == [8, 3]
    assert video.seconds == (0.0, 1.0, 2.0, 3.0, 4.0, 5.0)
    shades = [int(frame[0, 0, 0]) for segment in video.segments for frame in segment.pixels]
    assert shades == list(range(11))


@pytest.mark.parametrize(
    ("frames", "count", "said"),
    [
        ([], 0, "0 frames"),
        ([_frame(0)], MAX_FRAMES + 1, "769 frames"),
        ([_frame(0), _frame(0, 28, 28)], 2, "one size"),
        ([_frame(0)], 2, "1 of 2"),
        ([_frame(0, 2, 500)], 1, "200 times"),
    ],
)
def test_impossible_videos_are_refused(frames: list[torch.Tensor], count: int, said: str) -> None:
    with pytest.raises(RequestError, match=said):
        video_frames(iter(frames), count, None, CONFIG)


# -------------------------------------------------------------------------------------------------------------- files


def _animation(kind: str, shades: list[int], milliseconds: int) -> bytes:
    pictures = [Image.new("RGB", (84, 56), (shade,) * 3) for shade in shades]
    out = io.BytesIO()
    options: dict[str, Any] = {"lossless": True} if kind == "WEBP" else {}
    pictures[0].save(out, kind, save_all=True, append_images=pictures[1:], duration=milliseconds, **options)
    return out.getvalue()


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_animations_are_videos(kind: str) -> None:
    video = read_video(_animation(kind, [10, 60, 110, 160, 210, 250], 500), CONFIG)
    assert video.seconds == (0.0, 1.5)  # frames at 0, 1, 1.5 and 2.5 seconds: four, as the least
    shades = [int(frame[0, 0, 0]) for segment in video.segments for frame in segment.pixels]
    assert shades == [10, 110, 160, 250]


def _film(container: str, codec: str, *, seconds: int = 6, rate: int = 10, **options: str) -> bytes:
    import av

    out = io.BytesIO()
    with av.open(out, "w", format=container, options=options) as film:
        stream = film.add_stream(codec, rate=rate)
        stream.width, stream.height, stream.pix_fmt = 84, 56, "yuv420p"
        for number in range(seconds * rate + 1):
            shade = np.full((56, 84, 3), 20 + 30 * (number // rate), np.uint8)
            for packet in stream.encode(av.VideoFrame.from_ndarray(shade, format="rgb24")):
                film.mux(packet)
        for packet in stream.encode():
            film.mux(packet)
    return out.getvalue()


@pytest.mark.parametrize(
    ("container", "codec"), [("mp4", "mpeg4"), ("matroska", "mpeg4"), ("avi", "mpeg4"), ("webm", "libvpx")]
)
def test_films_are_read_a_frame_a_second(container: str, codec: str) -> None:
    video = read_video(_film(container, codec), CONFIG)
    assert video.seconds == pytest.approx((0.0, 2.0, 4.0, 6.0), abs=0.05)
    shades = [int(frame.float().mean()) for segment in video.segments for frame in segment.pixels]
    assert shades == pytest.approx([20 + 30 * second for second in range(7)], abs=4)


_MP4 = _film("mp4", "mpeg4")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n",
        b"ffconcat version 1.0\nfile /etc/passwd\n",
        b"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\n",
        b"<?xml version='1.0'?><MPD/>",
    ],
)
def test_playlists_and_unknown_formats_are_refused(data: bytes) -> None:
    with pytest.raises(RequestError, match="no video of a known format"):
        read_video(data, CONFIG)


@pytest.mark.parametrize("length", [8, 100, len(_MP4) // 2])
def test_films_that_are_cut_off_are_refused(length: int) -> None:
    with pytest.raises(RequestError):
        read_video(_MP4[:length], CONFIG)


@pytest.mark.parametrize(("container", "codec"), [("matroska", "mpeg4"), ("avi", "mpeg4"), ("webm", "libvpx")])
def test_films_whose_second_half_is_missing_are_not_seen_as_shorter_ones(container: str, codec: str) -> None:
    data = _film(container, codec)
    for length in (len(data) * 3 // 4, len(data) - 2):
        with pytest.raises(RequestError, match=rf"cut off: it has {length} bytes, and says that there are more"):
            read_video(data[:length], CONFIG)


def test_an_mp4_that_begins_with_its_index_and_is_cut_off_is_refused() -> None:
    header, pictures = _MP4[: _MP4.index(b"mdat") - 4], _MP4[_MP4.index(b"mdat") - 4 : _MP4.index(b"moov") - 4]
    index = _MP4[_MP4.index(b"moov") - 4 :]
    assert not is_cut_off(header + index + pictures, "mp4")
    assert is_cut_off(header + index + pictures[:-1], "mp4")
    assert not is_cut_off(header + b"\0\0\0\1mdat" + (len(pictures) + 8).to_bytes(8, "big") + pictures[8:], "mp4")
    assert is_cut_off(header + b"\0\0\0\1mdat" + (len(pictures) + 9).to_bytes(8, "big") + pictures[8:], "mp4")
    assert not is_cut_off(header + b"\0\0\0\0mdat" + pictures[8:], "mp4")


def test_what_another_program_put_behind_an_mp4_is_no_missing_end() -> None:
    assert not is_cut_off(_MP4 + b"TAGSome title".ljust(128, b"\0"), "mp4")
    assert is_cut_off(_MP4 + b"\0\0\1\0free", "mp4")


def test_a_box_of_a_camera_s_own_does_not_hide_that_the_end_is_missing() -> None:
    place = _MP4.index(b"mdat") - 4
    film = _MP4[:place] + b"\0\0\0\x14inst" + b"x" * 12 + _MP4[place:]
    assert not is_cut_off(film, "mp4")
    assert is_cut_off(film[:-2], "mp4")


def _blinking(frames: int) -> bytes:
    pictures = [Image.fromarray(np.full((40, 60, 3), 20 + 30 * n, np.uint8) ^ np.eye(40, 60, 0, np.uint8)[..., None])
                for n in range(frames)]  # fmt: skip
    out = io.BytesIO()
    pictures[0].save(out, format="GIF", save_all=True, append_images=pictures[1:], duration=1000, loop=0)
    return out.getvalue()


def test_a_gif_is_refused_wherever_it_is_cut_off() -> None:
    data = _blinking(4)
    assert read_video(data, CONFIG).seconds == read_video(data + b"\0\0 marks", CONFIG).seconds == (0.0, 2.0)
    for length in range(20, len(data)):
        with pytest.raises(RequestError):
            read_video(data[:length], CONFIG)


def test_a_gif_that_was_made_to_be_slow_counts_as_whole() -> None:
    header = b"GIF89a" + struct.pack("<HHBBB", 8, 8, 0, 0, 0)
    assert not is_cut_off(header + b"\x21\xfe" + b"\1a" * 3_000_000, "gif")
    assert is_cut_off(header + b"\x21\xfe" + b"\1a" * 1_000, "gif")


def test_a_stream_that_does_not_say_how_long_it_is_is_read() -> None:
    film = _film("matroska", "mpeg4", live="1")
    assert not is_cut_off(film, "matroska")
    assert read_video(film, CONFIG).seconds == pytest.approx((0.0, 2.0, 4.0, 6.0), abs=0.05)


@given(st.binary(max_size=40), st.sampled_from([("mp4", b""), ("avi", b"RIFF"), ("matroska", b"\x1a\x45\xdf\xa3")]))
def test_any_bytes_have_an_end(data: bytes, form: tuple[str, bytes]) -> None:
    assert is_cut_off(form[1] + data, form[0]) in (True, False)


def test_damaged_films_give_frames_or_a_named_error() -> None:
    generator = np.random.default_rng(1)
    for _ in range(40):
        data = bytearray(_MP4)
        for place in generator.integers(0, len(data), 12):
            data[place] = generator.integers(0, 256)
        try:
            video = read_video(bytes(data), CONFIG)
        except RequestError:
            continue
        assert video.segments


def test_a_film_without_pictures_is_refused() -> None:
    import av

    out = io.BytesIO()
    with av.open(out, "w", format="mp4") as film:
        stream = film.add_stream("aac", rate=8000)
        stream.layout = "mono"
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 8000
        for packet in [*stream.encode(frame), *stream.encode()]:
            film.mux(packet)
    with pytest.raises(RequestError, match="no moving picture"):
        read_video(out.getvalue(), CONFIG)


# ------------------------------------------------------------------------------------------------------------- limits


@pytest.mark.parametrize(
    ("kind", "one", "data", "what"),
    [
        ("pixels", 6 * 84 * 56, "GIF", "pixels of images and frames of animations"),
        ("frames", 6, "WEBP", "frames of animations"),
        ("frames", 6, "PNG", "frames of animations"),
        ("frames", 7, "GIF", "frames of animations"),  # its end is found by looking for one more
        ("film_pixels", 61 * 84 * 56, "film", "pixels of all frames of films"),
        ("film_frames", 61, "film", "frames of films"),
        ("tokens", 12, "GIF", "tokens of images and videos"),
    ],
)
def test_the_limits_are_of_all_videos_together(
    monkeypatch: pytest.MonkeyPatch, kind: Kind, one: int, data: str, what: str
) -> None:
    video = _MP4 if data == "film" else _animation(data, [10, 60, 110, 160, 210, 250], 500)
    monkeypatch.setitem(LIMITS, kind, replace(LIMITS[kind], most=2 * one))
    budget = Budget()
    for _ in range(2):
        read_video(video, CONFIG, budget)
    with pytest.raises(RequestError, match=rf"has \d+ {what}.* at most {2 * one} are taken.*leave|make"):
        read_video(video, CONFIG, budget)


def _gif(*sizes: tuple[int, int]) -> bytes:
    """An animation on a canvas of the first size, with frames of any."""
    out = b"GIF89a" + struct.pack("<HH", *sizes[0]) + b"\x80\0\0" + bytes([0, 0, 0, 255, 255, 255])
    for width, height in sizes:
        picture = io.BytesIO()
        Image.new("P", (width, height)).save(picture, "GIF")
        found = picture.getvalue()
        pixels = found[found.index(struct.pack("<BHHHH", 0x2C, 0, 0, width, height)) + 10 : -1]
        out += struct.pack("<BHHHHB", 0x2C, 0, 0, width, height, 0) + pixels
    return out + b";"


def test_frames_of_an_animation_that_grow_are_refused_before_they_are_unpacked(monkeypatch: pytest.MonkeyPatch) -> None:
    assert read_video(_gif((84, 56), (84, 56)), CONFIG).segments
    growing = _gif((84, 56), (5000, 6000), (84, 56))
    loaded, load = [], Image.Image.load
    monkeypatch.setattr(Image.Image, "load", lambda picture: loaded.append(picture.size) or load(picture))
    with pytest.raises(RequestError, match="frame 1 of the video has 5000 x 6000 pixels, the first one 84 x 56"):
        read_video(growing, CONFIG)
    assert (5000, 6000) not in loaded


def _photographs(said: tuple[int, int], *sizes: tuple[int, int]) -> bytes:
    """A film of JPEG files, each of its own size, whatever its header says."""
    import av

    out = io.BytesIO()
    with av.open(out, "w", format="matroska") as film:
        stream = film.add_stream("mjpeg", rate=1)
        stream.width, stream.height = said
        stream.pix_fmt = "yuvj420p"
        for number, size in enumerate(sizes):
            picture = io.BytesIO()
            Image.new("RGB", size, (50, 100, 150)).save(picture, "JPEG")
            packet = av.Packet(picture.getvalue())
            packet.stream, packet.pts, packet.dts, packet.time_base = stream, number, number, Fraction(1)
            film.mux(packet)
    return out.getvalue()


def test_frames_of_a_film_that_grow_are_refused() -> None:
    small = (84, 56)
    assert read_video(_photographs(small, *[small] * 5), CONFIG).segments
    with pytest.raises(RequestError, match="frame 4 of the video has 168 x 112 pixels, the first one 84 x 56"):
        read_video(_photographs(small, *[small] * 4, (168, 112), *[small] * 20), CONFIG)
    with pytest.raises(RequestError):  # FFmpeg unpacks none of these
        read_video(_photographs(small, *[small] * 4, (8000, 8000), small), CONFIG)


def test_what_a_film_s_header_says_too_little_counts_too(monkeypatch: pytest.MonkeyPatch) -> None:
    film = _photographs((84, 56), *[(168, 112)] * 5)
    monkeypatch.setitem(LIMITS, "film_pixels", replace(LIMITS["film_pixels"], most=5 * 168 * 112 - 1))
    with pytest.raises(RequestError, match=f"has {5 * 168 * 112} pixels of all frames"):
        read_video(film, CONFIG)
