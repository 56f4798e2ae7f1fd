"""The arguments of one MiniMax-M3 tool call: tags and texts go in, JSON comes out as soon as it is certain."""

from __future__ import annotations

from dataclasses import dataclass, field

from freehold.model.answers.m3_value import (
    ITEM,
    TEXT_MEMBER,
    Node,
    child_type,
    json_of,
    json_of_siblings,
    json_of_text,
    quoted,
    text_items,
)
from freehold.model.answers.schema import Declared

MAX_DEPTH = 100
"""Tags nested deeper are taken for text, so that no answer can exhaust the stack."""


@dataclass(slots=True)
class _Text:
    """A declared string, passed on while it is written. `held` is what may still become the word null."""

    tag: str
    nullable: bool
    held: str = ""
    begun: bool = False


@dataclass(slots=True)
class _Held:
    """A value whose type only the whole of it decides. `inside` is False for members of another held value."""

    tag: str
    node: Node
    declared: Declared
    inside: bool = False
    dropped: bool = False


@dataclass(slots=True)
class _Items:
    """What of a list was written. null: the word null instead of a list."""

    count: int = 0
    null: bool = False


@dataclass(slots=True)
class _List:
    """A declared list; tags of one name that follow each other share one. wrapped: its first tag was an <item>."""

    tag: str
    declared: Declared
    shared: _Items = field(default_factory=_Items)
    texts: list[str] = field(default_factory=list)
    wrapped: bool = False


@dataclass(slots=True)
class _Object:
    """A declared object. `open_list` and `open_nodes` belong to `last`, the member that may still be repeated.

    tag: None for the root, and for an item that stands in its list without an <item> tag.
    """

    tag: str | None
    declared: Declared
    seen: set[str] = field(default_factory=set)
    texts: list[str] = field(default_factory=list)
    last: str | None = None
    open_list: _Items | None = None
    open_nodes: list[Node] = field(default_factory=list)


_Element = _Text | _Held | _List | _Object


