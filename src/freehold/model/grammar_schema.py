"""Which JSON schemas an answer can be held to: a strict walk that refuses, by name, what would not be enforced.

llguidance refuses most of what it cannot enforce, but it passes over keywords that it does not know, over lists under
`items`, and over `x-guidance`, with which a schema could switch off its checks. So each keyword is looked at here:
enforced, or an annotation that restricts nothing, or refused.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn
from urllib.parse import unquote

from freehold.core.errors import RequestError
from freehold.model.grammar import lark_error
from freehold.model.grammar_finite import FiniteValues
from freehold.model.grammar_size import too_large

WHITESPACE = r"\r?\n[ \t]{0,64}|[ ]{1,2}"
"""White space between the parts of a JSON text; bounded, or a model may write nothing else for ever."""

ANNOTATIONS = frozenset(
    "$comment $schema default deprecated description discriminator example examples readOnly title writeOnly".split()
)
_TYPES = frozenset("array boolean integer null number object string".split())
_FORMATS = frozenset("date date-time duration email hostname ipv4 ipv6 time uri uuid".split())
_NUMBER_FORMATS = frozenset(("double", "float"))  # JSON numbers are no others


def checked(schema: Any, field: str) -> Any:
    """The schema without its annotations, if everything it says can be enforced and some finite JSON fits it. Parts of
    it that no finite JSON fits are false.

    field: what the schema is called in messages, such as "response_format.json_schema.schema".
    Raises RequestError that names the keyword and the path to it, or says what of the schema is too large.
    """
    plain = walked(schema, field)
    large = too_large(plain, plain, resolve)
    if large:  # before the library, which may take half a minute over it
        raise RequestError(f"{field}: the schema is too large: {large}", field=field)
    error = lark_error(f"start: {inline(plain)}")
    if error:
        where, reason = _culprit(plain, plain, field, error)
        raise RequestError(f"{where}: {_reason(reason)}", field=field)
    finite = FiniteValues(plain, resolve)
    if not finite.exist(plain):
        where = _endless(finite, plain, field)
        raise RequestError(
            f"{where}: no finite JSON fits it, as each value has to hold another one; let it be null or be left out",
            field=field,
        )
    return _ended(finite, plain)


def walked(schema: Any, field: str) -> Any:
    """The same by our own rules alone, without asking the library; much faster."""
    return _Walk(schema, field).schema(schema, field)


def inline(schema: Any, *, compact: bool = False) -> str:
    """A checked schema as a Lark expression. compact: without any white space."""
    options = {"whitespace_flexible": False} if compact else {"whitespace_pattern": WHITESPACE}
    whole = {"x-guidance": options, **(schema if isinstance(schema, dict) else {"allOf": [schema]})}
    return f"%json {json.dumps(whole)}"


def resolve(reference: str, root: Any) -> Any:
    """What a reference within the document points to. Raises LookupError if it leads nowhere."""
    found = root
    for step in reference[1:].split("/")[1:]:
        step = unquote(step).replace("~1", "/").replace("~0", "~")
        found = found[int(step)] if isinstance(found, Sequence) and not isinstance(found, str) else found[step]
    return found


def _returns(reference: str, root: Any, seen: frozenset[str]) -> bool:
    """Whether a reference comes back to one that was seen without passing a value of its own: what a schema refers
    to or combines is the same value."""
    if reference in seen:
        return True
    schema = resolve(reference, root)
    if not isinstance(schema, Mapping):
        return False
    parts = [schema, *(part for name in _COMBINED for part in _listed(schema.get(name)))]
    inner = [part.get("$ref") for part in parts if isinstance(part, Mapping)]
    try:
        return any(_returns(r, root, seen | {reference}) for r in inner if isinstance(r, str))
    except (LookupError, ValueError, TypeError):
        return False  # it leads nowhere, which is said where it stands


_COMBINED = ("allOf", "anyOf", "oneOf")


def _listed(value: Any) -> Sequence[Any]:
    return value if isinstance(value, list) else ()


class _Walk:
    """One walk over one document."""

    def __init__(self, root: Any, field: str) -> None:
        self._root, self._field = root, field

    def schema(self, schema: Any, path: str) -> Any:
        """A schema without annotations. Raises RequestError."""
        if isinstance(schema, bool):
            return schema
        if not isinstance(schema, Mapping):
            self._refuse(path, f"it is {schema!r}; a schema is an object, true or false")
        plain: dict[str, Any] = {}
        for keyword, value in schema.items():
            where = f"{path}.{keyword}"
            if keyword in ANNOTATIONS or (keyword == "$id" and schema is self._root):
                continue
            check = _KEYWORDS.get(keyword)
            if check is None:
                self._refuse(where, f"the keyword {keyword!r} cannot be enforced here; leave it out")
            plain[keyword] = check(self, value, where)
        self._together(plain, path)
        if plain.get("format") in _NUMBER_FORMATS:
            del plain["format"]
        return plain

    def _together(self, schema: dict[str, Any], path: str) -> None:
        """What keywords mean beside each other."""
        kind = schema.get("type")
        if schema.get("format") in _NUMBER_FORMATS and kind not in ("number", "integer"):
            self._refuse(f"{path}.format", f"{schema['format']!r} is a format of numbers, and type is {kind!r}")
        least = schema.get("minProperties", 0)
        if least > len(schema.get("required", ())) + 1:  # names that are not declared may come twice
            self._refuse(
                f"{path}.minProperties", f"{least} cannot be enforced: at most one more than is `required` can"
            )

    def _refuse(self, path: str, why: str) -> NoReturn:
        raise RequestError(f"{path}: {why}", field=self._field)

    def _of_type(self, value: Any, path: str, kinds: tuple[type, ...], wanted: str) -> Any:
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            self._refuse(path, f"it is {value!r}; it must be {wanted}")
        return value

    def anything(self, value: Any, path: str) -> Any:
        """Any value."""
        return value

    def type(self, value: Any, path: str) -> Any:
        """A type, or a list of them."""
        for kind in value if isinstance(value, list) else [value]:
            if not isinstance(kind, str) or kind not in _TYPES:
                self._refuse(path, f"{kind!r} is no type; known are {', '.join(sorted(_TYPES))}")
        return value

    def format(self, value: Any, path: str) -> Any:
        """A format that is enforced."""
        if value not in _FORMATS | _NUMBER_FORMATS:
            self._refuse(path, f"the format {value!r} cannot be enforced; known are {', '.join(sorted(_FORMATS))}")
        return value

    def reference(self, value: Any, path: str) -> Any:
        """A reference within the document."""
        if not isinstance(value, str) or not (value == "#" or value.startswith("#/")):
            self._refuse(
                path, f"{value!r} leads out of the schema; only references such as '#/$defs/Name' are followed"
            )
        try:
            resolve(value, self._root)
        except (LookupError, ValueError, TypeError):
            self._refuse(path, f"{value!r} leads nowhere")
        if _returns(value, self._root, frozenset()):
            self._refuse(path, f"{value!r} leads back to itself, with nothing between that an answer could be")
        return value

    def number(self, value: Any, path: str) -> Any:
        """A number."""
        return self._of_type(value, path, (int, float), "a number")

    def count(self, value: Any, path: str) -> Any:
        """A whole number from 0."""
        if self._of_type(value, path, (int,), "a whole number") < 0:
            self._refuse(path, f"it is {value}; it must be at least 0")
        return value

    def text(self, value: Any, path: str) -> Any:
        """A text."""
        return self._of_type(value, path, (str,), "a text")

    def names(self, value: Any, path: str) -> Any:
        """A list of names."""
        if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
            self._refuse(path, f"it is {value!r}; it must be a list of names")
        return value

    def values(self, value: Any, path: str) -> Any:
        """A list of at least one value."""
        if not isinstance(value, list) or not value:
            self._refuse(path, f"it is {value!r}; it must be a list of at least one value")
        return value

    def items(self, value: Any, path: str) -> Any:
        """One schema for all items."""
        if isinstance(value, list):
            self._refuse(path, "a list of schemas is called prefixItems in JSON Schema 2020-12")
        return self.schema(value, path)

    def schemas(self, value: Any, path: str) -> Any:
        """A list of schemas."""
        self._of_type(value, path, (list,), "a list of schemas")
        return [self.schema(each, f"{path}[{number}]") for number, each in enumerate(value)]

    def members(self, value: Any, path: str) -> Any:
        """Schemas by name."""
        self._of_type(value, path, (Mapping,), "an object of schemas")
        return {name: self.schema(each, f"{path}.{name}") for name, each in value.items()}


_KEYWORDS: dict[str, Callable[[_Walk, Any, str], Any]] = {
    "$defs": _Walk.members,
    "$ref": _Walk.reference,
    "additionalProperties": _Walk.schema,
    "allOf": _Walk.schemas,
    "anyOf": _Walk.schemas,
    "const": _Walk.anything,
    "definitions": _Walk.members,
    "enum": _Walk.values,
    "exclusiveMaximum": _Walk.number,
    "exclusiveMinimum": _Walk.number,
    "format": _Walk.format,
    "items": _Walk.items,
    "maxItems": _Walk.count,
    "maxLength": _Walk.count,
    "maxProperties": _Walk.count,
    "maximum": _Walk.number,
    "minItems": _Walk.count,
    "minLength": _Walk.count,
    "minProperties": _Walk.count,
    "minimum": _Walk.number,
    "multipleOf": _Walk.number,
    "oneOf": _Walk.schemas,
    "pattern": _Walk.text,
    "patternProperties": _Walk.members,
    "prefixItems": _Walk.schemas,
    "properties": _Walk.members,
    "required": _Walk.names,
    "type": _Walk.type,
}
_MANY = ("$defs", "definitions", "patternProperties", "properties")
_LISTS = ("allOf", "anyOf", "oneOf", "prefixItems")
_ONES = ("additionalProperties", "items")


def subschemas(schema: Any, path: str) -> list[tuple[str, Any]]:
    """The schemas directly inside a schema, each with its path."""
    if not isinstance(schema, Mapping):
        return []
    found = [(f"{path}.{key}", schema[key]) for key in _ONES if key in schema]
    found += [(f"{path}.{key}[{n}]", s) for key in _LISTS for n, s in enumerate(schema.get(key, ()))]
    return found + [(f"{path}.{key}.{name}", s) for key in _MANY for name, s in schema.get(key, {}).items()]


def _culprit(schema: Any, root: Any, path: str, error: str) -> tuple[str, str]:
    """The innermost schema that is refused by itself, and why."""
    shared = {key: root[key] for key in ("$defs", "definitions") if isinstance(root, Mapping) and key in root}
    for inner_path, inner in subschemas(schema, path):
        if isinstance(inner, Mapping):
            inner_error = lark_error(f"start: {inline({**shared, **inner})}")
            if inner_error:
                return _culprit(inner, root, inner_path, inner_error)
    about_pattern = "regex" in error and isinstance(schema, Mapping) and "pattern" in schema
    return (f"{path}.pattern" if about_pattern else path), error


def _endless(finite: FiniteValues, schema: Any, path: str) -> str:
    """The path of an innermost schema that no finite JSON fits."""
    for inner_path, inner in subschemas(schema, path):
        if not finite.exist(inner):
            return _endless(finite, inner, inner_path)
    return path


def _ended(finite: FiniteValues, schema: Any) -> Any:
    """The schema with false wherever no finite JSON fits, so that no answer goes there."""
    if not isinstance(schema, Mapping):
        return schema
    if not finite.exist(schema):
        return False
    ended = dict(schema)
    for key, value in schema.items():
        if key in _ONES:
            ended[key] = _ended(finite, value)
        elif key in _LISTS:
            ended[key] = [_ended(finite, each) for each in value]
        elif key in _MANY:
            ended[key] = {name: _ended(finite, each) for name, each in value.items()}
    return ended


def _reason(error: str) -> str:
    """The library's words without its place in our grammar."""
    reason = error.rpartition("failed to compile JSON schema: ")[2].strip()
    why = [line.removeprefix("error: ") for line in reason.splitlines() if line.startswith("error: ")]
    reason = why[0] if why else reason.partition("\n")[0]
    if reason.startswith("oneOf"):
        return "the keyword 'oneOf' can be enforced only where no two of its schemas have values in common; use 'anyOf'"
    return reason
