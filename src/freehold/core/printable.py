"""Texts of strangers, as they may stand on a terminal."""

from __future__ import annotations


def printable(text: str) -> str:
    """The text on one line, with what a terminal would obey or not show (line breaks, ESC, marks of direction) escaped
    as Python does it."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)
