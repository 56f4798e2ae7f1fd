"""Tool arguments as MiniMax-M3 writes them, as grammar rules: a tag for each argument behind the namespace marker."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from freehold.core.errors import RequestError
from freehold.model.grammar_schema import inline, resolve
from freehold.model.m3_tokens import TOOL_NAMESPACE

TEXT_RULE = "any_text"
_TAG_NAME = re.compile(r"[^<>\r\n/]{1,200}")
_SCALARS = frozenset("boolean integer null number".split())
_STRING_KEYS = frozenset(("type", "minLength", "maxLength"))
_ARRAY_KEYS = frozenset(("type", "items", "prefixItems", "minItems", "maxItems"))
_OBJECT_KEYS = frozenset(("type", "properties", "required", "additionalProperties"))


def without(*texts: str) -> str:
    """A Lark terminal: any text in which none of these stands."""
    forbidden = "".join(f" & ~/(?s:.*){lark_regex(re.escape(text))}(?s:.*)/" for text in texts)
    return f"/(?s:.*)/{forbidden}"


def lark_regex(pattern: str) -> str:
    """A regular expression as it stands between the slashes of a Lark terminal."""
    return pattern.replace("/", r"\/")


class ValueRules:
    """Rules for the values of one grammar; `lines` collects them.

    A value is written in tags where its schema says how: strings as they are, numbers, booleans, null and choices in
    plain words, lists by `<item>`, objects by a tag for each member in the declared order. What tags cannot say
    (alternatives, objects with members of any name) is written as JSON if it is no string, and else as free text.
    """

    def __init__(self, namespace: str) -> None:
        """namespace: the Lark expression of the marker in front of each tag."""
        self._namespace = namespace
        self._rules: dict[str, str] = {}
        self.lines = [f"{TEXT_RULE}: ANY_TEXT", f"ANY_TEXT: {without(TOOL_NAMESPACE)}"]

    def members(self, schema: Any, root: Any, what: str) -> str:
        """The members of an object, each in its tag, as one Lark expression.

        Members that are not declared by name are not offered.

        what: the object's name in messages. Raises RequestError for a required member that no tag can name.
        """
        schema = followed(schema, root)
        required = set(schema.get("required", ()))
        properties = dict(schema.get("properties", {}))
        properties.update({name: True for name in schema.get("required", ()) if name not in properties})
        parts = []
        for name, member in properties.items():
            if member is False:  # nothing fits it, so it is never there
                continue
            if not _TAG_NAME.fullmatch(name) or TOOL_NAMESPACE in name:
                if name in required:
                    raise RequestError(f"{what}: no tag of this model can be called {name!r}", field="tools")
                continue
            part = self._tagged(name, self.value(member, root, f"{what}.{name}"))
            parts.append(part if name in required else f"({part})?")
        return " ".join(parts)

    def value(self, schema: Any, root: Any, what: str) -> str:
        """The name of a rule for values of a checked schema; schemas that refer to themselves get one rule."""
        schema = followed(schema, root)
        key = json.dumps([schema, id(root)], sort_keys=False)
        if key not in self._rules:
            name = self._rules[key] = f"value_{len(self._rules)}"
            self.lines.append(f"{name}: {self._expression(schema, root, what)}")
        return self._rules[key]

    def _expression(self, schema: Any, root: Any, what: str) -> str:
        kinds, keys = kinds_of(schema, root), set(schema)
        if "enum" in schema or "const" in schema:
            return self._choice(schema, root)
        if kinds == {"array"} and keys <= _ARRAY_KEYS:
            return self._list(schema, root, what)
        if kinds == {"object"} and keys <= _OBJECT_KEYS and schema.get("properties") and self._is_closed(schema):
            return self.members(schema, root, what) or '""'
        if kinds and "string" not in kinds:
            return inline({**shared_parts(root), **schema}, compact=kinds <= _SCALARS)
        if kinds and kinds <= {"string", "null"} and keys <= _STRING_KEYS and keys & {"minLength", "maxLength"}:
            least, most = schema.get("minLength", 0), schema.get("maxLength", "")
            name = f"TEXT_{len(self._rules)}"
            self.lines.append(f"{name}: /(?s:.{{{least},{most}}})/ & {without(TOOL_NAMESPACE)}")
            return name
        return TEXT_RULE

    @staticmethod
    def _is_closed(schema: Mapping[str, Any]) -> bool:
        """Whether the declared members are all that can be meant; others are allowed, but need not be offered."""
        return schema.get("additionalProperties", True) in (True, False)

    def _choice(self, schema: Mapping[str, Any], root: Any) -> str:
        values = [schema["const"]] if "const" in schema else schema["enum"]
        if all(isinstance(value, str) and TOOL_NAMESPACE not in value for value in values):
            return " | ".join(json.dumps(value) for value in values)
        if not any(isinstance(value, str) for value in values):
            return inline({**shared_parts(root), **schema}, compact=True)
        return TEXT_RULE

    def _list(self, schema: Mapping[str, Any], root: Any, what: str) -> str:
        def item(of: Any) -> str:
            return self._tagged("item", self.value(of, root, f"{what}.item"))

        first = schema.get("prefixItems", ())
        least, most = schema.get("minItems", 0), schema.get("maxItems")
        if first:
            if least < len(first) or (most is not None and most < len(first)):  # it may end within them
                return inline({**shared_parts(root), **schema})
            fixed = " ".join(item(of) for of in first)
            least, most = least - len(first), None if most is None else most - len(first)
        else:
            fixed = ""
        rest = schema.get("items", True)
        if rest is False or most == 0:
            return fixed or '""'
        return f"{fixed} ({item(rest)}){{{least},{'' if most is None else most}}}".strip()

    def _tagged(self, name: str, value: str) -> str:
        tag = json.dumps(f"<{name}>", ensure_ascii=False), json.dumps(f"</{name}>", ensure_ascii=False)
        return f"{self._namespace} {tag[0]} {value} {self._namespace} {tag[1]}"


def kinds_of(schema: Any, root: Any) -> frozenset[str]:
    """The types that a checked schema allows; empty: any."""
    schema = followed(schema, root)
    if "type" in schema:
        kind = schema["type"]
        return frozenset([kind] if isinstance(kind, str) else kind)
    for key in ("anyOf", "oneOf"):
        if key in schema:
            inside = [kinds_of(each, root) for each in schema[key]]
            return frozenset().union(*inside) if all(inside) else frozenset()
    if "allOf" in schema:
        inside = [kinds for each in schema["allOf"] if (kinds := kinds_of(each, root))]
        return frozenset.intersection(*inside) if inside else frozenset()
    if "properties" in schema:
        return frozenset({"object"})
    return frozenset({"array"}) if "items" in schema or "prefixItems" in schema else frozenset()


def followed(schema: Any, root: Any) -> dict[str, Any]:
    """A schema whose reference, if it is nothing else, has been followed; true is a schema without keywords."""
    for _ in range(100):
        if not isinstance(schema, Mapping):
            return {}
        rest = {key: value for key, value in schema.items() if key not in ("$defs", "definitions")}
        if set(rest) != {"$ref"}:
            return rest
        schema = resolve(rest["$ref"], root)
    raise RequestError("a schema refers to itself and to nothing else", field="tools")


def shared_parts(root: Any) -> dict[str, Any]:
    """The parts of a document that references point into."""
    return {key: root[key] for key in ("$defs", "definitions") if isinstance(root, Mapping) and key in root}
