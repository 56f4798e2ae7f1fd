"""How the learning rate goes up and down again."""

from __future__ import annotations

import math


def rate_of(highest: float, step: int, *, warmup_steps: int, steps: int, last: float) -> float:
    """The learning rate of a step, counted from 0: up to `highest` along a line, then down along a cosine to `last`
    of it."""
    if step < warmup_steps:
        return highest * (step + 1) / warmup_steps
    done = (step - warmup_steps) / max(1, steps - warmup_steps)
    return highest * (last + (1 - last) * 0.5 * (1 + math.cos(math.pi * done)))
