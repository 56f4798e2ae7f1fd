"""What agents ask of an engine: sessions with the lengths of real ones, and tokens that mean nothing."""

from __future__ import annotations

import random
from collections.abc import Generator, Sequence
from dataclasses import dataclass

PUBLISHED_STEPS = 84
_FIRST, _FRESH, _ANSWER = 7742, 6440, 523
"""Tokens of a session's first prompt, new ones of every later step, and generated ones."""


@dataclass(frozen=True, slots=True)
class Call:
    """prompt: the whole history, not to be changed by who reads it. answer_tokens: how many to generate."""

    prompt: list[int]
    answer_tokens: int


Session = Generator[Call, list[int], None]
"""Yields its calls one after another, and is sent the tokens of each answer."""


def published_session(seed: int, vocab_size: int, *, steps: int = PUBLISHED_STEPS, scale: float = 1.0) -> Session:
    """A coding agent's session with the published averages, all counts times `scale` and at least 1.

    A session of 84 steps has, on average of a step, 153.7 K tokens in, 95.8 % of them seen before and 6.4 K new, and
    523 out. No history that only grows has such averages: after half of the steps it goes back to the first
    prompt, as an agent does that clears its context. The new tokens of a step vary by half around their average.
    """
    rng, lengths = random.Random(seed), random.Random(seed)  # lengths that do not depend on the scale
    history = _fresh(rng, vocab_size, _scaled(_FIRST, scale))
    first, less = len(history), 0.0
    for step in range(steps):
        if step == steps // 2:
            del history[first:]
        if step:
            # Every other step makes up for the one before, so that short sessions have the averages too.
            less = -less if step % 2 == 0 else lengths.uniform(-0.5, 0.5) * _FRESH
            history.extend(_fresh(rng, vocab_size, _scaled(_FRESH + less, scale)))
        history.extend((yield Call(history, _scaled(_ANSWER, scale))))


def tool_calls(seed: int, vocab_size: int, *, calls: int, prefix: Sequence[int] = ()) -> Session:
    """A session of tool calls: each adds 20 to 40 tokens to the history, and 20 generated ones.

    prefix: tokens that the history begins with.
    """
    rng = random.Random(seed)
    history = list(prefix)
    for _ in range(calls):
        history.extend(_fresh(rng, vocab_size, rng.randint(20, 40)))
        history.extend((yield Call(history, 20)))


def forks(prefix: Sequence[int], count: int, vocab_size: int, *, calls: int) -> list[Session]:
    """Sessions of tool calls that have `prefix` in common and differ from the first token after it on."""
    return [tool_calls(n, vocab_size, calls=calls, prefix=[*prefix, n]) for n in range(count)]


def random_prefix(seed: int, vocab_size: int, length: int) -> list[int]:
    """Tokens for several sessions to begin with."""
    return _fresh(random.Random(seed), vocab_size, length)


def _scaled(count: float, scale: float) -> int:
    return max(1, round(count * scale))


def _fresh(rng: random.Random, vocab_size: int, count: int) -> list[int]:
    return rng.choices(range(vocab_size), k=count)
