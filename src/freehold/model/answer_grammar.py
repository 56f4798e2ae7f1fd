"""Grammars for whole answers: reasoning, then JSON or tool calls, in the format that a model writes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from freehold.core.errors import ConfigError, RequestError
from freehold.model import m3_tokens
from freehold.model.grammar_relaxed import relaxed
from freehold.model.grammar_schema import checked, inline
from freehold.model.grammar_values import ValueRules, followed, kinds_of, shared_parts, without

Family = Literal["minimax_m3", "json_list", "json_objects", "plain"]
"""How calls are written: in tags behind MiniMax-M3's namespace marker; as a JSON list between `<tool_call>` tags
(SmolLM2); as one JSON object between such tags for each call (Hermes, Qwen); or not at all."""
Reasoning = Literal["none", "enabled", "adaptive"]
"""Whether reasoning comes first: no; yes, and the answer begins inside it; or as the model likes."""

_CALL_OPEN, _CALL_CLOSE = "<tool_call>", "</tool_call>"
_THINK: dict[str, tuple[str, str]] = {"minimax_m3": (m3_tokens.THINK_OPEN, m3_tokens.THINK_CLOSE)}
_OTHER_THINK = ("<think>", "</think>")


class Vocabulary(Protocol):
    """What is asked of a tokenizer here."""

    @property
    def special_ids(self) -> frozenset[int]:
        """Tokens that stand for no text."""

    def token_id(self, token: str) -> int | None:
        """The id of a token by its spelling."""


@dataclass(frozen=True, slots=True)
class AnswerShape:
    """How a model writes its answers. special_ids: of the markers that are special tokens; others are plain text."""

    family: Family
    special_ids: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, family: Family, vocabulary: Vocabulary) -> AnswerShape:
        """The shape with its markers looked up. Raises ConfigError if MiniMax-M3's namespace marker is no token."""
        markers = [_CALL_OPEN, _CALL_CLOSE, m3_tokens.TOOL_NAMESPACE, *_THINK.get(family, _OTHER_THINK)]
        ids = {marker: vocabulary.token_id(marker) for marker in markers}
        shape = cls(family, {m: i for m, i in ids.items() if i is not None and i in vocabulary.special_ids})
        if family == "minimax_m3" and m3_tokens.TOOL_NAMESPACE not in shape.special_ids:
            raise ConfigError(f"the vocabulary has no special token {m3_tokens.TOOL_NAMESPACE!r}; M3's calls need it")
        return shape

    @property
    def think(self) -> tuple[str, str]:
        """The tags around reasoning."""
        return _THINK.get(self.family, _OTHER_THINK)


PLAIN = AnswerShape("plain")


@dataclass(frozen=True, slots=True)
class Tool:
    """A tool that may be called. parameters: a JSON schema of an object; None: no arguments.

    strict: refuse a schema that cannot be enforced whole. Otherwise what cannot be enforced may be anything, as a
    tool's schema is there to inform the model first.
    """

    name: str
    parameters: Any = None
    strict: bool = False


def json_object_grammar(shape: AnswerShape = PLAIN, *, reasoning: Reasoning = "none") -> str:
    """Any JSON object."""
    return _answer(shape, reasoning, ["body: json", f"json: {inline({'type': 'object'})}"])


def json_schema_grammar(
    schema: Any, shape: AnswerShape = PLAIN, *, reasoning: Reasoning = "none", name: str = "response_format"
) -> str:
    """JSON that fits a schema, its members in the declared order.

    name: what the schema is called in messages. Raises RequestError that names a keyword that cannot be enforced.
    """
    return _answer(shape, reasoning, ["body: json", f"json: {inline(checked(schema, name))}"])


def tool_call_grammar(
    shape: AnswerShape, tools: Sequence[Tool], *, parallel: bool = True, reasoning: Reasoning = "none"
) -> str:
    """One call or, with `parallel`, several of the tools. For one named function, give that tool alone.

    Raises RequestError without tools, for a format without calls, and for a strict tool that cannot be enforced.
    """
    return _answer(shape, reasoning, ["body: calls", *_calls(shape, tools, parallel)])


def tool_call_or_json_grammar(
    shape: AnswerShape,
    tools: Sequence[Tool],
    schema: Any,
    *,
    parallel: bool = True,
    reasoning: Reasoning = "none",
    name: str = "response_format",
) -> str:
    """Calls of the tools, or JSON that fits a schema. Raises RequestError as the two grammars do."""
    json_rule = f"json: {inline(checked(schema, name))}"
    return _answer(shape, reasoning, ["body: calls | json", json_rule, *_calls(shape, tools, parallel)])


def _answer(shape: AnswerShape, reasoning: Reasoning, rules: Sequence[str]) -> str:
    """The grammar of an answer whose part after the reasoning is the rule `body`."""
    opening, closing = shape.think
    bare_close = f" | {_marker(shape, closing)}" if shape.family == "minimax_m3" else ""
    start = {
        "none": "start: body",
        "enabled": "start: thoughts body",
        "adaptive": f"start: ({_marker(shape, opening)} thoughts{bare_close})? body",
    }[reasoning]
    return "\n".join([start, *([] if reasoning == "none" else _thoughts(shape)), *rules]) + "\n"


