"""Random tool declarations with calls that fit them, for tests that write calls and read them back."""

from __future__ import annotations

import json
import random
from typing import Any

NAMES = ("a", "city", "Ort-Name", "größe", "x.y", "naïve_名前", "tool_call", "invoke", "item2", "$ref", "a b", "null")
PIECES = (
    "a", " ", "\n", '"', "\\", "é", "日本", "\U0001f600", "null", "12", "true", "[", "]", "{}", "<b>", "</b>", "<",
    "]<]", "]<]minimax[>", "]<]minimax[>[", "<tool_call>", "</tool_call>", "<mm:think>", "</mm:think>", "</invoke>",
    "<item>", "\u2028", "\t",
)  # fmt: skip


def text(chance: random.Random) -> str:
    """A text of markers and whatever else confuses readers. It ends in no "<", which would make a marker a tag."""
    joined = "".join(chance.choice(PIECES) for _ in range(chance.randrange(6)))
    return joined.replace("]<]minimax[>[<", "]<]minimax[>[ <")


def _scalar(chance: random.Random) -> tuple[Any, Any]:
    kind = chance.choice(("string", "string", "integer", "number", "boolean", "enum", "nullable"))
    if kind == "enum":
        choices = ["red", "7", "null"]
        return {"enum": choices}, chance.choice(choices)
    if kind == "nullable":
        value = text(chance)
        return {"anyOf": [{"type": "string"}, {"type": "null"}]}, None if value == "null" else value
    value = {
        "string": lambda: text(chance),
        "integer": lambda: chance.choice((0, -1, 17, 10**20)),
        "number": lambda: chance.choice((0, -2.5, 1e22, 1e-9, 3)),
        "boolean": lambda: chance.random() < 0.5,
    }[kind]()
    return {"type": kind}, value


def typed(chance: random.Random, depth: int = 3) -> tuple[Any, Any]:
    """A schema and a value that fits it. Members of objects are never null: the notation leaves those out."""
    kind = chance.choice(("scalar", "scalar", "object", "array")) if depth else "scalar"
    if kind == "scalar":
        return _scalar(chance)
    if kind == "array":
        schema, _ = typed(chance, depth - 1)
        values = [fitting(chance, schema) for _ in range(chance.randrange(4))]
        return {"type": "array", "items": schema}, values
    members = {name: typed(chance, depth - 1) for name in chance.sample(NAMES, chance.randrange(4))}
    properties = {name: schema for name, (schema, _) in members.items()}
    value = {name: value for name, (_, value) in members.items() if value is not None and chance.random() < 0.8}
    return {"type": "object", "properties": properties}, value


def fitting(chance: random.Random, schema: Any) -> Any:
    """Another value that fits a schema which `typed` made."""
    if "enum" in schema:
        return chance.choice(schema["enum"])
    if "anyOf" in schema:
        return chance.choice((None, "x", "", "nullable"))
    kind = schema["type"]
    if kind == "array":
        return [fitting(chance, schema["items"]) for _ in range(chance.randrange(3))]
    if kind == "object":
        members = {name: fitting(chance, its) for name, its in schema["properties"].items()}
        return {name: value for name, value in members.items() if value is not None}
    if kind == "string":
        return text(chance)
    return {"integer": chance.randrange(-9, 10**9), "number": chance.choice((0.5, -3)), "boolean": True}[kind]


def tool_and_call(chance: random.Random) -> tuple[dict[str, Any], dict[str, Any]]:
    """A declaration as the OpenAI API has it, and a call of it. Half of the schemas come through a reference."""
    members = {name: typed(chance) for name in chance.sample(NAMES, chance.randrange(5))}
    properties = {name: schema for name, (schema, _) in members.items()}
    arguments = {name: value for name, (_, value) in members.items() if value is not None}
    name = chance.choice(("f", "get-weather", "mcp.files/read", "größe", "日本"))
    parameters: dict[str, Any] = {"type": "object", "properties": properties}
    if chance.random() < 0.5:
        defs = {f"T{i}": schema for i, schema in enumerate(properties.values())}
        refs = {name: {"$ref": f"#/$defs/T{i}"} for i, name in enumerate(properties)}
        parameters = {"type": "object", "properties": refs, "$defs": defs}
    tool = {"type": "function", "function": {"name": name, "parameters": parameters}}
    call = {"type": "function", "function": {"name": name, "arguments": json.dumps(arguments)}}
    return tool, call


def cuts(chance: random.Random, whole: str) -> list[str]:
    """A text in random pieces."""
    longest = chance.choice((1, 3, 12, 60))
    pieces, at = [], 0
    while at < len(whole):
        size = chance.randint(1, longest)
        pieces.append(whole[at : at + size])
        at += size
    return pieces
