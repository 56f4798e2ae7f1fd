"""How much one render of a chat template may build and compute, and the account of it."""

from __future__ import annotations

import time
from collections.abc import Iterable
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from jinja2 import Undefined
from jinja2.exceptions import SecurityError


@dataclass(frozen=True, slots=True)
class Limits:
    """How much one render may use.

    value_size: characters and elements of any single value, the output included.
    total_size: the same, summed over everything that is built.
    seconds: CPU seconds of the rendering thread.
    """

    value_size: int
    total_size: int
    seconds: float

    @classmethod
    def for_input(cls, size: int, *, seconds: float) -> Limits:
        """Limits in proportion to `size`, the characters and elements of messages, tools and template.

        Texts are repeated by templates (a tool list in prose and as JSON), and grown piece by piece.
        """
        value_size = 1_000_000 + 16 * size
        return cls(value_size=value_size, total_size=256 * value_size, seconds=seconds)


class Budget:
    """What is left of a render's limits."""

    __slots__ = ("_deadline", "_limits", "_total")

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._total = 0
        self._deadline = time.thread_time() + limits.seconds

    def tick(self) -> None:
        """Raises SecurityError once the time is over."""
        if time.thread_time() > self._deadline:
            raise SecurityError(f"the chat template ran longer than {self._limits.seconds:g} seconds")

    def expect(self, size: int) -> None:
        """Raises SecurityError if a value of `size` may not be built."""
        if size > self._limits.value_size:
            raise SecurityError(f"the chat template builds a value of more than {self._limits.value_size} characters")

    def take(self, value: Any) -> Any:
        """Counts a value that was built, and returns it."""
        size = measure(value, self._limits.value_size)
        self.expect(size)
        self._total += size
        if self._total > self._limits.total_size:
            raise SecurityError(f"the chat template builds more than {self._limits.total_size} characters in all")
        return value


def measure(value: Any, limit: int) -> int:
    """Characters and elements of a value through all its containers, each counted as often as it is reached.

    Stops counting past `limit`. Raises SecurityError for a container that holds anything but plain data: that
    could be nested without being counted.
    """
    if isinstance(value, str):
        return len(value)
    if not isinstance(value, (list, tuple, dict)):
        return 1
    size = 0
    stack: list[Any] = [value]
    while stack:
        item = stack.pop()
        size += 1
        if isinstance(item, str):
            size += len(item)
        elif isinstance(item, dict):
            stack.extend(item.keys())
            stack.extend(item.values())
        elif isinstance(item, (list, tuple)):
            stack.extend(item)
        elif not isinstance(item, (bool, int, float, type(None), Undefined)):
            raise SecurityError(f"a chat template may not put a {type(item).__name__} into a list or dictionary")
        if size + len(stack) > limit:
            return size + len(stack)
    return size


# The account of the render that this thread is in.
BUDGET: ContextVar[Budget] = ContextVar("chat_template_budget")


def join_pieces(pieces: Iterable[str]) -> str:
    """The pieces as one text; stops as soon as they are too long or have taken too long."""
    budget = BUDGET.get()
    parts: list[str] = []
    size = 0
    for piece in pieces:
        parts.append(piece)
        size += len(piece)
        budget.expect(size)
        budget.tick()
    return str(budget.take("".join(parts)))
