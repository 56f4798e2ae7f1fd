"""A tool's schema made enforceable: whatever cannot be enforced is left out, and allows more."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from freehold.core.errors import RequestError
from freehold.model.grammar_schema import checked, walked

_MEMBERS = ("$defs", "definitions", "properties")


def relaxed(schema: Any, name: str) -> Any:
    """The schema, without the keywords that `checked` refuses. What is not even a schema allows anything."""
    plain = _known(schema, name)
    for _ in range(_num_schemas(plain)):
        try:
            checked(plain, name)
        except RequestError:
            plain = _without_worst(plain, plain, name)
        else:
            return plain
    return {"type": "object"}


def _known(schema: Any, name: str) -> Any:
    """A schema in which every keyword by itself can be enforced."""
    if not isinstance(schema, Mapping):
        return schema if isinstance(schema, bool) else True
    plain: dict[str, Any] = {}
    for key, value in schema.items():
        if key in _MEMBERS and isinstance(value, Mapping):
            plain[key] = {inner: _known(each, name) for inner, each in value.items()}
        elif key in ("anyOf", "allOf", "oneOf", "prefixItems") and isinstance(value, list) and value:
            plain["anyOf" if key == "oneOf" else key] = [_known(each, name) for each in value]
        elif (key == "items" and not isinstance(value, list)) or key == "additionalProperties":
            plain[key] = _known(value, name)
        elif key == "$ref" or _is_known({key: value}, name):
            plain[key] = value
    return plain


def _is_known(schema: Any, name: str) -> bool:
    try:
        walked(schema, name)
    except RequestError:
        return False
    return True


def _without_worst(schema: Any, root: Any, name: str) -> Any:
    """The schema with the innermost of its parts that is refused opened to anything."""
    if not isinstance(schema, Mapping):
        return True
    shared = {key: root[key] for key in ("$defs", "definitions") if key in root}
    for key, value in schema.items():
        if key in _MEMBERS and isinstance(value, Mapping):
            for inner, each in value.items():
                if not _enforceable(_with(shared, each), name):
                    return {**schema, key: {**value, inner: _without_worst(each, root, name)}}
        elif key in ("items", "additionalProperties") and not _enforceable(_with(shared, value), name):
            return {**schema, key: _without_worst(value, root, name)}
    kept = {key: schema[key] for key in ("type", *_MEMBERS) if key in schema}
    return kept if kept != schema else True


def _with(shared: Mapping[str, Any], schema: Any) -> Any:
    return {**shared, **schema} if isinstance(schema, Mapping) else schema


def _enforceable(schema: Any, name: str) -> bool:
    try:
        checked(schema, name)
    except RequestError:
        return False
    return True


def _num_schemas(schema: Any) -> int:
    if isinstance(schema, Mapping):
        return 1 + sum(map(_num_schemas, schema.values()))
    return sum(map(_num_schemas, schema)) if isinstance(schema, list) else 0
