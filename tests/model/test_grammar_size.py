"""Schemas that the grammar engine could not follow to the end of an answer are refused before it begins."""

from __future__ import annotations

from typing import Any

import pytest

from freehold.core.errors import RequestError
from freehold.model.answer_grammar import json_schema_grammar
from freehold.model.grammar import Grammars
from freehold.model.grammar_relaxed import relaxed
from freehold.model.grammar_schema import checked
from freehold.model.grammar_size import MOST_CHARACTERS, MOST_CHOICES
from support.grammar_walk import NUM_TOKENS, Bytes


def with_optional(count: int, first: int = 0) -> dict[str, Any]:
    return {"type": "object", "properties": {f"p{i}": {"type": "string"} for i in range(first, first + count)}}


def around(inner: Any) -> dict[str, Any]:
    return {"type": "object", "properties": {"inner": inner}, "required": ["inner"], "additionalProperties": False}


MANY = [
    with_optional(7000),
    around(with_optional(7000)),
    {"type": "array", "items": with_optional(7000)},
    {"$defs": {"a": with_optional(7000)}, **around({"$ref": "#/$defs/a"})},
    {"anyOf": [around(with_optional(4000)), around(with_optional(4000, 4000))]},
]


@pytest.mark.parametrize("schema", MANY, ids=range(len(MANY)))
def test_too_many_members_that_may_come_next_are_refused(schema):
    with pytest.raises(RequestError, match=rf"too large: .*(7001|7002|8002).*at most {MOST_CHOICES}.*'required'"):
        checked(schema, "response_format")


class Joining(Bytes):
    """The bytes, and tokens as large vocabularies have them, which go on from one member to the next."""

    joining = tuple(
        f"{before},{after}".encode() for before in ("", " ", "  ", "\n", "\n ") for after in ("", ' "', "\n")
    )

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes of one of them, or as before."""
        return self.joining[token_id - NUM_TOKENS] if token_id >= NUM_TOKENS else super().token_bytes(token_id)


def test_many_members_are_followed_with_tokens_that_go_on_to_the_next():
    """Each such token leads to all members that may come behind it, and a mask looks at all of these tokens."""
    grammars = Grammars(Joining(), NUM_TOKENS + len(Joining.joining))
    matcher = grammars.matcher(json_schema_grammar(with_optional(2000)))
    for token in b'{"p7": "x"':
        assert token in matcher.allowed()
        matcher.push(token)
    assert NUM_TOKENS + Joining.joining.index(b' , "') in matcher.allowed()


@pytest.mark.parametrize("keyword", ["minLength", "maxLength"])
def test_a_length_that_cannot_be_counted_is_refused(keyword):
    with pytest.raises(RequestError, match=rf"too large: .*50000.*at most {MOST_CHARACTERS}.*leave them out"):
        checked(around({"type": "string", keyword: 50_000}), "response_format")


def test_lengths_count_together():
    lengths = {f"p{i}": {"type": "string", "maxLength": 5000 + i} for i in range(4)}
    with pytest.raises(RequestError, match="20006 together"):
        checked({"type": "object", "properties": lengths}, "response_format")
    same = {name: {"type": "string", "maxLength": 5000} for name in lengths}
    checked({"type": "object", "properties": same}, "response_format")


def test_a_member_may_be_called_like_a_keyword_that_counts():
    checked(
        {"type": "object", "properties": {"maxLength": {"const": 10**6}, "a": {"enum": [{"maxLength": 10**6}]}}},
        "response_format",
    )


def test_a_large_schema_of_required_members_is_none_of_them():
    parts = {f"part{i}": with_optional(300) for i in range(30)}
    checked({"type": "object", "properties": parts, "required": list(parts)}, "response_format")


def test_the_longest_string_is_followed_to_its_end():
    grammars = Grammars(Bytes(), NUM_TOKENS)
    schema = {"type": "string", "minLength": MOST_CHARACTERS, "maxLength": MOST_CHARACTERS}
    matcher = grammars.matcher(json_schema_grammar(schema))
    for byte in b'"' + "\\né\U0001f600a".encode() * (MOST_CHARACTERS // 4) + b'"':
        assert byte in matcher.allowed()
        matcher.push(byte)
    assert matcher.may_end


def test_a_tool_s_schema_that_is_too_large_is_opened():
    schema = around({"type": "string", "maxLength": 50_000})
    assert relaxed(schema, "tools") == around({"type": "string"})
