"""Texts that are written in base64 inside a text, unpacked once."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterator

_LEAST_CHARS = 20
_RUNS = re.compile(
    rf"(?:[A-Za-z0-9+/]{{60,76}}\r?\n)+[A-Za-z0-9+/]+={{0,2}}"
    rf"|[A-Za-z0-9+/]{{{_LEAST_CHARS},}}={{0,2}}|[A-Za-z0-9_-]{{{_LEAST_CHARS},}}={{0,2}}"
)
# Of a text that is written so, some signs are capitals and some are not. Most other long words are all alike.
_CAPITAL, _OTHER = re.compile("[A-Z]"), re.compile("[a-z0-9]")
_BREAKS = re.compile(r"[\r\n]+")
_OPAQUE_CHARS = 1024
_TEXT_SHARE = 0.9


def unpacked(text: str) -> tuple[list[str], int]:
    """The texts found, and how many long runs of base64 hold something else than text."""
    found, opaque = [], 0
    for run in _runs(text):
        inner = [piece for offset in range(4) if (piece := _decoded(run[offset:]))]
        found += inner
        opaque += not inner and len(run) >= _OPAQUE_CHARS
    return found, opaque


def _runs(text: str) -> Iterator[str]:
    for match in _RUNS.finditer(text):
        if not (_CAPITAL.search(match[0]) and _OTHER.search(match[0])):
            continue
        run = _BREAKS.sub("", match[0]).rstrip("=")
        yield run.replace("-", "+").replace("_", "/")


def _decoded(run: str) -> str:
    """What a run stands for, if that is text; "" otherwise."""
    whole = run[: len(run) - (len(run) % 4 == 1)]
    try:
        data = base64.b64decode(whole + "=" * (-len(whole) % 4))
    except binascii.Error:
        return ""
    text = data.decode("utf-8", "ignore")
    shown = sum(map(str.isprintable, text)) + text.count("\n") + text.count("\t") + text.count("\r")
    return text if data and shown >= _TEXT_SHARE * len(data.decode("utf-8", "replace")) else ""
