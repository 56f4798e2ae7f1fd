"""Which answer format a chat template stands for, and SmolLM2's own template with tools."""

from __future__ import annotations

import json
import random
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from freehold.core.errors import ArgumentError, TemplateError
from freehold.loading.checkpoint import open_checkpoint
from freehold.model.answers.format import AnswerFormat
from freehold.model.answers.json_calls import JsonCallParser
from freehold.model.answers.m3 import M3Parser
from freehold.model.answers.plain import PlainParser
from freehold.model.chat import ChatFormat, built_in_template
from freehold.model.registry import load_tokenizer
from freehold.model.tokenizer import Tokenizer
from support.answers_whole import Call, parsed, summary
from support.byte_tokenizer import write_byte_tokenizer
from support.tool_calls import cuts, tool_and_call

QWEN = (
    "{% if tools %}<tool_call>{% endif %}{% for m in messages %}{{ m.content }}{% endfor %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}"
    "{% if forced %}<think>\n{% endif %}"
)
# The template in SmolLM2's checkpoints; `test_the_template_is_that_of_the_default_model` holds it to that.
SMOLLM2 = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}"
    "{% endif %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SMOLLM2_TOOLS = (files("freehold.model") / "templates" / "smollm2_tools.jinja").read_text(encoding="utf-8")
USER = {"role": "user", "content": "hi"}
TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]


@pytest.fixture
def smollm2(tmp_path: Path) -> ChatFormat:
    write_byte_tokenizer(tmp_path)
    (tmp_path / "chat_template.jinja").write_text(SMOLLM2)
    return ChatFormat.from_tokenizer(Tokenizer.from_directory(tmp_path))


# -- which format ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("template", "answer_format", "parser"),
    [
        (built_in_template("minimax_m3"), ("minimax_m3", True, True, True), M3Parser),
        (QWEN, ("json_calls", True, True, True), JsonCallParser),
        ("<tool_call>{{ tools }}", ("json_calls", False, True, True), JsonCallParser),
        ("{{ messages }}", ("plain", False, False, False), PlainParser),
        (None, ("plain", False, False, False), PlainParser),
    ],
)
def test_the_template_tells_the_format(template: str | None, answer_format: tuple[Any, ...], parser: type) -> None:
    chat = ChatFormat(template)
    found = chat.answer_format
    assert (found.name, found.has_reasoning, found.has_tool_calls, found.needs_special_tokens) == answer_format
    assert isinstance(chat.answer_parser(), parser)


def test_the_modes_of_m3_are_those_of_its_template() -> None:
    found = AnswerFormat.of_template(built_in_template("minimax_m3"))
    assert found.thinking_modes == ("enabled", "disabled", "adaptive")
    assert found.default_thinking_mode == "adaptive"
    assert AnswerFormat.of_template(SMOLLM2).default_thinking_mode is None


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        ({}, [("reasoning", "a"), ("text", "b")]),
        ({"thinking_mode": "disabled"}, [("text", "<think>a</think>b")]),
        ({"enable_thinking": False}, [("text", "<think>a</think>b")]),
        ({"enable_thinking": True}, [("reasoning", "a"), ("text", "b")]),
        ({"forced": True}, [("reasoning", "<think>a"), ("text", "b")]),
        ({"thinking_mode": "enabled"}, [("reasoning", "<think>a"), ("text", "b")]),
    ],
)
def test_the_end_of_the_prompt_tells_where_an_answer_begins(options: dict[str, Any], parts: list[Any]) -> None:
    assert summary(parsed(ChatFormat(QWEN).answer_parser(**options), "<think>a</think>b")) == parts


def test_options_that_a_model_does_not_have_are_refused() -> None:
    with pytest.raises(ArgumentError, match="thinking_mode is 'on'"):
        ChatFormat(built_in_template("minimax_m3")).answer_parser(thinking_mode="on")
    with pytest.raises(ArgumentError, match="for this model it may be None alone"):
        ChatFormat("{{ messages }}").answer_parser(thinking_mode="enabled")
    with pytest.raises(TemplateError, match="no option 'thinking'"):
        ChatFormat(QWEN).answer_parser(thinking=True)


def test_declared_types_reach_the_parser() -> None:
    parameters = {"type": "object", "properties": {"x": {"type": "string"}}}
    tools = [{"type": "function", "function": {"name": "f", "parameters": parameters}}]
    text = ']<]minimax[>[<invoke name="f">]<]minimax[>[<x>1]<]minimax[>[</x>]<]minimax[>[</invoke>'
    for given_tools, value in ((tools, "1"), (None, 1)):
        parser = ChatFormat(built_in_template("minimax_m3")).answer_parser(tools=given_tools)
        assert summary(parsed(parser, [text])) == [Call("f", {"x": value})]