def _thoughts(shape: AnswerShape) -> list[str]:
    """Rules of `thoughts`: any text up to the closing tag, and the tag."""
    closing = shape.think[1]
    after = "AFTER: /\\n{0,2}/"  # line ends that models put between reasoning and answer
    if closing not in shape.special_ids:
        return [
            "thoughts: to_the_close AFTER",
            "to_the_close[lazy]: TO_CLOSE",
            f"TO_CLOSE: /(?s:.*)/ {json.dumps(closing)}",
            after,
        ]
    # Reasoning must not spell what a reader takes for its end, or for a call.
    ends = [closing, *([m3_tokens.TOOL_NAMESPACE] if shape.family == "minimax_m3" else [])]
    return [f"thoughts: THOUGHTS {_marker(shape, closing)} AFTER", f"THOUGHTS: {without(*ends)}", after]


def _marker(shape: AnswerShape, text: str) -> str:
    """A marker as a Lark expression: its token, if it is one, or its text."""
    token = shape.special_ids.get(text)
    return json.dumps(text) if token is None else f"<[{token}]>"


def _either(shape: AnswerShape, text: str) -> str:
    """The same for a marker that models also write as text, though there is a token."""
    token = shape.special_ids.get(text)
    return json.dumps(text) if token is None else f"(<[{token}]> | {json.dumps(text)})"


def _calls(shape: AnswerShape, tools: Sequence[Tool], parallel: bool) -> list[str]:
    """Rules of `calls`."""
    if not tools:
        raise RequestError("a tool call is asked for, but there are no tools", field="tool_choice")
    if shape.family == "plain":
        raise RequestError("this model's chat format has no tool calls", field="tool_choice")
    schemas = [_parameters(tool) for tool in tools]
    opening, closing = _either(shape, _CALL_OPEN), _either(shape, _CALL_CLOSE)
    if shape.family == "minimax_m3":
        return _tagged_calls(shape, tools, schemas, opening, closing, parallel)
    call = _call_schema(tools, schemas)
    if shape.family == "json_list":
        several = {"type": "array", "items": {"$ref": "#/$defs/call"}, "minItems": 1, "$defs": call}
        whole = inline(several if parallel else {**several, "maxItems": 1})
        return [f"calls: {opening} call_list {closing}", f"call_list: {whole}"]
    one = inline({"$ref": "#/$defs/call", "$defs": call})
    return [
        'calls: call ("\\n" call)*' if parallel else "calls: call",
        f'call: {opening} "\\n" call_object "\\n" {closing}',
        f"call_object: {one}",
    ]


def _tagged_calls(
    shape: AnswerShape, tools: Sequence[Tool], schemas: Sequence[Any], opening: str, closing: str, parallel: bool
) -> list[str]:
    namespace = _marker(shape, m3_tokens.TOOL_NAMESPACE)
    values = ValueRules(namespace)
    invokes = []
    for tool, schema in zip(tools, schemas, strict=True):
        head = json.dumps(f'<invoke name="{tool.name}">', ensure_ascii=False)
        arguments = values.members(schema, schema, f"tools.{tool.name}")
        invokes.append(f'{namespace} {head} {arguments} {namespace} "</invoke>\\n"')
    return [
        f'calls: {namespace} {opening} "\\n" invoke{"+" if parallel else ""} {namespace} {closing}',
        f"invoke: {' | '.join(invokes)}",
        *values.lines,
    ]


def _parameters(tool: Tool) -> Any:
    """A tool's schema in the form that can be enforced. Raises RequestError if it is strict and cannot."""
    if not tool.name or set(tool.name) & set('<>"\r\n'):
        raise RequestError(
            f'a tool is called {tool.name!r}; a name needs a character, and none of <, > and "', field="tools"
        )
    schema = (
        {"type": "object", "properties": {}, "additionalProperties": False}
        if tool.parameters is None
        else tool.parameters
    )
    name = f"tools.{tool.name}.parameters"
    plain = checked(schema if tool.strict else relaxed(schema, name), name)
    kinds = kinds_of(plain, plain)
    if kinds and kinds != {"object"}:
        raise RequestError(
            f"{name}: arguments are an object; this is a schema of {', '.join(sorted(kinds))}", field=name
        )
    # Without a type a schema allows values that are no objects, whatever it says about members.
    return {**shared_parts(plain), **followed(plain, plain), "type": "object"}


def _call_schema(tools: Sequence[Tool], schemas: Sequence[Any]) -> dict[str, Any]:
    """`$defs` with the schema of any one call. Each tool's document stands in it whole, its references turned there."""
    places = [f"tool_{number}" for number in range(len(tools))]
    calls = [
        {
            "type": "object",
            "properties": {"name": {"const": tool.name}, "arguments": {"$ref": f"#/$defs/{place}"}},
            "required": ["name", "arguments"],
            "additionalProperties": False,
        }
        for tool, place in zip(tools, places, strict=True)
    ]
    moved = {place: _moved(schema, f"#/$defs/{place}") for place, schema in zip(places, schemas, strict=True)}
    return {"call": {"anyOf": calls}, **moved}


def _moved(value: Any, place: str) -> Any:
    """A document whose references count from `place`."""
    if isinstance(value, list):
        return [_moved(each, place) for each in value]
    if not isinstance(value, Mapping):
        return value
    return {
        key: place + each[1:]
        if key == "$ref" and isinstance(each, str)
        else each
        if key in ("const", "enum")
        else _moved(each, place)
        for key, each in value.items()
    }
