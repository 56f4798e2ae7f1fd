"""How large a JSON schema is for the grammar engine, whose limits would else be met in the middle of an answer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

MOST_CHOICES = 6_000
"""Members that may come next at one place of an answer. Each takes four items of the library's parser, which follows
`grammar._MOST_ITEMS` of them."""
MOST_CHARACTERS = 16_000
"""Lengths of strings that have to be counted, together. Each character takes up to 15 states of the library's lexer,
which has 250,000."""

Resolve = Callable[[str, Any], Any]


def too_large(schema: Any, root: Any, resolve: Resolve) -> str:
    """What of a walked schema is too large, with the way out; empty if nothing is."""
    places = _Places(root, resolve)
    choices = places.most_choices([schema])
    if choices > MOST_CHOICES:
        return (
            f"at one place {choices} members or alternatives may come next; at most {MOST_CHOICES} can be followed. "
            "List more of them under 'required', or split the schema"
        )
    lengths = {_length(part) for part in _parts(root)}
    if sum(lengths) > MOST_CHARACTERS:
        return (
            f"'minLength' and 'maxLength' count to {max(lengths)} characters, different ones {sum(lengths)} together; "
            f"at most {MOST_CHARACTERS} can be counted. Lower them or leave them out"
        )
    return ""


def _parts(schema: Any) -> Iterator[Mapping[str, Any]]:
    """All objects within a document that may be schemas."""
    waiting = [schema]
    while waiting:
        found = waiting.pop()
        if isinstance(found, Mapping):
            yield found
            waiting += [value for key, value in found.items() if key not in ("const", "enum")]
        elif isinstance(found, list):
            waiting += found


def _length(part: Mapping[str, Any]) -> int:
    return max((n for key in ("minLength", "maxLength") if isinstance(n := part.get(key), int)), default=0)


class _Places:
    """The places of an answer, each known by the schemas that a value there may fit."""

    def __init__(self, root: Any, resolve: Resolve) -> None:
        self._root, self._resolve = root, resolve

    def most_choices(self, start: Sequence[Any]) -> int:
        """What may come next at the place where most may."""
        most, waiting, seen = 0, [list(start)], set()
        while waiting:
            here = self._flat(waiting.pop())
            key = frozenset(map(id, here))
            if not key or key in seen:
                continue
            seen.add(key)
            most = max(most, sum(1 + self._num_optional(schema) for schema in here))
            waiting += self._inner(here)
        return most

    def _flat(self, schemas: Sequence[Any]) -> list[Mapping[str, Any]]:
        """The schemas with their references and alternatives in their stead, each once."""
        found: dict[int, Mapping[str, Any]] = {}
        waiting = list(schemas)
        while waiting:
            schema = waiting.pop()
            if not isinstance(schema, Mapping) or id(schema) in found:
                continue
            found[id(schema)] = schema
            if isinstance(schema.get("$ref"), str):
                waiting.append(self._followed(schema["$ref"]))
            for name in ("anyOf", "oneOf", "allOf"):
                waiting += schema.get(name, ())
        return list(found.values())

    def _followed(self, reference: str) -> Any:
        try:
            return self._resolve(reference, self._root)
        except (LookupError, ValueError, TypeError):
            return True  # it leads nowhere, which is said where it stands

    @staticmethod
    def _num_optional(schema: Mapping[str, Any]) -> int:
        required = set(schema.get("required", ()))
        return sum(name not in required for name in schema.get("properties", ()))

    @staticmethod
    def _inner(schemas: Sequence[Mapping[str, Any]]) -> list[list[Any]]:
        """The places within values that fit one of the schemas; members of one name stand at one place."""
        places: dict[tuple[str, str], list[Any]] = {}
        for schema in schemas:
            for name, member in schema.get("properties", {}).items():
                places.setdefault(("properties", name), []).append(member)
            for number, item in enumerate(schema.get("prefixItems", ())):
                places.setdefault(("prefixItems", str(number)), []).append(item)
            for key in ("items", "additionalProperties"):
                if key in schema:
                    places.setdefault((key, ""), []).append(schema[key])
        return list(places.values())
