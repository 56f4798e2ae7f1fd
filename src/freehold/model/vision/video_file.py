"""The frames of a video file or of an animated image, one at a time."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from PIL import Image

from freehold.core.errors import RequestError, UnsupportedFieldError
from freehold.model.vision.config import VisionConfig
from freehold.model.vision.decode import MAX_IMAGE_PIXELS, open_image, to_pixels
from freehold.model.vision.video import Video, choose_frames, video_frames

MAX_VIDEO_BYTES = 256 << 20
MAX_VIDEO_FRAMES = 500_000
MAX_VIDEO_PIXELS = 60_000_000_000
"""Of all frames of a film together: 16 minutes at 1920 x 1080 and 30 frames a second, a few minutes of work."""
MAX_ANIMATION_PIXELS = 2_000_000_000
_LEAST_MILLISECONDS, _USUAL_MILLISECONDS = 11, 100
"""Animations that name a shorter time are shown with the usual one, as browsers do."""

_ANIMATED = (b"GIF8", b"\x89PNG")


def read_video(data: bytes, config: VisionConfig) -> Video:
    """The video in a file: MP4, MOV, WebM, Matroska or AVI, or an animated GIF, WebP or PNG; about one frame a second.

    Raises RequestError for another format, for damaged data and for too large ones; UnsupportedFieldError for a video
    file where PyAV is not installed.
    """
    if len(data) > MAX_VIDEO_BYTES:
        raise RequestError(f"the video has {len(data)} bytes; at most {MAX_VIDEO_BYTES} are taken")
    if data.startswith(_ANIMATED) or data[:4] + data[8:12] == b"RIFFWEBP":
        return _animation(data, config)
    return _file(data, config)


def _animation(data: bytes, config: VisionConfig) -> Video:
    picture = open_image(data)
    try:
        count = int(getattr(picture, "n_frames", 1))
    except Exception as error:
        raise _damaged(error) from None
    width, height = picture.size
    if count * width * height > MAX_ANIMATION_PIXELS:
        raise RequestError(
            f"the animation has {count} frames of {width} x {height} pixels; at most {MAX_ANIMATION_PIXELS} pixels are "
            "taken, cut it into pieces"
        )
    times, now = [], 0.0
    for number in range(count):
        times.append(now)
        now += _milliseconds(picture, number) / 1000
    chosen = choose_frames(times)
    frames = (_animation_frame(picture, number) for number in chosen)
    return video_frames(frames, len(chosen), [times[n] for n in chosen], config)


def _milliseconds(picture: Image.Image, number: int) -> float:
    """How long a frame is shown."""
    try:
        picture.seek(number)
        picture.load()  # a WebP's times are known only then
        shown = float(picture.info.get("duration") or 0)
    except Exception as error:
        raise _damaged(error) from None
    return shown if shown >= _LEAST_MILLISECONDS else _USUAL_MILLISECONDS


def _animation_frame(picture: Image.Image, number: int) -> torch.Tensor:
    try:
        picture.seek(number)
        picture.load()
    except Exception as error:
        raise _damaged(error) from None
    return to_pixels(picture)


def _container(data: bytes) -> str:
    """The name of the file's format. It is told from the first bytes, so that no playlist and nothing else that names
    other files is ever opened."""
    if data[4:8] == b"ftyp":
        return "mp4"
    if data[:4] == b"\x1a\x45\xdf\xa3":
        return "matroska"
    if data[:4] + data[8:12] == b"RIFFAVI ":
        return "avi"
    raise RequestError(
        "the data are no video of a known format; known are MP4, MOV, WebM, Matroska, AVI, and animated GIF, WebP, PNG"
    )


def _file(data: bytes, config: VisionConfig) -> Video:
    name = _container(data)
    try:
        import av
    except ImportError:
        raise UnsupportedFieldError(
            "video files are read with PyAV, which is not installed here; install freehold[video], or send the frames "
            "as a list of images"
        ) from None
    try:
        times = _times(av, data, name)
        chosen = choose_frames(times)
        frames = _decoded(av, data, name, set(chosen))
        return video_frames(frames, len(chosen), [times[n] - times[0] for n in chosen], config)
    except RequestError:
        raise
    except Exception as error:  # FFmpeg's errors are of many classes
        raise _damaged(error) from None


def _open(av: Any, data: bytes, name: str) -> tuple[Any, Any]:
    container = av.open(io.BytesIO(data), format=name)
    if not container.streams.video:
        container.close()
        raise RequestError("the video file has no moving picture in it")
    stream = container.streams.video[0]
    width, height = stream.codec_context.width, stream.codec_context.height
    if width * height > MAX_IMAGE_PIXELS:
        container.close()
        raise RequestError(f"the video has {width} x {height} pixels; at most {MAX_IMAGE_PIXELS} are taken")
    return container, stream


def _times(av: Any, data: bytes, name: str) -> list[float]:
    """When each frame is shown, in seconds, ascending; without decoding any."""
    container, stream = _open(av, data, name)
    most = MAX_VIDEO_PIXELS // max(1, stream.codec_context.width * stream.codec_context.height)
    most = min(most, MAX_VIDEO_FRAMES)
    with container:
        times: list[float] = []
        for packet in container.demux(stream):
            if packet.pts is not None and packet.size:
                times.append(float(packet.pts * packet.time_base))
            if len(times) > most:
                raise RequestError(f"the video has more than {most} frames; cut it into pieces, or make it smaller")
    return sorted(times)


def _decoded(av: Any, data: bytes, name: str, chosen: set[int]) -> Iterator[torch.Tensor]:
    """The chosen frames, counted in the order in which they are shown; upright."""
    container, stream = _open(av, data, name)
    last = max(chosen, default=-1)
    with container:
        for number, frame in enumerate(container.decode(stream)):
            if number in chosen:
                array = frame.to_ndarray(format="rgb24")
                turned = np.rot90(array, k=round(frame.rotation / 90))
                yield torch.from_numpy(np.ascontiguousarray(turned)).permute(2, 0, 1).contiguous()
            if number >= last:
                return


def _damaged(error: Exception) -> RequestError:
    return RequestError(f"the video is damaged or cut off: {str(error) or type(error).__name__}")
