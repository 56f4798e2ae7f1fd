"""Texts that are written in base64 inside a text, unpacked once."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterator

_LEAST_CHARS = 20
_LEAST_GROUP = 8
_PIECE = re.compile(r"[A-Za-z0-9+/_-]+")
_FIRST_PIECE = re.compile(rf"[A-Za-z0-9+/_-]{{{_LEAST_GROUP},}}")
# Between the lines or groups of one text.
_GAP = re.compile(r"\s{1,8}")
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
        pieces = [p for offset in range(4) for text in _decoded(run[offset:]) for p in _READABLE.findall(text)]
        found += pieces
        opaque += len(run) >= _OPAQUE_CHARS and sum(map(len, pieces)) < len(run) // 4
    return found, opaque


def _runs(text: str) -> Iterator[str]:
    """Runs of base64's signs; lines or groups of one text as one, with the shorter one that ends them."""
    pieces: list[str] = []
    end = 0
    match = _FIRST_PIECE.search(text)
    while match:
        piece = match[0]
        if pieces and not (_GAP.fullmatch(text, end, match.start()) and _goes_on(pieces, piece)):
            yield from _whole(pieces)
            pieces = []
        if pieces or len(piece) >= _LEAST_GROUP:
            pieces.append(piece)
            end = match.end()
        # Most words are shorter than what may begin a run: they are passed over without a look at each.
        match = (_PIECE if pieces else _FIRST_PIECE).search(text, match.end())
    yield from _whole(pieces)


def _goes_on(pieces: list[str], piece: str) -> bool:
    """Whether a piece belongs to what stands before it: groups have one length, and the last one is shorter; or they
    look coded."""
    length = len(pieces[0])
    if len(pieces[-1]) == length >= len(piece):
        return len(piece) == length or len(pieces) > 1 or _looks_coded(pieces[0])
    return len(piece) >= _LEAST_GROUP and _looks_coded(piece) and _looks_coded(pieces[-1])


def _looks_coded(piece: str) -> bool:
    """Whether a word has capitals or digits where words of languages have none."""
    return _INSIDE.search(piece) is not None


_INSIDE = re.compile(r"[a-z0-9][A-Z]|[A-Za-z][0-9]|[0-9][A-Za-z]")


def _whole(pieces: list[str]) -> Iterator[str]:
    run = "".join(pieces)
    if len(run) < _LEAST_CHARS or not (_CAPITAL.search(run) and _OTHER.search(run)):
        return
    yield run.replace("-", "+").replace("_", "/")
    if len(pieces) > 1:
        # Some of them may be no part of it.
        yield from (part for piece in pieces for part in _whole([piece]))


def _decoded(run: str) -> list[str]:
    """What it says, in UTF-8, and in UTF-16 where every second byte is nothing."""
    whole = run[: len(run) - (len(run) % 4 == 1)]
    try:
        data = base64.b64decode(whole + "=" * (-len(whole) % 4))
    except binascii.Error:
        return []
    found = [data.decode("utf-8", "replace")]
    if data.count(0) * 4 > len(data):
        found += [data[odd:].decode(f"utf-16-{order}", "replace") for order in ("le", "be") for odd in (0, 1)]
    return found
