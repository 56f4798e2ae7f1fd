"""Texts in files."""

from __future__ import annotations

from pathlib import Path

from freehold.core.errors import ArgumentError


def read_utf8(path: Path) -> str:
    """The text of a file. Raises ArgumentError, which names the first wrong byte, unless it is UTF-8."""
    data = path.read_bytes()
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ArgumentError(
            f"{path} is no UTF-8 text: byte {error.start} is 0x{data[error.start]:02x} ({error.reason}); convert it, "
            "for example with iconv -f ISO-8859-1 -t UTF-8"
        ) from None
