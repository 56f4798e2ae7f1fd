"""JSON objects from files that nobody vouches for."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from freehold.core.errors import CorruptFileError
from freehold.loading.mapping import open_regular
from freehold.loading.quoting import quoted

MAX_CONFIG_BYTES = 16 * 2**20
"""Most bytes of a config.json or generation_config.json; real ones have a few kilobytes."""


class _DuplicateNameError(ValueError):
    pass


def _refuse_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = dict(pairs)
    if len(names) != len(pairs):
        seen: set[str] = set()
        for name, _ in pairs:
            if name in seen:
                raise _DuplicateNameError(f"the name {quoted(name)} appears twice in one object")
            seen.add(name)
    return names


def parse_json_object(text: bytes, where: str) -> dict[str, Any]:
    """`text` as a JSON object. `where` opens the message of the CorruptFileError that anything else gives.

    Refused besides malformed JSON: bytes that are not UTF-8, a name twice in one object (readers disagree
    about which one counts), nesting beyond the parser's depth, and numbers of thousands of digits.
    """
    try:
        value = json.loads(text.decode("utf-8"), object_pairs_hook=_refuse_duplicates)
    except RecursionError as error:
        raise CorruptFileError(f"{where}: its JSON is nested too deeply") from error
    except ValueError as error:
        raise CorruptFileError(f"{where}: is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise CorruptFileError(f"{where}: must be a JSON object, and is a {type(value).__name__}")
    return value


def read_json_object(path: Path, max_bytes: int = MAX_CONFIG_BYTES) -> dict[str, Any]:
    """The JSON object in the file `path`.

    Raises LoadError if it cannot be opened, CorruptFileError if it is longer than `max_bytes` or is not a
    JSON object.
    """
    with os.fdopen(open_regular(path), "rb") as file:
        nbytes = os.fstat(file.fileno()).st_size
        if nbytes > max_bytes:
            raise CorruptFileError(f"{path}: has {nbytes} bytes; at most {max_bytes} are read of such a file")
        text = file.read(nbytes)
    return parse_json_object(text, str(path))
