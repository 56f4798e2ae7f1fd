"""One thing that `freehold doctor` looked at."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Level = Literal["ok", "warning", "error"]


@dataclass(frozen=True, slots=True)
class Finding:
    """fact: what was found. way_out: what to do about it; empty if nothing needs doing. An error keeps the engine from
    running; a warning makes it slower, smaller or less safe than it could be."""

    topic: str
    level: Level
    fact: str
    way_out: str = ""


def finding(topic: str, fact: str, *, warning: str = "", error: str = "") -> Finding:
    """With a way out as a warning or an error, and without one as something in order."""
    if error:
        return Finding(topic, "error", fact, error)
    return Finding(topic, "warning" if warning else "ok", fact, warning)
