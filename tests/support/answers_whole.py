"""Whole answers in parts, by short rules of their own: what streaming parsers are compared with.

Everything here reads the whole text at once, builds trees and Python values, and knows nothing of pieces.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from freehold.core.parts import Part, ReasoningPart, TextPart, ToolCallArguments, ToolCallEnd, ToolCallStart
from freehold.model.answers.parser import AnswerParser

NS = "]<]minimax[>["


@dataclass
class Call:
    """A call of an answer; arguments are None where it broke off."""

    name: str
    arguments: Any


def joined(parts: Iterable[Part]) -> list[Part]:
    """Parts with adjacent pieces of one kind joined."""
    out: list[Part] = []
    for part in parts:
        last = out[-1] if out else None
        if isinstance(part, (ReasoningPart, TextPart)) and type(last) is type(part):
            out[-1] = type(part)(last.text + part.text)
        elif isinstance(part, ToolCallArguments) and isinstance(last, ToolCallArguments) and last.index == part.index:
            out[-1] = ToolCallArguments(part.index, last.json + part.json)
        else:
            out.append(part)
    return out


def parsed(parser: AnswerParser, pieces: Iterable[str]) -> list[Part]:
    """The joined parts of an answer that comes in pieces; checks what holds for every piece."""
    parts: list[Part] = []
    for piece in pieces:
        parts += parser.push(piece)
    parts += parser.finish()
    for part in parts:
        assert not isinstance(part, (ReasoningPart, TextPart)) or part.text
        assert not isinstance(part, ToolCallArguments) or part.json
    return joined(parts)


def summary(parts: Sequence[Part]) -> list[Any]:
    """("reasoning", text), ("text", text) and calls, in order; the order of starts, pieces and ends is checked."""
    out: list[Any] = []
    open_index: int | None = None
    num_calls = 0
    text = ""
    for part in parts:
        if isinstance(part, ToolCallStart):
            assert open_index is None
            assert part.index == num_calls
            open_index, num_calls, text = part.index, num_calls + 1, ""
            out.append(Call(part.name, None))
        elif isinstance(part, ToolCallArguments):
            assert part.index == open_index
            text += part.json
        elif isinstance(part, ToolCallEnd):
            assert part.index == open_index
            open_index = None
            if part.complete:
                out[-1].arguments = json.loads(text, object_pairs_hook=_unique)
                assert isinstance(out[-1].arguments, dict)
        else:
            assert open_index is None
            out.append(("reasoning" if isinstance(part, ReasoningPart) else "text", part.text))
    assert open_index is None
    return out


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    assert len({name for name, _ in pairs}) == len(pairs), f"a name appears twice: {pairs}"
    return dict(pairs)


# -- MiniMax-M3 -----------------------------------------------------------------------------------------------

TOKENS = re.compile(re.escape(NS) + r"(?:<(/?)([^<>\r\n]{0,256})>)?")
BROKEN_TAG = re.compile(re.escape(NS) + r"(?:</?[^<>\r\n]{0,256})?\Z")
INVOKE = re.compile(r"""invoke name=(["']?)(.*)\1""")


def whole_m3(text: str, mode: str | None = None, schemas: Mapping[str, Any] | None = None) -> list[Any]:
    """The summary of a whole answer of MiniMax-M3. schemas: by tool, without references and unions."""
    out: list[Any] = []
    place = "content"
    if mode != "disabled":
        place = "reasoning" if mode == "enabled" else "content"
        mark = re.match(r"[ \t\r\n]{0,16}(<mm:think>|</mm:think>)", text)
        if mark and mark.group(1) == "<mm:think>":
            place, text = "reasoning", text[mark.end() :]
        elif mark and mode != "enabled":
            text = text[mark.end() :]
    owed = False  # a closing tag after reasoning that a block ended
    tree: Tree | None = None
    while text or tree:
        if tree is not None:
            text, place, tree = _call(out, tree, text, schemas or {})
            continue
        close = text.find("</mm:think>") if place == "reasoning" or owed else -1
        found = TOKENS.search(text)
        if close >= 0 and (found is None or close < found.start()):
            _say(out, place, text[:close])
            text, owed = text[close + 11 :], False
            place = "content" if place == "reasoning" else place
            continue
        if found is None:
            _say(out, place, text)
            break
        slash, tag = found.groups()
        before, rest = text[: found.start()], text[found.end() :]
        start = not slash and (tag == "tool_call" or (tag or "").startswith("invoke name="))
        if tag is None and _breaks_off(text[found.start() :]):
            _say(out, place, before.removesuffix("\n") if place == "content" else before)
            break
        if start or (slash and tag in ("tool_call", "invoke")):
            _say(out, place, before.removesuffix("\n") if start and place == "content" else before, cut=True)
            owed = owed or (start and place == "reasoning")
            place = "block" if start else "content" if (place, tag) == ("block", "tool_call") else place
            text = rest
            if start and tag != "tool_call":
                tree = Tree(INVOKE.fullmatch(tag).group(2))
        else:  # the marker alone is dropped
            text = before + "\0" + text[found.start() + len(NS) :]
            _say(out, place, before)
            text = text[len(before) + 1 :]
    return [(kind[0], kind[1]) if isinstance(kind, list) else kind for kind in _tidy(out)]


def _breaks_off(text: str) -> bool:
    end = text[len(NS) :]
    tags = ("<tool_call>", "</tool_call>", "</invoke>", "<invoke name=")
    if end.startswith("<invoke name="):
        return bool(BROKEN_TAG.fullmatch(text))
    return any(tag.startswith(end) for tag in tags)


def _say(out: list[Any], place: str, text: str, *, cut: bool = False) -> None:
    if text or cut:
        out.append([place, text, cut])


def _tidy(out: list[Any]) -> list[Any]:
    """Runs of one kind joined; text inside a block loses the white space around each run."""
    runs: list[Any] = []
    for entry in out:
        if isinstance(entry, Call):
            runs.append(entry)
        elif runs and isinstance(runs[-1], list) and runs[-1][0] == entry[0] and not runs[-1][2]:
            runs[-1] = [entry[0], runs[-1][1] + entry[1], entry[2]]
        else:
            runs.append(entry)
    said: list[Any] = []
    for run in runs:
        if isinstance(run, Call):
            said.append(run)
            continue
        kind = "reasoning" if run[0] == "reasoning" else "text"
        text = run[1].strip() if run[0] == "block" else run[1]
        if text and said and isinstance(said[-1], list) and said[-1][0] == kind:
            said[-1][1] += text
        elif text:
            said.append([kind, text])
    return said


@dataclass
class Tree:
    """A tag with texts and tags in it."""

    tag: str
    inside: list[Any] = field(default_factory=list)

    @property
    def text(self) -> str:
        return "".join(piece for piece in self.inside if isinstance(piece, str))

    @property
    def tags(self) -> list[Tree]:
        return [piece for piece in self.inside if isinstance(piece, Tree)]


def _call(out: list[Any], root: Tree, text: str, schemas: Mapping[str, Any]) -> tuple[str, str, Tree | None]:
    """Reads a call from the start of `text`; gives the rest of the text, where it stands, and the next call."""
    schema = {**schemas.get(root.tag, {}), "type": "object"}
    path: list[tuple[Tree, Any]] = [(root, schema)]
    while True:
        top, its = path[-1]
        is_leaf = len(path) > 1 and its.get("type") in ("string", "integer", "number", "boolean")
        found = TOKENS.search(text)
        if found is None or (found.group(2) is None and BROKEN_TAG.fullmatch(text[found.start() :])):
            out.append(Call(root.tag, None))
            return "", "content", None
        top.inside.append(text[: found.start()])
        raw, (slash, tag) = found.group(), found.groups()
        text = text[found.end() :]
        if tag is None:
            top.inside.append(raw)
        elif slash and any(tree.tag == tag for tree, _ in path[1:]):
            while path.pop()[0].tag != tag:
                pass
        elif slash and tag in ("invoke", "tool_call"):
            out.append(Call(root.tag, _object(root, schema, streams=True)))
            return text, "block" if tag == "invoke" else "content", None
        elif is_leaf:
            top.inside.append(raw)
        elif not slash and (invoke := INVOKE.fullmatch(tag)):
            out.append(Call(root.tag, _object(root, schema, streams=True)))
            return text, "block", Tree(invoke.group(2))
        elif not slash:
            tree = Tree(tag)
            top.inside.append(tree)
            path.append((tree, _inside(its, tag, top.tags[0].tag)))


def _inside(schema: Any, tag: str, first: str) -> Any:
    if schema.get("type") != "array":
        return schema.get("properties", {}).get(tag, {})
    items = schema.get("items", {})
    if first == "item" or items.get("type") in ("string", "integer", "number", "boolean"):
        return items
    return items.get("properties", {}).get(tag, {})


def _value(tree: Tree, schema: Any, *, streams: bool) -> Any:
    kind = schema.get("type")
    if kind == "string":
        return tree.text
    if not tree.tags:
        return _of_text(tree.text, schema)
    if kind == "array" or (kind is None and not tree.text.strip() and {t.tag for t in tree.tags} == {"item"}):
        return _items(tree, schema, streams=streams)
    return _object(tree, schema, streams=streams and kind == "object")


def _items(tree: Tree, schema: Any, *, streams: bool) -> list[Any]:
    items = schema.get("items", {})
    if tree.tags and tree.tags[0].tag != "item" and items.get("type") in (None, "object", "array"):
        return [_object(tree, items, streams=streams)]
    found = [_value(child, items, streams=streams and items != {}) for child in tree.tags]
    if not tree.text.strip():
        return found
    if tree.text.strip() == "null":  # beside tags it is an item, and no list that is null
        return [*found, _of_text(tree.text, items)]
    whole = _of_text(tree.text, {"type": "array", "items": items})
    return [*found, *(whole if isinstance(whole, list) else [whole])]


def _object(tree: Tree, schema: Any, *, streams: bool) -> dict[str, Any]:
    """The object of a tag. streams: members are passed on in order, so that a later value cannot join them."""
    members: dict[str, list[Any]] = {}
    last = None
    for child in tree.tags:
        its = schema.get("properties", {}).get(child.tag, {})
        kind = its.get("type")
        may_repeat = kind in (None, "array") and child.tag == last
        if child.tag not in members or may_repeat or not streams:
            members.setdefault(child.tag, []).append((child, its))
        last = child.tag
    value: dict[str, Any] = {}
    for name, found in members.items():
        its = found[0][1]
        if its.get("type") == "array":
            first = found[0][0]
            if not first.tags and first.text.strip() == "null":
                value[name] = None
            else:
                value[name] = [item for child, _ in found for item in _items(child, its, streams=streams)]
        elif len(found) == 1:
            value[name] = _value(found[0][0], its, streams=streams and its != {})
        else:
            value[name] = [_value(child, its, streams=False) for child, _ in found]
    if tree.text.strip() and "$text" not in value:
        value["$text"] = tree.text.strip()
    return value


def _of_text(text: str, schema: Any) -> Any:
    kind, bare = schema.get("type"), text.strip()
    if kind == "string":
        return text
    if bare == "null":
        return None
    if kind == "boolean":
        return {"true": True, "false": False}.get(bare.lower(), text)
    if kind == "integer":
        return int(float(bare)) if re.fullmatch(r"-?(0|[1-9]\d*)(\.0+)?", bare, re.A) else text
    if kind == "number":
        return json.loads(bare) if re.fullmatch(r"-?(0|[1-9]\d*)(\.\d+)?([eE][-+]?\d+)?", bare, re.A) else text
    value = _loaded(bare)
    if kind == "object":
        return value if isinstance(value, dict) else {} if not bare else text
    if kind == "array":
        if not bare or isinstance(value, list):
            return value or []
        items = schema.get("items", {})
        inner = _of_text(text, items)
        return [text if items.get("type") == "array" and bare != "null" else inner]
    return text if value is None else value


def _loaded(text: str) -> Any:
    try:
        value = json.loads(text, parse_constant=lambda _: 1 / 0)
    except (ValueError, ZeroDivisionError):
        return None
    return None if isinstance(value, str) else value


# -- calls in JSON ---------------------------------------------------------------------------------------------


def whole_json_calls(text: str, start: str = "either") -> list[Any]:
    """The summary of a whole answer whose calls are JSON, as long as what stands in the tags is not broken."""
    out: list[Any] = []
    mark = re.match(r"[ \t\r\n]{0,16}<think>", text) if start == "either" else None
    if mark or start == "reasoning":
        reasoning, close, text = text[mark.end() if mark else 0 :].removeprefix("\n").partition("</think>")
        out.append(("reasoning", reasoning.removesuffix("\n") if close else reasoning))
        text = text.removeprefix("\n").removeprefix("\n")
    while True:
        before, tag, text = text.partition("<tool_call>")
        out.append(("text", before.removesuffix("\n") if tag else before))
        if not tag:
            break
        decoder, at = json.JSONDecoder(object_pairs_hook=_unique), 0
        while True:
            at += len(text[at:]) - len(text[at:].lstrip(" \t\r\n"))
            if text.startswith("</tool_call>", at):
                break
            found, at = decoder.raw_decode(text, at)
            for call in found if isinstance(found, list) else [found]:
                arguments = call.get("arguments", call.get("parameters"))
                arguments = json.loads(arguments) if isinstance(arguments, str) else arguments
                out.append(Call(call["name"], arguments or {}))
        text = text[at + len("</tool_call>") :]
    said: list[Any] = []
    for entry in out:
        if isinstance(entry, Call):
            said.append(entry)
        elif entry[1] and said and isinstance(said[-1], tuple) and said[-1][0] == entry[0]:
            said[-1] = (entry[0], said[-1][1] + entry[1])
        elif entry[1]:
            said.append(entry)
    return said
