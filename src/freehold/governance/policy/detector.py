"""What a detector is: a name, and a function from a text to what it found there."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Detector:
    """Finds one kind of thing.

    name: of the kind, as settings and records write it.
    find: the values in a text, each as often as it likes; of values that differ in spacing only, one form. They are
        counted and forgotten.
    """

    name: str
    find: Callable[[str], Iterable[str]]
