"""Texts without the disguises that Unicode and escapes offer: one reading of whatever is written."""

from __future__ import annotations

import re
import unicodedata

from freehold.governance.policy.confusables import CONFUSABLES
from freehold.governance.policy.escapes import CONTROLS, unescaped, without_terminal

_SQUEEZED = re.compile(r"[^\w\x00]|_")
# What readers of names take for each other within ASCII; both sides of a comparison are written so.
_SAME = str.maketrans("l10", "iio")
# Shown as nothing, though Unicode counts some of them among letters and signs.
_BLANK = frozenset({0x034F, 0x115F, 0x1160, 0x17B4, 0x17B5, 0x2065, 0x2800, 0x3164, 0xFFA0, 0xFFFC, 0xFFFD})
_NAMED = re.compile(
    r"(?:LATIN|REGIONAL INDICATOR|SQUARED|CIRCLED|PARENTHESIZED|TURNED)\b.*?"
    r"(SMALL LETTER|LETTER SMALL CAPITAL|CAPITAL LETTER|LETTER) ([A-Z])(?: WITH .*)?"
)


class _Folds(dict[int, str]):
    """Code point -> what it is read as; made when it is asked for."""

    def __missing__(self, code: int) -> str:
        self[code] = found = _fold(code)
        return found


def _fold(code: int) -> str:
    character = chr(code)
    if code == 0x85:
        return "\n"
    if code < 0x80:
        return "" if CONTROLS.match(character) else character
    if 0xE0020 <= code <= 0xE007E:  # tags: ASCII, unseen
        return chr(code - 0xE0000)
    if code in CONFUSABLES:
        return CONFUSABLES[code]
    kind = unicodedata.category(character)
    if kind in ("Cc", "Cf", "Cn", "Co", "Cs", "Mn", "Me") or code in _BLANK:
        return ""
    digit = unicodedata.digit(character, None)
    if digit is not None:
        return str(digit)
    sign = {"Pd": "-", "Pc": "_", "Zs": " ", "Zl": "\n", "Zp": "\n"}.get(kind)
    if sign is not None:
        return sign
    named = _NAMED.fullmatch(unicodedata.name(character, ""))
    if named:
        return named[2].lower() if named[1] == "SMALL LETTER" else named[2]
    if 0xAC00 <= code <= 0xD7A3:  # a syllable of Korean: no disguise
        return character
    parts = unicodedata.normalize("NFKD", character)
    return character if parts == character else "".join(_FOLDS[ord(part)] for part in parts)


_FOLDS = _Folds()


def plain(text: str) -> str:
    """The text as a reader sees it: what has no shape is taken out (controls, invisible characters, accents), digits
    of all scripts are ASCII ones, and letters and signs Latin where they look so. NUL stays."""
    text = without_terminal(text, "")
    if text.isascii() and not CONTROLS.search(text):
        return text
    return text.translate(_FOLDS)


def spellings(text: str) -> list[str]:
    """All readings that differ: as it is; with escapes undone and a space for what steers; as a reader sees that; and
    as a reader sees it where what looks like an escape is none."""
    open_text = unescaped(text)
    spaced = CONTROLS.sub(" ", without_terminal(open_text, " "))
    found = dict.fromkeys((text, spaced, plain(open_text)))
    if open_text != text:
        found[plain(text)] = None
    return list(found)


def squeezed(text: str) -> str:
    """Letters and digits alone, in lower case, without accents, and Latin where they look so; NUL stays.

    Two spellings that a reader takes for one name are equal here, however they are spaced or broken.
    """
    return _SQUEEZED.sub("", plain(text).casefold().translate(_SAME))
