"""Texts that are written in base64 inside a text, unpacked once."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterator

_LEAST_CHARS = 20
_RUNS = re.compile(rf"[A-Za-z0-9+/_-]{{{_LEAST_CHARS},}}")
_LINE_CHARS = range(60, 77)
_BREAK = re.compile(r"\r?\n")
_LAST_LINE = re.compile(rf"\r?\n([A-Za-z0-9+/_-]{{1,{_LEAST_CHARS - 1}}})(?![A-Za-z0-9+/_-])")
# Of a text that is written so, some signs are capitals and some are not. Most other long words are all alike.
_CAPITAL, _OTHER = re.compile("[A-Z]"), re.compile("[a-z0-9]")
# Noise has no stretch of readable signs as long as this.
_READABLE = re.compile(r"[^\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ufffd]{12,}")
_OPAQUE_CHARS = 1024


def unpacked(text: str) -> tuple[list[str], int]:
    """The texts found, and how many long runs of base64 hold something else than text."""
    found, opaque = [], 0
    for run in _runs(text):
        # What stands before it without a space may have moved its groups of four.
        pieces = [piece for offset in range(4) for piece in _READABLE.findall(_decoded(run[offset:]))]
        found += pieces
        opaque += len(run) >= _OPAQUE_CHARS and sum(map(len, pieces)) < len(run) // 4
    return found, opaque


def _runs(text: str) -> Iterator[str]:
    """Runs of base64's signs; those of whole lines of its usual length as one, with what ends them."""
    lines: list[str] = []
    end = 0
    for match in _RUNS.finditer(text):
        if lines and (len(lines[-1]) not in _LINE_CHARS or not _BREAK.fullmatch(text, end, match.start())):
            yield from _mixed(lines, text, end)
            lines = []
        lines.append(match[0])
        end = match.end()
    yield from _mixed(lines, text, end)


def _mixed(lines: list[str], text: str, end: int) -> Iterator[str]:
    run = "".join(lines)
    if not (_CAPITAL.search(run) and _OTHER.search(run)):
        return
    last = _LAST_LINE.match(text, end) if len(lines[-1]) in _LINE_CHARS else None
    run += last[1] if last else ""
    yield run.replace("-", "+").replace("_", "/")


def _decoded(run: str) -> str:
    whole = run[: len(run) - (len(run) % 4 == 1)]
    try:
        return base64.b64decode(whole + "=" * (-len(whole) % 4)).decode("utf-8", "replace")
    except binascii.Error:
        return ""
