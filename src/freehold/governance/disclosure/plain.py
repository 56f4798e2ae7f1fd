"""Texts that show nothing but themselves: without what moves a cursor, breaks a line or turns the writing."""

from __future__ import annotations

import re
import unicodedata

_KINDS = ("Cc", "Cs", "Zl", "Zp")
"""Unicode's categories of control characters, of halves of surrogate pairs, and of breaks of lines and paragraphs."""
_TURNS = re.compile("[\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")
"""Characters that change the direction in which their neighbours are shown."""


def is_plain(text: str) -> bool:
    """Whether the text holds none of these characters."""
    return (text.isascii() and text.isprintable()) or not any(_moves(character) for character in text)


def plain(text: str) -> str:
    r"""The text with each of these characters as its number, such as \u001b."""
    if is_plain(text):
        return text
    return "".join(f"\\u{ord(character):04x}" if _moves(character) else character for character in text)


def _moves(character: str) -> bool:
    return unicodedata.category(character) in _KINDS or _TURNS.match(character) is not None
