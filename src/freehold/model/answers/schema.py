"""What a tool's JSON schema lets a value be, as far as reading an untyped notation needs it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any
from urllib.parse import unquote

_KINDS = frozenset(("array", "boolean", "integer", "null", "number", "object", "string"))
_UNIONS = ("anyOf", "oneOf")


class Declared:
    """The types that one or more schemas allow together.

    schemas: alternatives, as JSON schemas; none, or one that says nothing, allow anything.
    root: the document that `$ref` points into.

    `$ref`, `anyOf`, `oneOf`, `allOf`, lists of types, `enum` and `const` are followed. Alternatives are not
    told apart: a member has the types that any of them gives it. That keeps reading in proportion to the
    schema and lets a value stream before its alternative is known. Patterns of names are not read; a reference
    that leads nowhere, and everything malformed, allows anything.
    """

    def __init__(self, schemas: Iterable[Any], root: Any) -> None:
        self._root = root
        self._members: dict[str, Declared] = {}
        self._schemas: list[Mapping[str, Any]] = []
        kinds: set[str] = set()
        anything = False
        # With each schema: whether one around it says the type already.
        todo = [(schema, False) for schema in schemas]
        seen: set[int] = set()
        while todo:
            schema, typed = todo.pop()
            if not isinstance(schema, Mapping):
                anything = anything or not typed
                continue
            if id(schema) in seen:
                continue
            seen.add(id(schema))
            self._schemas.append(schema)
            own = _kinds(schema)
            kinds |= own
            typed = typed or bool(own)
            unions = [s for key in _UNIONS for s in _sequence(schema.get(key))]
            if "$ref" in schema:
                unions.append(_resolve(schema["$ref"], root))
            joint = _sequence(schema.get("allOf"))
            todo += [(s, typed) for s in unions] + [(s, True) for s in joint]
            anything = anything or not (typed or unions or joint)
        self.kinds: frozenset[str] = frozenset() if anything else frozenset(kinds)
        """Names of JSON schema types; empty: anything."""

    @property
    def has_inside(self) -> bool:
        """Whether a value may have members or items."""
        return not self.kinds or not self.kinds.isdisjoint(("object", "array"))

    @property
    def may_be_list(self) -> bool:
        """Whether a value may be a list."""
        return not self.kinds or "array" in self.kinds

    def only(self, kind: str) -> bool:
        """Whether every value is of this kind, or null."""
        return kind in self.kinds and self.kinds <= {kind, "null"}

    def member(self, name: str) -> Declared:
        """The types of an object's member."""
        if name not in self._members:
            named = [p[name] for p in map(_properties, self._schemas) if name in p]
            if not named:
                return self._others
            self._members[name] = Declared(named, self._root)
        return self._members[name]

    @cached_property
    def _others(self) -> Declared:
        found = (schema.get("additionalProperties") for schema in self._schemas)
        return Declared([s for s in found if isinstance(s, Mapping)], self._root)

    @cached_property
    def items(self) -> Declared:
        """The types of an array's items, wherever they stand."""
        found: list[Any] = []
        for schema in self._schemas:
            items = schema.get("items")
            found += [items] if isinstance(items, Mapping) else _sequence(items)
            found += _sequence(schema.get("prefixItems"))
        return Declared(found, self._root)


ANYTHING = Declared((), None)


def parameters_by_tool(tools: Sequence[Mapping[str, Any]] | None) -> dict[str, Declared]:
    """The declared parameters of tools by name, from declarations as the OpenAI API has them.

    Of two tools with one name the first counts. Declarations without a name are left out.
    """
    declared: dict[str, Declared] = {}
    for tool in tools or ():
        function = tool.get("function", tool)
        name = function.get("name") if isinstance(function, Mapping) else None
        if isinstance(name, str) and name not in declared:
            parameters = function.get("parameters")
            declared[name] = Declared([parameters] if isinstance(parameters, Mapping) else [], parameters)
    return declared


def _sequence(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple)) else []


def _properties(schema: Mapping[str, Any]) -> Mapping[str, Any]:
    found = schema.get("properties")
    return found if isinstance(found, Mapping) else {}


def _kinds(schema: Mapping[str, Any]) -> set[str]:
    """The types that a schema itself names or implies."""
    kind = schema.get("type")
    named = {k for k in ([kind] if isinstance(kind, str) else _sequence(kind)) if isinstance(k, str) and k in _KINDS}
    if named:
        return named
    if "const" in schema:
        return {_kind_of(schema["const"])}
    if _sequence(schema.get("enum")):
        return {_kind_of(value) for value in schema["enum"]}
    if "properties" in schema or "additionalProperties" in schema:
        return {"object"}
    return {"array"} if "items" in schema or "prefixItems" in schema else set()


def _kind_of(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, (int, float)):
        return "integer" if isinstance(value, int) else "number"
    if isinstance(value, Mapping):
        return "object"
    return "string" if isinstance(value, str) else "array"


def _resolve(ref: Any, root: Any) -> Any:
    """What a reference such as "#/$defs/Place" points to, or None."""
    if not isinstance(ref, str) or not ref.startswith("#"):
        return None
    found = root
    for step in ref[1:].split("/")[1:]:
        step = unquote(step).replace("~1", "/").replace("~0", "~")
        if isinstance(found, Mapping) and step in found:
            found = found[step]
        elif isinstance(found, (list, tuple)) and step.isdecimal() and int(step) < len(found):
            found = found[int(step)]
        else:
            return None
    return found
