"""Sizes and durations as people type and read them."""

from __future__ import annotations

import re
from typing import Any

import click

_SIZES = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_MOST = 1e18
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


class Size(click.ParamType[int]):
    """`500MB`, `1.5 GB`, `2TB` or a number of bytes; an integer of bytes."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Read one value; a usage error if it is no size."""
        if isinstance(value, int):
            return value
        match = re.fullmatch(r"(\d+(?:\.\d+)?) *([KMGT]B|)", str(value).strip().upper())
        if match is None:
            self.fail(f"{value!r} is not a size, for example 500MB, 20GB, 1.5TB", param, ctx)
        size = float(match.group(1)) * _SIZES[match.group(2)]
        if size > _MOST:
            self.fail(f"{str(value)[:40]!r} is larger than any memory or disk", param, ctx)
        return int(size)


class Duration(click.ParamType[float]):
    """`90s`, `30m`, `12h` or `7d`; seconds."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Read one value; a usage error if it is no duration."""
        if isinstance(value, float):
            return value
        match = re.fullmatch(r"(\d+(?:\.\d+)?) *([smhd])", str(value).strip().lower())
        if match is None:
            self.fail(f"{value!r} is not a duration, for example 30m, 12h, 7d", param, ctx)
        return float(match.group(1)) * _SECONDS[match.group(2)]


def shown_size(nbytes: int) -> str:
    """A size with three digits: 1.23 GB."""
    for unit in ("TB", "GB", "MB", "KB"):
        if nbytes >= _SIZES[unit]:
            return f"{nbytes / _SIZES[unit]:.3g} {unit}"
    return f"{nbytes} B"
