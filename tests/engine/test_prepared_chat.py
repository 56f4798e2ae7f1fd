"""Conversations as a model takes them: what its answers must be, and how they are read."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace

import pytest

from freehold.core.conversation import Conversation, JsonAnswer, ToolUse
from freehold.core.errors import RequestError, UnsupportedFieldError
from freehold.core.parts import ReasoningPart, TextPart
from freehold.core.sampling import SamplingParams
from freehold.engine.chat import prepare_chat
from freehold.model.chat import ChatFormat, built_in_template
from freehold.model.chat_replay import ChatEncoder
from freehold.model.m3_tokens import TOOL_NAMESPACE
from freehold.model.tokenizer import Tokenizer
from support.byte_tokenizer import write_byte_tokenizer

CALLS = "{{ tools | tojson if tools else '' }}{% for m in messages %}{{ m.content }}{% endfor %}<tool_call>["
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
REASONING = CALLS + "{# <think> #}"
M3_CALL = f'{TOOL_NAMESPACE}<tool_call>{TOOL_NAMESPACE}<invoke name="f">{TOOL_NAMESPACE}</invoke>'
CALL = '<tool_call>[{"name": "f", "arguments": {}}]</tool_call>'


@cache
def byte_tokenizer() -> Tokenizer:
    with TemporaryDirectory() as directory:
        write_byte_tokenizer(Path(directory), merges=())
        return Tokenizer.from_directory(directory)


def model(template: str) -> SimpleNamespace:
    """What `prepare_chat` needs of an LLM."""
    tokenizer, chat_format = byte_tokenizer(), ChatFormat(template)
    return SimpleNamespace(
        tokenizer=tokenizer,
        chat_format=chat_format,
        chat_encoder=ChatEncoder(tokenizer, chat_format),
        visual_chat=None,
    )


def chat(template: str, **fields):
    messages = [{"role": "user", "content": "hi"}]
    return prepare_chat(model(template), Conversation(messages, [SamplingParams()], **fields))


def test_calls_are_read_where_tools_are_given():
    parser = chat(CALLS, tool_use=ToolUse((TOOL,))).parser()
    assert not any(isinstance(part, TextPart) for part in [*parser.push(CALL), *parser.finish()])


@pytest.mark.parametrize("template", [CALLS, REASONING, built_in_template("minimax_m3")])
@pytest.mark.parametrize("use", [ToolUse((TOOL,), "none"), ToolUse()])
def test_where_none_may_be_called_what_looks_like_a_call_is_text(template: str, use: ToolUse):
    prepared = chat(template, tool_use=use)
    call = M3_CALL if "minimax" in template else CALL
    parser = prepared.parser()
    assert [*parser.push(call), *parser.finish()] == [TextPart(call)]


def test_where_none_may_be_called_reasoning_is_read():
    parser = chat(REASONING, tool_use=ToolUse((TOOL,), "none")).parser()
    assert [*parser.push(f"<think>why</think>{CALL}"), *parser.finish()] == [ReasoningPart("why"), TextPart(CALL)]


def test_a_required_call_has_a_grammar_and_a_free_answer_none():
    assert chat(CALLS, tool_use=ToolUse((TOOL,), "required")).params(SamplingParams()).grammar is not None
    assert chat(CALLS, tool_use=ToolUse((TOOL,))).params(SamplingParams()).grammar is None
    assert chat(CALLS, json_answer=JsonAnswer()).params(SamplingParams()).grammar is not None


@pytest.mark.parametrize("use", [ToolUse(), ToolUse((TOOL,))])
def test_a_schema_that_cannot_be_enforced_is_refused_by_the_name_that_the_api_gives_it(use: ToolUse):
    with pytest.raises(RequestError, match=r"^text\.format\.schema\.not: ") as refused:
        chat(CALLS, tool_use=use, json_answer=JsonAnswer({"not": {}}, where="text.format.schema"))
    assert refused.value.field == "text.format.schema"


def test_what_the_model_cannot_do_is_refused_by_name():
    with pytest.raises(UnsupportedFieldError) as tools:
        chat("{{ messages[0].content }}", tool_use=ToolUse((TOOL,)))
    with pytest.raises(UnsupportedFieldError) as thinking:
        chat("{{ messages[0].content }}", thinking="enabled")
    assert (tools.value.field, thinking.value.field) == ("tools", "thinking")


def test_messages_have_their_places_in_the_prompt():
    messages = [{"role": "user", "content": "one"}, {"role": "assistant", "content": "second"}]
    template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    prepared = prepare_chat(model(template), Conversation(messages, [SamplingParams()]))
    assert prepared.message_ranges() == [(0, 3), (3, 9)]
