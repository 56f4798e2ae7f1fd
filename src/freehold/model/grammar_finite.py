"""Which parts of a JSON schema no finite JSON fits, because every value would have to hold another one.

A schema with a required member that is this schema again asks for an answer without an end. The library that follows
grammars does not see that, and would let a model write for ever.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

_SCALARS = frozenset("boolean null number string".split())
_KINDS = _SCALARS | {"array", "object"}
_MOST_SETS = 4000
_MOST_WAYS = 64

_Together = frozenset[int]
"""Schemas, by their numbers, that one value has to fit at the same time."""


class FiniteValues:
    """Whether finite values fit the schemas of one document.

    A value fits only if what it holds, which is smaller, fits as well. So finite values are there exactly if that can
    be shown step by step, beginning with values that hold nothing. Types, required members, numbers of items and of
    members, references and combinations are looked at; whatever else a schema says is taken to be possible. So is
    everything in a document with more than 4,000 sets of schemas that hold together, and a schema with more than 64
    ways to choose among its alternatives. Nothing is called impossible that is not.
    """

    def __init__(self, root: Any, resolve: Callable[[str, Any], Any]) -> None:
        """root: a schema whose every keyword is known, and whose references lead somewhere. resolve: what a reference
        points to in the root."""
        self._root, self._resolve = root, resolve
        self._numbers: dict[int, int] = {}
        self._schemas: list[Any] = []
        self._possible: dict[_Together, bool] = {}
        self._queue: deque[_Together] = deque()
        self._queued: set[_Together] = set()
        self._waiting: dict[_Together, set[_Together]] = {}  # which sets are looked at again once this one is possible

    def exist(self, schema: Any) -> bool:
        """Whether a finite value fits a schema, which is part of the root."""
        together = frozenset([self._number(schema)])
        if together not in self._possible:
            self._add(together)
            self._settle()
        return self._possible[together] or len(self._possible) > _MOST_SETS

    def _settle(self) -> None:
        """Finds sets that finite values fit until no more are found. Looking at one may add others, which come behind
        those that are there: a set that waits for many is looked at again once they all have been."""
        while self._queue and len(self._possible) <= _MOST_SETS:
            together = self._queue.popleft()
            self._queued.remove(together)
            if not self._possible[together] and self._look(together):
                self._possible[together] = True
                for asking in self._waiting.pop(together, ()):
                    self._put(asking)

    def _look(self, together: _Together) -> bool:
        for number, parts in enumerate(self._ways(together)):
            if number >= _MOST_WAYS or self._fits(parts, together):
                return True
        return False

    def _add(self, together: _Together) -> None:
        self._possible[together] = False
        self._put(together)

    def _put(self, together: _Together) -> None:
        if together not in self._queued:
            self._queued.add(together)
            self._queue.append(together)

    def _number(self, schema: Any) -> int:
        if id(schema) not in self._numbers:
            self._numbers[id(schema)] = len(self._schemas)
            self._schemas.append(schema)
        return self._numbers[id(schema)]

    def _known(self, schemas: Iterable[Any], asking: _Together) -> bool:
        """Whether it is known by now that a value fits all of them; true where there are none. If not, the set that
        asks is looked at again when it is."""
        together = frozenset(map(self._number, schemas))
        if not together:
            return True
        if together not in self._possible:
            self._add(together)
        if not self._possible[together]:
            self._waiting.setdefault(together, set()).add(asking)
        return self._possible[together]

    def _ways(self, together: _Together) -> Iterator[list[Any]]:
        """The schemas with all that they refer to and combine: one list for each choice among alternatives."""
        start = [self._schemas[number] for number in together]
        stack: list[tuple[dict[int, Any], list[Any], list[Sequence[Any]]]] = [({}, start, [])]
        while stack:
            parts, todo, choices = stack.pop()
            while todo:
                schema = todo.pop()
                if id(schema) in parts:
                    continue
                parts[id(schema)] = schema
                if isinstance(schema, Mapping):
                    todo += schema.get("allOf", ())
                    todo += [self._resolve(schema["$ref"], self._root)] if "$ref" in schema else []
                    choices = choices + [schema[key] for key in ("anyOf", "oneOf") if key in schema]
            if choices:
                stack += [(dict(parts), [chosen], choices[:-1]) for chosen in reversed(choices[-1])]
            else:
                yield list(parts.values())

    def _fits(self, parts: Sequence[Any], asking: _Together) -> bool:
        """Whether a finite value fits all parts, as far as is known by now."""
        if any(part is False for part in parts):
            return False
        objects = [part for part in parts if isinstance(part, Mapping)]
        if any("const" in part or "enum" in part for part in objects):
            return True
        kinds = _KINDS.intersection(*(_kinds(part["type"]) for part in objects if "type" in part))
        if kinds & _SCALARS:
            return True
        return ("array" in kinds and self._list(objects, asking)) or (
            "object" in kinds and self._object(objects, asking)
        )

    def _list(self, parts: Sequence[Mapping[str, Any]], asking: _Together) -> bool:
        least = max((part.get("minItems", 0) for part in parts), default=0)
        longest = max((len(part.get("prefixItems", ())) for part in parts), default=0)
        # All items after the longest prefix have the same schemas.
        return all(
            self._known((schema for part in parts for schema in _item(part, index)), asking)
            for index in range(min(least, longest + 1))
        )

    def _object(self, parts: Sequence[Mapping[str, Any]], asking: _Together) -> bool:
        def possible(name: str | None) -> bool:
            return self._known((schema for part in parts for schema in _member(part, name)), asking)

        required = {name for part in parts for name in part.get("required", ())}
        known = [possible(name) for name in required]  # of each, so that all are looked at before this is again
        if not all(known):
            return False
        if max((part.get("minProperties", 0) for part in parts), default=0) <= len(required):
            return True
        declared = {name for part in parts for name in part.get("properties", ())}
        return any(map(possible, [None, *(declared - required)]))


def _kinds(named: str | Sequence[str]) -> set[str]:
    """Types, with whole numbers among the numbers."""
    return {"number" if kind == "integer" else kind for kind in ([named] if isinstance(named, str) else named)}


def _item(part: Mapping[str, Any], index: int) -> list[Any]:
    """What a schema wants of an item; nothing, if it does not say."""
    first = part.get("prefixItems", ())
    if index < len(first):
        return [first[index]]
    return [part["items"]] if "items" in part else []


def _member(part: Mapping[str, Any], name: str | None) -> list[Any]:
    """What a schema wants of a member; nothing, if it does not say, or if that depends on the name's pattern.
    None: some name that is nowhere declared."""
    properties = part.get("properties", {})
    if name is not None and name in properties:
        return [properties[name]]
    return [part["additionalProperties"]] if "additionalProperties" in part and "patternProperties" not in part else []