class CallArguments:
    """Writes the arguments of one call.

    parameters: their declared types.

    A member's name is written as soon as its tag is complete. Declared strings follow while they are written,
    declared objects and lists member by member, numbers and booleans at their closing tag. A value of any type is
    held until it is whole and the next tag has another name, since repeated tags of one name become a list. A
    declared list may stand unwrapped, as repeated tags. Where a member that was passed on already appears once
    more, its first value stays.
    """

    def __init__(self, parameters: Declared) -> None:
        self._root = _Object(None, parameters)
        self._stack: list[_Element] = [self._root]
        self._out: list[str] = []

    def take(self) -> str:
        """The JSON written since the last call."""
        written = "".join(self._out)
        self._out = []
        return written

    @property
    def takes_tags(self) -> bool:
        """Whether a tag may open here; inside strings, numbers and booleans it is text."""
        top = self._stack[-1]
        if len(self._stack) > MAX_DEPTH or isinstance(top, _Text):
            return False
        return not isinstance(top, _Held) or top.declared.has_inside

    def closes(self, tag: str) -> bool:
        """Whether a closing tag belongs to a tag that is open."""
        return any(element.tag == tag for element in self._stack[1:])

    def text(self, piece: str) -> None:
        """Takes text that stands between tags."""
        top = self._stack[-1]
        if isinstance(top, _Held):
            top.node.texts.append(piece)
        elif isinstance(top, _Text):
            self._string(top, piece)
        elif piece:
            top.texts.append(piece)

    def open(self, tag: str) -> None:
        """Takes an opening tag; only where `takes_tags`."""
        top = self._stack[-1]
        if isinstance(top, _List):
            self._open_item(top, tag)
        elif isinstance(top, _Object):
            self._open_member(top, tag)
        elif isinstance(top, _Held):
            node = Node()
            top.node.children.append((tag, node))
            self._stack.append(_Held(tag, node, child_type(top.declared, top.node), inside=True))

    def close(self, tag: str) -> None:
        """Takes a closing tag that `closes`; tags left open inside it are closed with it."""
        while True:
            element = self._stack.pop()
            self._end(element)
            if element.tag == tag:
                return

    def end(self) -> None:
        """Takes the end of the call; everything still open is closed."""
        while self._stack:
            self._end(self._stack.pop())

    # -- values ---------------------------------------------------------------------------------------------

    def _begin(self, tag: str, declared: Declared) -> None:
        if declared.only("string"):
            nullable = "null" in declared.kinds
            self._stack.append(_Text(tag, nullable, begun=not nullable))
            if not nullable:
                self._out.append('"')
        elif declared.only("object"):
            self._stack.append(_Object(tag, declared))
        elif declared.only("array"):
            self._stack.append(_List(tag, declared))
        else:
            self._stack.append(_Held(tag, Node(), declared))

    def _string(self, element: _Text, piece: str) -> None:
        if not element.begun:
            element.held += piece
            if "null".startswith(element.held):
                return
            piece, element.begun = element.held, True
            self._out.append('"')
        self._out.append(quoted(piece)[1:-1])

    def _open_item(self, element: _List, tag: str) -> None:
        items = element.declared.items
        self._item_comma(element.shared)
        element.wrapped = element.wrapped or tag == ITEM or not items.has_inside
        if element.wrapped:
            self._begin(tag, items)
            return
        item = _Object(None, items, texts=element.texts)
        element.texts = []
        self._stack.append(item)
        self._open_member(item, tag)

    def _open_member(self, element: _Object, tag: str) -> None:
        declared = element.declared.member(tag)
        if tag == element.last:
            if element.open_list is not None and not element.open_list.null:
                self._stack.append(_List(tag, declared, element.open_list))
                return
            if element.open_nodes:
                element.open_nodes.append(Node())
                self._stack.append(_Held(tag, element.open_nodes[-1], declared, inside=True))
                return
        self._end_repeats(element)
        if tag in element.seen:
            self._stack.append(_Held(tag, Node(), declared, dropped=True))
            return
        self._out.append((", " if element.seen else "{") + quoted(tag) + ": ")
        element.seen.add(tag)
        element.last = tag
        self._begin(tag, declared)

    def _items(self, element: _List, items: list[str]) -> None:
        for item in items:
            self._item_comma(element.shared)
            self._out.append(item)

    def _item_comma(self, shared: _Items) -> None:
        self._out.append(", " if shared.count else "[")
        shared.count += 1

    # -- ends -----------------------------------------------------------------------------------------------

    def _end(self, element: _Element) -> None:
        if isinstance(element, _Text):
            if element.begun:
                self._out.append('"')
            else:
                self._out.append("null" if element.held == "null" else quoted(element.held))
        elif isinstance(element, _Held):
            self._end_held(element)
        elif isinstance(element, _List):
            self._end_list(element)
        else:
            self._end_object(element)

    def _end_held(self, element: _Held) -> None:
        if element.inside or element.dropped:
            return
        above = self._stack[-1]
        if isinstance(above, _Object) and element.declared.may_be_list:
            above.open_nodes = [element.node]
        else:
            self._out.append(json_of(element.node, element.declared))

    def _end_list(self, element: _List) -> None:
        text = "".join(element.texts)
        if not element.shared.count and text.strip() == "null":
            element.shared.null = True
            self._out.append("null")
        else:
            self._items(element, text_items(text, element.declared))
        above = self._stack[-1]
        if isinstance(above, _Object):
            above.open_list = element.shared
        else:
            self._close_list(element.shared)

    def _close_list(self, shared: _Items) -> None:
        if not shared.null:
            self._out.append("]" if shared.count else "[]")

    def _end_object(self, element: _Object) -> None:
        self._end_repeats(element)
        text = "".join(element.texts)
        is_root = element is self._root
        if not element.seen and not (is_root and text.strip()):
            self._out.append("{}" if is_root else json_of_text(text, element.declared))
            return
        if text.strip() and TEXT_MEMBER not in element.seen:
            self._out.append((", " if element.seen else "{") + quoted(TEXT_MEMBER) + ": " + quoted(text.strip()))
        self._out.append("}")

    def _end_repeats(self, element: _Object) -> None:
        """Writes what was held because the last member might have been repeated."""
        if element.open_nodes and element.last is not None:
            self._out.append(json_of_siblings(element.open_nodes, element.declared.member(element.last)))
        if element.open_list is not None:
            self._close_list(element.open_list)
        element.open_nodes, element.open_list = [], None
