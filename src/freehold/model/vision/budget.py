"""What the images and videos of one conversation may take together: many parts are no way around a limit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from freehold.core.errors import RequestError

Kind = Literal["pixels", "frames", "film_pixels", "film_frames", "tokens"]


@dataclass(frozen=True, slots=True)
class _Limit:
    most: int
    what: str
    way_out: str


LIMITS: dict[Kind, _Limit] = {
    "pixels": _Limit(
        2_000_000_000,
        "pixels of images and frames of animations, before they are resized",
        "make them smaller, or leave some out",
    ),
    "frames": _Limit(20_000, "frames of animations", "cut them into pieces, or leave some out"),
    # 16 minutes at 1920 x 1080 and 30 frames a second, a few minutes of work.
    "film_pixels": _Limit(
        60_000_000_000, "pixels of all frames of films", "cut them into pieces, or make them smaller"
    ),
    "film_frames": _Limit(500_000, "frames of films", "cut them into pieces, or leave some out"),
    # 512 of the largest images, or five of the longest videos: 0.7 GB of pixels as the tower sees them.
    "tokens": _Limit(300_000, "tokens of images and videos", "make them smaller, or leave some out"),
}
"""Of one conversation."""


class Budget:
    """What one conversation has used up of each limit."""

    def __init__(self) -> None:
        self._used = dict.fromkeys(LIMITS, 0)

    def take(self, kind: Kind, count: int) -> None:
        """Counts what is about to be used. Raises RequestError beyond the limit."""
        limit = LIMITS[kind]
        self._used[kind] += count
        if self._used[kind] > limit.most:
            raise RequestError(
                f"with this part the conversation has {self._used[kind]} {limit.what}; at most {limit.most} are taken. "
                f"To send less, {limit.way_out}"
            )
