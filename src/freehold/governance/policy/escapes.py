"""Ways to write a character by others: escapes of JSON and programming languages, of addresses, HTML and terminals.

Each is undone once.
"""

from __future__ import annotations

import html
import re

_UNITS = re.compile(r"(?:\\u[0-9A-Fa-f]{4})+")
_CODES = re.compile(
    r"\\(?:u\{([0-9A-Fa-f]{1,6})\}|U([0-9A-Fa-f]{8})|x([0-9A-Fa-f]{2})|([0-3][0-7]{2})|([abefnrtv0\"'\\/]))"
)
_SIGNS = {"a": "\x07", "b": "\x08", "e": "\x1b", "f": "\x0c", "n": "\n", "r": "\r", "t": "\t", "v": "\x0b", "0": "\x01"}
_BYTES = re.compile(r"(?:%[0-9A-Fa-f]{2})+")
_ENTITY = re.compile(r"&#?[A-Za-z0-9]{1,31};")
_TERMINAL = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]{0,64}[ -/]{0,8}[@-~]|(?:\x1b\]|\x9d)[^\x00\x07\x1b\x9c]{0,2048}(?:\x07|\x1b\\|\x9c)"
    r"|\x1b[ -/]{0,4}[0-Z\\^-~]"
)
CONTROLS = re.compile(r"[\x01-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f]")
"""Characters that only steer something. NUL, which parts texts here, line ends and tabulators are none of them."""


def unescaped(text: str) -> str:
    """The text with its escapes undone, those of terminals excepted. It never gets a NUL that it did not have."""
    if "\\" in text:
        text = _CODES.sub(_of_code, _UNITS.sub(_of_units, text))
    if "%" in text:
        text = _BYTES.sub(_of_bytes, text)
    if "&" in text:
        text = _ENTITY.sub(lambda match: html.unescape(match[0]).replace("\x00", "\x01"), text)
    return text


def without_terminal(text: str, instead: str) -> str:
    """The text with what steers a terminal replaced."""
    if "\x1b" in text or not text.isascii():
        return _TERMINAL.sub(instead, text)
    return text


def _of_units(match: re.Match[str]) -> str:
    units = bytes.fromhex(match[0].replace("\\u", ""))
    return units.decode("utf-16-be", "replace").replace("\x00", "\x01").replace("\\", "\\\\")


def _of_code(match: re.Match[str]) -> str:
    if match[5]:
        return _SIGNS.get(match[5], match[5])
    code = int(match[4], 8) if match[4] else int(match[1] or match[2] or match[3], 16)
    return chr(code) if 0 < code <= 0x10FFFF and not 0xD800 <= code <= 0xDFFF else "\x01"


def _of_bytes(match: re.Match[str]) -> str:
    return bytes.fromhex(match[0].replace("%", "")).decode("utf-8", "replace").replace("\x00", "\x01")
