"""Texts without the disguises that Unicode offers: full-width digits, invisible characters, letters that look alike."""

from __future__ import annotations

import re
import sys
import unicodedata
from functools import lru_cache

_DASHES = "\u00ad\u2010\u2011\u2012\u2013\u2014\u2015\u2212\u2e3a\u2e3b\ufe58\ufe63\uff0d"

# Letters of other scripts that a reader takes for Latin ones. Cyrillic, Greek and others: code point, twin.
_TWINS = (
    "0430a 0432b 0501d 0435e 04bbh 043dh 0456i 0458j 043ak 04cfl 043cm 043eo 0440p 051bq 0441c 0455s "
    "0442t 0443y 051dw 0445x 0437z 03b1a 03b2b 03b5e 03b9i 03bak 03bdv 03bfo 03c1p 03c4t 03c5u 03c7x "
    "03c9w 0261g 0131i "
)
_ALIKE = {chr(int(pair[:4], 16)): pair[4] for pair in _TWINS.split()}
_SQUEEZED = re.compile(r"[^\w\x00]|_")


@lru_cache(1)
def _table() -> dict[int, str | None]:
    """Every decimal digit -> its ASCII one, every dash -> "-", every character without a shape -> nothing."""
    table: dict[int, str | None] = {}
    for code in range(0x80, sys.maxunicode + 1):
        character = chr(code)
        category = unicodedata.category(character)
        if category == "Nd":
            table[code] = str(unicodedata.digit(character))
        elif category == "Cf" or 0xFE00 <= code <= 0xFE0F or 0xE0100 <= code <= 0xE01EF or code in (0x34F, 0x3164):
            table[code] = None
        elif character in _DASHES:
            table[code] = "-"
    return table


def plain(text: str) -> str:
    """The text in compatibility form (NFKC), digits of all scripts as ASCII ones, invisible characters taken out."""
    if text.isascii():
        return text
    return unicodedata.normalize("NFKC", text.translate(_table())).translate(_table())


def squeezed(text: str) -> str:
    """Letters and digits alone, in lower case, without accents, and Latin where they look so; NUL stays.

    Two spellings that a reader takes for one name are equal here, however they are spaced or broken.
    """
    folded = text.lower()
    if not text.isascii():
        bare = unicodedata.normalize("NFKD", plain(text)).casefold()
        folded = "".join(_ALIKE.get(c, c) for c in bare if not unicodedata.combining(c))
    return _SQUEEZED.sub("", folded)
