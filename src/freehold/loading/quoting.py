"""How names that come from a file are shown to a person."""

from __future__ import annotations

_LONGEST = 120


def quoted(name: object) -> str:
    """`name` as a Python literal, cut after 120 characters.

    Names in a checkpoint are chosen by whoever wrote it. As a literal they can neither move a terminal's
    cursor nor fill the screen.
    """
    text = repr(name)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def listed(names: list[str], most: int = 20) -> str:
    """The first `most` names, quoted, one a line and indented, and how many there are beyond them."""
    lines = [f"  {quoted(name)}" for name in names[:most]]
    if len(names) > most:
        lines.append(f"  ... and {len(names) - most} more")
    return "\n".join(lines)
