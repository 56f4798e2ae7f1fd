"""How the learning rate goes up and down again."""

from __future__ import annotations

import math

from freehold.core.errors import ArgumentError

_MOST = 2**53
_MOST_RATE = 1000.0
"""No weights learn so fast; far beyond it the optimiser's own numbers overflow."""


def check_rate(name: str, rate: float) -> None:
    """Raises ArgumentError for a learning rate that nothing can learn with."""
    if not 0 < rate <= _MOST_RATE:
        raise ArgumentError(f"{name} is {rate}; it must be a positive number of at most {_MOST_RATE:g}")


def check_seed(seed: int) -> None:
    """Raises ArgumentError for a seed that no generator takes, or whose multiples none takes."""
    if not -_MOST <= seed <= _MOST:
        raise ArgumentError(f"seed is {seed}; it must be from {-_MOST} to {_MOST}")


def rate_of(highest: float, step: int, *, warmup_steps: int, steps: int, last: float) -> float:
    """The learning rate of a step, counted from 0: up to `highest` along a line, then down along a cosine to `last`
    of it."""
    if step < warmup_steps:
        return highest * (step + 1) / warmup_steps
    done = (step - warmup_steps) / max(1, steps - warmup_steps)
    return highest * (last + (1 - last) * 0.5 * (1 + math.cos(math.pi * done)))
