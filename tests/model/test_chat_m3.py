"""The chat format of MiniMax-M3: one test for each of its rules, and its tokens."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from freehold.core.errors import TemplateError
from freehold.model import m3_tokens
from freehold.model.chat import ChatFormat, built_in_template
from freehold.model.tokenizer import Tokenizer
from support.byte_tokenizer import write_byte_tokenizer

NS = m3_tokens.TOOL_NAMESPACE
SYSTEM = {"role": "system", "content": "Be brief."}
USER = {"role": "user", "content": "hi"}
TOOLS = [{"type": "function", "function": {"name": "weather", "description": "Wetter für <Ort>"}}]


@pytest.fixture(scope="module")
def chat() -> ChatFormat:
    return ChatFormat(built_in_template("minimax_m3_vl"))


def turns(prompt: str) -> list[tuple[str, str]]:
    """(role, body) of each finished turn; everything outside turns must be the frame alone."""
    assert prompt.startswith("]~!b[")
    found = re.findall(r"\]~b\](\w+)\n(.*?)\[e~\[\n", prompt, flags=re.DOTALL)
    frame = "".join(f"]~b]{role}\n{body}[e~[\n" for role, body in found)
    assert prompt.removeprefix("]~!b[").startswith(frame)
    return found


def finished(chat: ChatFormat, *messages: dict[str, Any], **options: Any) -> list[tuple[str, str]]:
    return turns(chat.render(messages, add_generation_prompt=False, **options))


def assistant(content: str | None = "", **fields: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, **fields}


def calls(*arguments: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"type": "function", "function": {"name": "f", "arguments": json.dumps(a)}} for a in arguments]


# -- system and developer turns ------------------------------------------------------------------------------


def test_a_prompt_begins_with_an_identity_and_how_to_think(chat: ChatFormat) -> None:
    role, body = finished(chat, USER)[0]
    assert role == "system"
    assert re.fullmatch(r"You are MiniMax-M3.*\n\n<thinking_instructions>\n.*\n</thinking_instructions>", body, re.S)
    assert "<mm:think>" in body
    assert "</mm:think>" in body


def test_a_root_message_replaces_the_identity(chat: ChatFormat) -> None:
    found = finished(chat, {"role": "root", "content": "I am root."}, SYSTEM, USER)
    assert found[0][1].startswith("I am root.\n\n<thinking_instructions>")
    assert "MiniMax-M3" not in found[0][1]
    assert found[1:] == [("developer", "Be brief."), ("user", "hi")]


@pytest.mark.parametrize("role", ["system", "developer"])
def test_a_system_prompt_lands_in_the_developer_turn(chat: ChatFormat, role: str) -> None:
    found = finished(chat, {"role": role, "content": "Be brief."}, USER)
    assert found[1:] == [("developer", "Be brief."), ("user", "hi")]
    assert "Be brief." not in found[0][1]


def test_without_a_system_prompt_the_developer_turn_has_a_default(chat: ChatFormat) -> None:
    assert finished(chat, USER)[1] == ("developer", "You are a helpful assistant.")


@pytest.mark.parametrize("role", ["root", "system", "developer"])
def test_instructions_in_mid_conversation_are_refused(chat: ChatFormat, role: str) -> None:
    with pytest.raises(TemplateError, match=f"role '{role}' must come first"):
        chat.render([USER, {"role": role, "content": "x"}])


def test_unknown_roles_are_refused(chat: ChatFormat) -> None:
    with pytest.raises(TemplateError, match="role 'function' are not supported"):
        chat.render([{"role": "function", "content": "x"}])


# -- thinking ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "line", "opening"),
    [
        ({"thinking_mode": "enabled"}, "must think before every response", "<mm:think>"),
        ({"thinking_mode": "disabled"}, "without any thinking output", "</mm:think>"),
        ({"thinking_mode": "adaptive"}, "encouraged to think", ""),
        ({}, "encouraged to think", ""),
        ({"thinking_mode": None}, "encouraged to think", ""),
    ],
)
def test_the_mode_is_told_and_opens_the_answer(
    chat: ChatFormat, options: dict[str, Any], line: str, opening: str
) -> None:
    prompt = chat.render([USER], **options)
    assert prompt.endswith("]~b]user\nhi[e~[\n]~b]ai\n" + opening)
    lines = ["must think before every response", "without any thinking output", "encouraged to think"]
    assert [text in turns(prompt)[0][1] for text in lines] == [text == line for text in lines]


def test_an_unknown_mode_is_refused(chat: ChatFormat) -> None:
    with pytest.raises(TemplateError, match="thinking_mode is 'on'; it must be 'enabled', 'disabled' or 'adaptive'"):
        chat.render([USER], thinking_mode="on")


def test_past_turns_keep_all_their_reasoning(chat: ChatFormat) -> None:
    messages = [
        USER,
        assistant("one", reasoning_content="first"),
        USER,
        assistant("two", reasoning_content="second"),
    ]
    for mode in ("enabled", "disabled", "adaptive"):
        bodies = [body for role, body in finished(chat, *messages, thinking_mode=mode) if role == "ai"]
        assert bodies == ["<mm:think>first</mm:think>one", "<mm:think>second</mm:think>two"]


def test_a_turn_without_reasoning_begins_with_a_bare_closing_tag(chat: ChatFormat) -> None:
    for fields in ({}, {"reasoning_content": ""}, {"reasoning_content": None}):
        assert finished(chat, USER, assistant("one", **fields))[-1] == ("ai", "</mm:think>one")


@pytest.mark.parametrize(
    "content",
    ["<mm:think>why\n\n</mm:think>\n\none", "</mm:think>one", "<mm:think>a</mm:think>b</mm:think>c"],
)
def test_reasoning_written_in_the_content_comes_back_byte_for_byte(chat: ChatFormat, content: str) -> None:
    assert finished(chat, USER, assistant(content))[-1] == ("ai", content)


def test_a_prompt_and_its_answer_are_the_beginning_of_the_next_prompt(chat: ChatFormat) -> None:
    answers = {"enabled": "why</mm:think>one", "disabled": "one", "adaptive": "<mm:think>why</mm:think>one"}
    for mode, answer in answers.items():
        first = chat.render([USER], thinking_mode=mode)
        reasoning = {} if mode == "disabled" else {"reasoning_content": "why"}
        second = chat.render([USER, assistant("one", **reasoning), USER], thinking_mode=mode)
        assert second.startswith(first + answer + "[e~[\n]~b]user\n")


# -- media ---------------------------------------------------------------------------------------------------


def test_images_and_videos_become_placeholders_where_they_stand(chat: ChatFormat) -> None:
    content = [
        {"type": "text", "text": "a"},
        {"type": "image_url", "image_url": {"url": "x"}},
        {"type": "text", "text": "b"},
        {"type": "video"},
        {"type": "image"},
    ]
    body = "a]<]image[>[b]<]video[>[]<]image[>["
    assert finished(chat, {"role": "user", "content": content})[-1] == ("user", body)
    messages = [USER, assistant(tool_calls=calls({})), {"role": "tool", "content": content}]
    assert chat.render(messages, add_generation_prompt=False).endswith(f"]~b]tool\n<response>{body}</response>[e~[\n")


def test_other_content_parts_are_refused(chat: ChatFormat) -> None:
    with pytest.raises(TemplateError, match="'input_audio' are not supported"):
        chat.render([{"role": "user", "content": [{"type": "input_audio"}]}])


# -- tools ---------------------------------------------------------------------------------------------------


def test_tools_are_declared_in_the_developer_turn(chat: ChatFormat) -> None:
    body = finished(chat, SYSTEM, USER, tools=TOOLS * 2)[1][1]
    declared = json.dumps(TOOLS[0]["function"], ensure_ascii=False)
    line = f"<tool>{declared}</tool>\n"
    assert body.startswith("Be brief.\n\n# Tools\n")
    assert f"<tools>\n{line}{line}</tools>\n" in body
    assert "für <Ort>" in body
    assert f"{NS}<tool_call>\n{NS}<invoke name=" in body.split("</tools>")[1]


def test_without_tools_there_is_no_tool_section(chat: ChatFormat) -> None:
    assert "ools" not in chat.render([USER])
    assert chat.render([USER], tools=[]) == chat.render([USER])


def test_tool_calls_are_written_tag_by_tag(chat: ChatFormat) -> None:
    arguments = {
        "city": 'Paris <b>"',
        "days": [1, 2.5],
        "options": {"exact": True, "fast": False, "unset": None},
        "none": None,
        "grid": [[1], {"x": "é"}],
    }
    expected = (
        f"{NS}<tool_call>\n"
        f'{NS}<invoke name="f">'
        f'{NS}<city>Paris <b>"{NS}</city>'
        f"{NS}<days>{NS}<item>1{NS}</item>{NS}<item>2.5{NS}</item>{NS}</days>"
        f"{NS}<options>{NS}<exact>true{NS}</exact>{NS}<fast>false{NS}</fast>{NS}</options>"
        f"{NS}<grid>{NS}<item>{NS}<item>1{NS}</item>{NS}</item>{NS}<item>{NS}<x>é{NS}</x>{NS}</item>{NS}</grid>"
        f"{NS}</invoke>\n"
        f'{NS}<invoke name="f">{NS}</invoke>\n'
        f"{NS}</tool_call>"
    )
    for content in ("", None):
        found = finished(chat, USER, assistant(content, tool_calls=calls(arguments, {})))
        assert found[-1] == ("ai", "</mm:think>" + expected)
    found = finished(chat, USER, assistant("I look.", reasoning_content="r", tool_calls=calls(arguments, {})))
    assert found[-1] == ("ai", "<mm:think>r</mm:think>I look.\n" + expected)


def result(content: str) -> dict[str, Any]:
    return {"role": "tool", "content": content, "tool_call_id": "1"}


def test_consecutive_tool_results_share_one_turn(chat: ChatFormat) -> None:
    called = assistant(tool_calls=calls({}, {}))
    found = finished(chat, USER, called, result("a"), result("b"), called, result("c"), USER)
    assert [role for role, _ in found[2:]] == ["user", "ai", "tool", "ai", "tool", "user"]
    assert found[4][1] == "<response>a</response>\n<response>b</response>"
    assert found[6][1] == "<response>c</response>"


@pytest.mark.parametrize("before", [[], [assistant("no call")], [assistant(tool_calls=calls({})), assistant("done")]])
def test_a_tool_result_without_a_call_is_refused(chat: ChatFormat, before: list[dict[str, Any]]) -> None:
    with pytest.raises(TemplateError, match="needs an assistant message with tool_calls"):
        chat.render([USER, *before, result("a")])


# -- tokens --------------------------------------------------------------------------------------------------


def test_every_structural_token_is_one_token(chat: ChatFormat, tmp_path: Path) -> None:
    write_byte_tokenizer(tmp_path)
    tokenizer = Tokenizer.from_directory(tmp_path)
    messages = [USER, assistant("x", reasoning_content="r", tool_calls=calls({"a": 1})), result("y")]
    prompt = chat.render(messages, tools=TOOLS, thinking_mode="enabled")
    ids = tokenizer.encode(prompt, allow_special=True)
    names = [*m3_tokens.RELEASE_IDS]
    for name in names:
        assert ids.count(tokenizer.token_id(name) or -1) == prompt.count(name)
    assert ids[0] == tokenizer.token_id(m3_tokens.BEGIN_OF_DIALOGUE)
    assert ids[-1] == tokenizer.token_id(m3_tokens.THINK_OPEN)
    assert tokenizer.decode(ids, skip_special=False) == prompt


def test_the_templates_own_spelling_of_tokens_is_that_of_the_constants() -> None:
    source = built_in_template("minimax_m3_vl") or ""
    unused = {m3_tokens.START_OF_IMAGE, m3_tokens.END_OF_IMAGE}  # written when images are expanded
    assert {name for name in m3_tokens.RELEASE_IDS if name not in source} == unused
    values = {value for key, value in vars(m3_tokens).items() if key.isupper() and isinstance(value, str)}
    assert values == set(m3_tokens.RELEASE_IDS)


def test_the_options_of_the_template(chat: ChatFormat) -> None:
    assert {"thinking_mode", "tools", "messages", "add_generation_prompt"} <= chat.variables
    with pytest.raises(TemplateError, match="no option 'enable_thinking'"):
        chat.render([USER], enable_thinking=True)
