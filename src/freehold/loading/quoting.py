"""How names that come from a file are shown to a person."""

from __future__ import annotations

import reprlib

_SHORT = reprlib.Repr()
_SHORT.maxstring = 120
_SHORT.maxother = 120
_SHORT.maxlong = 40
_SHORT.maxlist = 16
_SHORT.maxlevel = 3


def quoted(name: object) -> str:
    """`name` as a Python literal, shortened: of a text 120 characters are shown, of a list 16 elements.

    Names in a checkpoint are chosen by whoever wrote it. As a literal they can neither move a terminal's
    cursor nor fill the screen.
    """
    return _SHORT.repr(name)


def listed(names: list[str], most: int = 20) -> str:
    """The first `most` names, quoted, one a line and indented, and how many there are beyond them."""
    lines = [f"  {quoted(name)}" for name in names[:most]]
    if len(names) > most:
        lines.append(f"  ... and {len(names) - most} more")
    return "\n".join(lines)
