"""A video, as the tower sees it: chosen frames, cut into segments, with the time of each pair."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch

from freehold.core.errors import RequestError
from freehold.core.visuals import Frames
from freehold.model.vision.budget import Budget
from freehold.model.vision.config import VisionConfig
from freehold.model.vision.patches import to_frames
from freehold.model.vision.resize import VIDEO_AREA, Area, resize, wanted_size

MIN_FRAMES, MAX_FRAMES = 4, 768
SAMPLES_PER_SECOND = 1.0
MAX_TOKENS = 57_600
"""Most tokens of one video; the frames of a long one are made smaller."""


@dataclass(frozen=True, slots=True, eq=False)
class Video:
    """segments: in order, each seen by itself. seconds: when each patch in time begins, over all segments; None if
    nobody knows."""

    segments: tuple[Frames, ...]
    seconds: tuple[float, ...] | None


def choose_frames(times: Sequence[float]) -> list[int]:
    """Which frames of a video are looked at: the first one at or after each full second since the first frame.

    times: of all frames, in seconds, ascending. Where that gives fewer than 4, 4 evenly spread ones (or all there
    are); where it gives more than 768, that many evenly spread ones.
    """
    if not times:
        return []
    steps = int((times[-1] - times[0]) * SAMPLES_PER_SECOND) + 1
    if MIN_FRAMES <= steps <= MAX_FRAMES:
        chosen = [bisect_left(times, times[0] + step / SAMPLES_PER_SECOND - 1e-6) for step in range(steps)]
        chosen = sorted(set(chosen))
        if len(chosen) >= min(MIN_FRAMES, len(times)):
            return chosen
    wanted = min(len(times), MIN_FRAMES if steps <= MAX_FRAMES else MAX_FRAMES)
    if wanted == 1:
        return [0]
    return [round(place * (len(times) - 1) / (wanted - 1)) for place in range(wanted)]


def frame_area(count: int, config: VisionConfig) -> Area:
    """How large each of `count` frames may be: 602,112 pixels, less if the video would take more than 57,600 tokens."""
    pairs = -(-count // config.temporal_patch_size)
    return Area(VIDEO_AREA.least, max(VIDEO_AREA.least, min(VIDEO_AREA.most, MAX_TOKENS * config.factor**2 // pairs)))


def video_frames(
    frames: Iterable[torch.Tensor],
    count: int,
    times: Sequence[float] | None,
    config: VisionConfig,
    budget: Budget | None = None,
) -> Video:
    """The video of `count` frames, each uint8 (3, height, width) and all of one size; they are read one at a time.

    times: of the frames, in seconds from the first one. budget: of the conversation; None: the video is all of it.
    Raises RequestError for no frames or too many, for sizes that differ, for frames that are too long and thin, and
    where the budget is used up.
    """
    if not 1 <= count <= MAX_FRAMES:
        raise RequestError(f"the video has {count} frames; between 1 and {MAX_FRAMES} are taken")
    pixels = torch.empty(0)
    first: tuple[int, int] = (0, 0)
    done = 0
    for number, frame in enumerate(frames):
        height, width = frame.shape[1:]
        if number == 0:
            first = (height, width)
            size = wanted_size(height, width, config.factor, frame_area(count, config))
            pairs = -(-count // config.temporal_patch_size)
            (budget or Budget()).take("tokens", pairs * size[0] * size[1] // config.factor**2)
            pixels = torch.empty(count, 3, *size, dtype=torch.uint8)
        elif (height, width) != first:
            raise RequestError(
                f"frame {number} of the video has {width} x {height} pixels, the first one {first[1]} x {first[0]}; "
                "all must be of one size"
            )
        pixels[number] = resize(frame[None], pixels.shape[2], pixels.shape[3])[0]
        done += 1
    if done != count:
        raise RequestError(f"the video is damaged or cut off: {done} of {count} frames can be read")
    length = config.segment_frames * config.temporal_patch_size
    segments = tuple(to_frames("video", pixels[start : start + length], config) for start in range(0, count, length))
    seconds = None if times is None else tuple(times[:: config.temporal_patch_size])
    return Video(segments, seconds)
