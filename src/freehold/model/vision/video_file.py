"""The frames of a video file or of an animated image, one at a time."""

from __future__ import annotations

import io
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from PIL import Image

from freehold.core.errors import RequestError, UnsupportedFieldError
from freehold.model.vision.budget import Budget
from freehold.model.vision.config import VisionConfig
from freehold.model.vision.cut_off import is_cut_off
from freehold.model.vision.decode import MAX_IMAGE_PIXELS, open_image, to_pixels
from freehold.model.vision.video import Video, choose_frames, video_frames

MAX_VIDEO_BYTES = 256 << 20
_LEAST_MILLISECONDS, _USUAL_MILLISECONDS = 11, 100
"""Animations that name a shorter time are shown with the usual one, as browsers do."""

_ANIMATED = (b"GIF8", b"\x89PNG")


def read_video(data: bytes, config: VisionConfig, budget: Budget | None = None) -> Video:
    """The video in a file: MP4, MOV, WebM, Matroska or AVI, or an animated GIF, WebP or PNG; about one frame a second.

    budget: of the conversation; None: the video is all of it. Raises RequestError for another format, for damaged data,
    for too large ones and where the budget is used up; UnsupportedFieldError for a video file where PyAV is not
    installed.
    """
    if len(data) > MAX_VIDEO_BYTES:
        raise RequestError(f"the video has {len(data)} bytes; at most {MAX_VIDEO_BYTES} are taken")
    if data.startswith(_ANIMATED) or data[:4] + data[8:12] == b"RIFFWEBP":
        return _animation(data, config, budget or Budget())
    return _file(data, config, budget or Budget())


def _animation(data: bytes, config: VisionConfig, budget: Budget) -> Video:
    picture = open_image(data)
    if picture.format == "GIF":
        _check_whole(data, "gif")
    times, now = [], 0.0
    for number in _frame_numbers(picture, budget):
        times.append(now)
        now += _milliseconds(picture, number) / 1000
    chosen = choose_frames(times)
    frames = (_animation_frame(picture, number) for number in chosen)
    return video_frames(frames, len(chosen), [times[n] for n in chosen], config, budget)


def _frame_numbers(picture: Image.Image, budget: Budget) -> Iterator[int]:
    """The numbers of an animation's frames; at each the picture stands there, its size checked and nothing unpacked."""
    # A GIF does not say how many it has, and to count them would take as long as to read them.
    count = None if picture.format == "GIF" else int(getattr(picture, "n_frames", 1))
    first = picture.size
    for number in itertools.count():
        if number == count:
            return
        budget.take("frames", 1)
        try:
            picture.seek(number)
        except EOFError as error:
            if count is None:
                return
            raise _damaged(error) from None
        except Exception as error:
            raise _damaged(error) from None
        _check_size(number, picture.size, first)
        budget.take("pixels", first[0] * first[1])
        yield number


def _check_size(number: int, size: tuple[int, int], first: tuple[int, int]) -> None:
    """What was checked is the size of the first frame; each later one has it too."""
    if size != first:
        raise RequestError(
            f"frame {number} of the video has {size[0]} x {size[1]} pixels, the first one {first[0]} x {first[1]}; all "
            "must be of one size"
        )


def _milliseconds(picture: Image.Image, number: int) -> float:
    """How long a frame is shown, at which the picture stands."""
    try:
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


def _file(data: bytes, config: VisionConfig, budget: Budget) -> Video:
    name = _container(data)
    _check_whole(data, name)
    try:
        import av
    except ImportError:
        raise UnsupportedFieldError(
            "video files are read with PyAV, which is not installed here; install freehold[video], or send the frames "
            "as a list of images"
        ) from None
    try:
        times = _times(av, data, name, budget)
        chosen = choose_frames(times)
        frames = _decoded(av, data, name, set(chosen), lambda more: budget.take("film_pixels", more * len(times)))
        return video_frames(frames, len(chosen), [times[n] - times[0] for n in chosen], config, budget)
    except RequestError:
        raise
    except Exception as error:  # FFmpeg's errors are of many classes
        raise _damaged(error) from None


def _check_whole(data: bytes, name: str) -> None:
    if is_cut_off(data, name):
        raise _damaged(EOFError(f"it has {len(data)} bytes, and says that there are more"))


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
    # A film may become larger on its way; FFmpeg refuses that before it makes room for it.
    stream.codec_context.options = {**stream.codec_context.options, "max_pixels": str(MAX_IMAGE_PIXELS)}
    return container, stream


def _times(av: Any, data: bytes, name: str, budget: Budget) -> list[float]:
    """When each frame is shown, in seconds, ascending; without decoding any."""
    container, stream = _open(av, data, name)
    pixels = stream.codec_context.width * stream.codec_context.height
    with container:
        times: list[float] = []
        for packet in container.demux(stream):
            if packet.pts is not None and packet.size:
                times.append(float(packet.pts * packet.time_base))
                budget.take("film_frames", 1)
                budget.take("film_pixels", pixels)
    return sorted(times)


def _decoded(av: Any, data: bytes, name: str, chosen: set[int], grows: Callable[[int], None]) -> Iterator[torch.Tensor]:
    """The chosen frames, counted in the order in which they are shown; upright.

    grows: called with how many pixels more than the file said its frames have.
    """
    container, stream = _open(av, data, name)
    said, last = stream.codec_context.width * stream.codec_context.height, max(chosen, default=-1)
    first = (0, 0)
    with container:
        for number, frame in enumerate(container.decode(stream)):
            if number == 0:
                first = (frame.width, frame.height)
                grows(max(0, frame.width * frame.height - said))
            _check_size(number, (frame.width, frame.height), first)
            if number in chosen:
                array = frame.to_ndarray(format="rgb24")
                turned = np.rot90(array, k=round(frame.rotation / 90))
                yield torch.from_numpy(np.ascontiguousarray(turned)).permute(2, 0, 1).contiguous()
            if number >= last:
                return


def _damaged(error: Exception) -> RequestError:
    return RequestError(f"the video is damaged or cut off: {str(error) or type(error).__name__}")
