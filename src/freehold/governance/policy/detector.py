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
    is_prompt: whether its time is known to grow with the text alone: then short texts need no thread of their own.
    in_joints: whether it also looks at what arises where texts meet: there, words that meet by chance make an address.
    in_paths: whether it looks for paths, whose parts may stand in neighbouring texts.
    """

    name: str
    find: Callable[[str], Iterable[str]]
    is_prompt: bool = False
    in_joints: bool = True
    in_paths: bool = False