# -- SmolLM2 ---------------------------------------------------------------------------------------------------


def test_smollm2_gets_tools_and_other_templates_stay(tmp_path: Path, smollm2: ChatFormat) -> None:
    assert smollm2.takes_tools
    assert smollm2.answer_format == AnswerFormat("json_calls", has_tool_calls=True)
    for other in (SMOLLM2 + "{{ tools }}", SMOLLM2.replace("SmolLM,", "Smol,")):
        (tmp_path / "chat_template.jinja").write_text(other)
        assert ChatFormat.from_tokenizer(Tokenizer.from_directory(tmp_path)).template == other


CONTENT = st.none() | st.text() | st.lists(st.fixed_dictionaries({"type": st.just("text"), "text": st.text()}))
ROLE = st.sampled_from(["system", "user", "assistant", "tool", "developer", ""])
OTHERS = {"content": CONTENT, "name": st.text(), "tool_calls": st.none()}
MESSAGE = st.fixed_dictionaries({"role": ROLE}, optional=OTHERS)
THEIRS, OURS = ChatFormat(SMOLLM2), ChatFormat(SMOLLM2_TOOLS)


def outcome(chat: ChatFormat, *args: Any, **options: Any) -> str:
    try:
        return chat.render(*args, **options)
    except TemplateError:
        return "refused"


@settings(max_examples=200, deadline=None)
@given(messages=st.lists(MESSAGE, max_size=4), opening=st.booleans())
def test_without_tools_smollm2_is_written_as_its_own_template_writes_it(
    messages: list[dict[str, Any]], opening: bool
) -> None:
    wanted = outcome(THEIRS, messages, add_generation_prompt=opening)
    for tools in (None, []):
        assert outcome(OURS, messages, tools=tools, add_generation_prompt=opening) == wanted


@pytest.mark.model
def test_the_template_is_that_of_the_default_model(default_model: Path) -> None:
    with open_checkpoint(default_model) as checkpoint:
        tokenizer = load_tokenizer(checkpoint)
    assert tokenizer.chat_template == SMOLLM2
    assert ChatFormat.from_tokenizer(tokenizer).template == SMOLLM2_TOOLS


def test_the_tools_stand_in_the_system_prompt_behind_the_callers(smollm2: ChatFormat) -> None:
    prompt = smollm2.render([USER], tools=TOOLS)
    start = "<|im_start|>system\nYou are an expert in composing functions. You are given a question and a set of"
    assert prompt.startswith(start)
    assert f"\n<tools>{json.dumps(TOOLS)}</tools>\n\nThe output MUST strictly adhere" in prompt
    end = "make the tool calls an empty list '[]'.\n<tool_call>[\n"
    end += '{"name": "func_name1", "arguments": {"argument1": "value1", "argument2": "value2"}},\n'
    end += "... (more tool calls as required)\n]</tool_call><|im_end|>\n"
    assert prompt.endswith(end + "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n")
    own = smollm2.render([{"role": "system", "content": "Be brief."}, USER], tools=TOOLS)
    assert own == prompt.replace("system\nYou", "system\nBe brief.\n\nYou", 1)


def test_calls_and_results_of_smollm2_are_written_and_calls_read_back(smollm2: ChatFormat) -> None:
    chance = random.Random(3)
    for _ in range(100):
        calls = [tool_and_call(chance)[1] for _ in range(chance.randint(1, 3))]
        content = chance.choice([None, "", "I look.", "a\n"])
        message = {"role": "assistant", "content": content, "tool_calls": calls}
        result = {"role": "tool", "content": "sunny"}
        for tools in (TOOLS, None):
            start = smollm2.render([USER], tools=tools)
            text = smollm2.render([USER, message, result], tools=tools)
            end = "<|im_end|>\n<|im_start|>tool\nsunny<|im_end|>\n<|im_start|>assistant\n"
            assert text.startswith(start)
            assert text.endswith(end)
            answer = text.removeprefix(start).removesuffix(end)
            parts = parsed(smollm2.answer_parser(tools=tools), cuts(chance, answer))
            wanted = [Call(c["function"]["name"], json.loads(c["function"]["arguments"])) for c in calls]
            assert summary(parts) == [("text", content)] * bool(content) + wanted
