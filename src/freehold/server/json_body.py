"""Bytes of a request body -> JSON value. Whatever the bytes are, the answer is a value or a RequestError."""

from __future__ import annotations

from typing import Any

import pydantic_core

from freehold.core.errors import RequestError

MAX_JSON_DEPTH = 64
"""Most levels of lists and objects in a request."""


def decode_json(body: bytes, *, max_depth: int = MAX_JSON_DEPTH) -> Any:
    """The JSON value in `body`.

    Raises RequestError for invalid UTF-8, unpaired surrogates, NaN and Infinity, anything else that is
    not JSON, and for values nested deeper than `max_depth`. The message quotes nothing of the body.
    """
    try:
        # Strict about UTF-8, surrogates and nesting, where the standard library's parser is not.
        value = pydantic_core.from_json(body, allow_inf_nan=False)
    except ValueError as error:
        raise RequestError(f"the request body is not valid JSON: {error}") from None
    if _deeper_than(value, max_depth):
        raise RequestError(f"the request body is nested deeper than {max_depth} levels")
    return value


def _deeper_than(value: Any, limit: int) -> bool:
    level = [value] if isinstance(value, (dict, list)) else []
    for _ in range(limit):
        if not level:
            return False
        level = [
            child
            for container in level
            for child in (container.values() if isinstance(container, dict) else container)
            if isinstance(child, (dict, list))
        ]
    return bool(level)
