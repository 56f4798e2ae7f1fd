"""Checking that a value has the type its field asks for, by name, before anyone computes with it."""

from __future__ import annotations

from typing import Any


def is_kind(value: Any, kind: type) -> bool:
    """Whether the value is of the kind. True and False are no numbers; whole numbers are floats too."""
    if isinstance(value, bool):
        return kind is bool
    if kind is float:
        return isinstance(value, (int, float))
    return isinstance(value, kind)


def kind_name(kind: type) -> str:
    """The kind in words, for an error message."""
    return {int: "a whole number", float: "a number", bool: "True or False", str: "a text"}.get(kind, kind.__name__)
