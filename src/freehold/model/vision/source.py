"""Where the bytes of an image or a video come from. Nothing is ever fetched."""

from __future__ import annotations

import base64
import binascii
import re
from pathlib import Path
from typing import Any
from urllib.parse import unquote_to_bytes

from freehold.core.errors import RequestError, UnsupportedFieldError

_DATA_URL = re.compile(r"data:(?P<kind>[^,]{0,200}),", re.IGNORECASE)
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_ASCII_SPACE = str.maketrans("", "", " \t\r\n")


def read_source(source: Any, *, local: bool, limit: int) -> bytes:
    """The bytes of `source`: bytes, a data URL or, if `local`, a path.

    limit: most bytes. Raises UnsupportedFieldError for an address on a network, RequestError for anything else that
    is none of these, is broken, cannot be read, or is longer than the limit.
    """
    if isinstance(source, (bytes, bytearray, memoryview)):
        data = bytes(source)
    elif isinstance(source, str) and _DATA_URL.match(source):
        data = _from_data_url(source, limit)
    elif isinstance(source, str) and _SCHEME.match(source):
        raise UnsupportedFieldError(
            f"{_shown(source)} is not fetched: this program opens no connection; send the data themselves, "
            "as a data URL"
        )
    elif isinstance(source, (str, Path)) and local:
        data = _from_file(Path(source), limit)
    elif isinstance(source, (str, Path)):
        raise RequestError(f"{_shown(str(source))} is no data URL; send data:TYPE;base64,DATA")
    else:
        raise RequestError(f"a {type(source).__name__} is no image or video; give bytes, a data URL or a path")
    if len(data) > limit:
        raise RequestError(f"the data have {len(data)} bytes; at most {limit} are taken")
    return data


def _from_data_url(url: str, limit: int) -> bytes:
    head = _DATA_URL.match(url)
    assert head is not None
    body = url[head.end() :]
    if len(body) > 2 * limit + 1024:  # even with line ends in it, that is too much
        raise RequestError(f"the data URL has {len(url)} characters; at most {limit} bytes are taken")
    if not head["kind"].lower().endswith(";base64"):
        try:
            return unquote_to_bytes(body)
        except UnicodeEncodeError:
            raise RequestError("the data URL is no valid text: it holds half a character") from None
    try:
        return base64.b64decode(body.translate(_ASCII_SPACE), validate=True)
    except (binascii.Error, ValueError) as error:
        raise RequestError(f"the data URL is no valid base64: {error}") from None


def _from_file(path: Path, limit: int) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(limit + 1)
    except (OSError, ValueError) as error:  # the latter of paths that no file can have
        reason = (error.strerror if isinstance(error, OSError) else None) or error
        raise RequestError(f"{_shown(str(path))} cannot be read: {reason}") from None


def _shown(text: str) -> str:
    return repr(text if len(text) <= 80 else f"{text[:77]}...")
