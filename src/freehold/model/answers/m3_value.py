"""Values of MiniMax-M3's tagged notation as JSON, once they are whole."""

from __future__ import annotations

import json
import re
from typing import Any

from freehold.model.answers.schema import Declared

TEXT_MEMBER = "$text"
"""The member under which an object keeps text that stood between its tags."""
ITEM = "item"
"""The tag of a list's items."""

_INTEGER = re.compile(r"(-?(?:0|[1-9][0-9]*))(?:\.0+)?")
_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?")
_MAX_NUMBER_LEN = 1000  # readers of JSON refuse numbers of many thousand digits


class Node:
    """What stands between a tag and its closing tag: texts and tagged children, each in order."""

    __slots__ = ("children", "texts")

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.children: list[tuple[str, Node]] = []

    @property
    def text(self) -> str:
        """All texts, joined."""
        return "".join(self.texts)


def quoted(text: str) -> str:
    """A text as JSON."""
    return json.dumps(text, ensure_ascii=False)


def is_json(text: str) -> bool:
    """Whether a text is one JSON value."""
    try:
        json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return False
    return True


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is no JSON")


def json_of(node: Node, declared: Declared) -> str:
    """A value as JSON: by its declared types where it fits them, else by its looks."""
    if not node.children:
        return json_of_text(node.text, declared)
    only_items = all(name == ITEM for name, _ in node.children) and not node.text.strip()
    if declared.may_be_list and (only_items or (declared.kinds and "object" not in declared.kinds)):
        return "[" + ", ".join(list_items(node, declared)) + "]"
    return _json_object(node, declared)


def json_of_siblings(nodes: list[Node], declared: Declared) -> str:
    """The value of one tag, or of one that was repeated: the list of its values, or of all their items."""
    if len(nodes) == 1:
        return json_of(nodes[0], declared)
    if declared.only("array"):
        if not nodes[0].children and nodes[0].text.strip() == "null":
            return "null"
        return "[" + ", ".join(item for node in nodes for item in list_items(node, declared)) + "]"
    return "[" + ", ".join(json_of(node, declared) for node in nodes) + "]"


def list_items(node: Node, declared: Declared) -> list[str]:
    """The items that one tag brings to a declared list, as JSON: those inside it, or itself."""
    items = declared.items
    if node.children and node.children[0][0] != ITEM and items.has_inside:
        return [json_of(node, items)]  # the list stands unwrapped, and this tag is one item of it
    return [json_of(child, items) for _, child in node.children] + text_items(node.text, declared)


def child_type(declared: Declared, node: Node) -> Declared:
    """The declared types of the last tag inside a value, as far as they are known at its opening."""
    tag = node.children[-1][0]
    if "array" not in declared.kinds or ("object" in declared.kinds and tag != ITEM):
        return declared.member(tag)
    wrapped = node.children[0][0] == ITEM or not declared.items.has_inside
    return declared.items if wrapped else declared.items.member(tag)


def text_items(text: str, declared: Declared) -> list[str]:
    """The items that a text brings to a declared list, as JSON: none if blank, those of a JSON list, or itself."""
    bare = text.strip()
    if not bare:
        return []
    if bare.startswith("[") and is_json(bare):
        inside = bare[1:-1].strip()
        return [inside] if inside else []
    return [json_of_text(text, declared.items, nested=True)]


def _json_object(node: Node, declared: Declared) -> str:
    members: dict[str, list[Node]] = {}
    for name, child in node.children:
        members.setdefault(name, []).append(child)
    pairs = [f"{quoted(name)}: {json_of_siblings(nodes, declared.member(name))}" for name, nodes in members.items()]
    text = node.text.strip()
    if text and TEXT_MEMBER not in members:
        pairs.append(f"{quoted(TEXT_MEMBER)}: {quoted(text)}")
    return "{" + ", ".join(pairs) + "}"


def json_of_text(text: str, declared: Declared, *, nested: bool = False) -> str:
    """A text without tags as JSON; a string if it fits no other type that is declared.

    Without a declared type whatever reads as JSON is taken for that, else it is a string.
    nested: it is an item already, so it is not made a list of one.
    """
    kinds, bare = declared.kinds, text.strip()
    if bare == "null" and ("null" in kinds or "string" not in kinds):
        return "null"
    if bare in ("true", "false") and not kinds:
        return bare
    if bare.lower() in ("true", "false") and "boolean" in kinds:
        return bare.lower()
    if len(bare) <= _MAX_NUMBER_LEN:
        if (not kinds or "number" in kinds) and _NUMBER.fullmatch(bare):
            return bare
        if "integer" in kinds and (whole := _INTEGER.fullmatch(bare)):
            return whole.group(1)
    for opening, kind in (("{", "object"), ("[", "array")):
        if bare.startswith(opening) and (not kinds or kind in kinds) and is_json(bare):
            return bare
    if kinds and "string" not in kinds:
        if "array" in kinds and not (nested and bare):
            return "[" + ", ".join(text_items(text, declared)) + "]"
        if "object" in kinds and not bare:
            return "{}"
    return quoted(text)
