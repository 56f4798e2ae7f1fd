"""Chat templates: what is rendered, what is refused, and how messages are brought into form."""

from __future__ import annotations

import copy
import json
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from freehold.core.errors import TemplateError
from freehold.model.chat import ChatFormat, built_in_template
from freehold.model.tokenizer import Tokenizer
from support.byte_tokenizer import write_byte_tokenizer

TURNS = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
PARTS = (
    "{% for m in messages %}{% if m.content is string %}{{ m.content }}{% else %}{% for p in m.content %}"
    "{{ p.text if p.type == 'text' else '[' ~ p.type ~ ']' }}{% endfor %}{% endif %}{% endfor %}"
)
ONLY_PARTS = "{% for m in messages %}{% for p in m.content %}{{ p.text }}{% endfor %}{% endfor %}"
USER = [{"role": "user", "content": "hi"}]


def test_messages_tokens_and_generation_prompt_reach_the_template() -> None:
    chat = ChatFormat(
        "{{ bos_token }}" + TURNS + "{{ eos_token }}{% if add_generation_prompt %}<assistant>{% endif %}",
        bos_token="<s>",
        eos_token="</s>",
    )
    assert chat.render(USER) == "<s><user>hi</s><assistant>"
    assert chat.render(USER, add_generation_prompt=False) == "<s><user>hi</s>"


def test_blocks_leave_no_white_space_behind() -> None:
    chat = ChatFormat("{% for m in messages %}\n    {% if true %}\n{{ m.content }}\n    {% endif %}\n{% endfor %}\n")
    assert chat.render(USER) == "hi\n"


def test_loop_controls_and_training_marks_are_understood() -> None:
    template = (
        "{% for m in messages %}{% if m.role == 'x' %}{% break %}{% endif %}"
        "{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}"
    )
    messages = [*USER, {"role": "x", "content": "1"}, {"role": "user", "content": "2"}]
    assert ChatFormat(template).render(messages) == "hi"


def test_json_is_written_as_models_were_trained_on_it() -> None:
    tools = [{"type": "function", "function": {"name": "é<&>'", "n": [1, 2.5, None, True]}}]
    chat = ChatFormat("{{ tools | tojson }}|{{ tools | tojson(indent=2) }}")
    plain, indented = chat.render(USER, tools=tools).split("|")
    assert plain == json.dumps(tools, ensure_ascii=False)
    assert indented == json.dumps(tools, ensure_ascii=False, indent=2)


def test_the_time_is_the_callers_clock() -> None:
    chat = ChatFormat("{{ strftime_now('%d %b %Y') }}", now=lambda: datetime(2026, 2, 3))
    assert chat.render(USER) == "03 Feb 2026"


def test_without_a_template_chat_is_refused_and_completions_named() -> None:
    chat = ChatFormat(None)
    assert not chat.available
    with pytest.raises(TemplateError, match=r"base model.*use completions"):
        chat.render(USER)


def test_a_template_refuses_in_its_own_words() -> None:
    chat = ChatFormat("{{ raise_exception('roles must alternate, ' ~ messages[0].role) }}")
    with pytest.raises(TemplateError, match=r"^roles must alternate, user$"):
        chat.render(USER)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("line one\n{% if %}", "line 2"),
        ("{{ messages[0].nothing.at_all }}", "nothing"),
        ("{{ 1 / 0 }}", "ZeroDivisionError"),
        ("{% include 'x' %}", "loader"),
        ("{{ messages | shout }}", "shout"),
    ],
)
def test_a_broken_template_is_a_template_error(template: str, message: str) -> None:
    with pytest.raises(TemplateError, match=message):
        ChatFormat(template).render(USER)


# -- messages ------------------------------------------------------------------------------------------------


def parts(*entries: Any) -> list[dict[str, Any]]:
    content = [{"type": "text", "text": e} if isinstance(e, str) else e for e in entries]
    return [{"role": "user", "content": content}]


def test_text_parts_are_joined_for_templates_that_know_no_lists() -> None:
    assert ChatFormat(TURNS).render(parts("a", "b")) == "<user>a\nb"
    assert ChatFormat("{{ messages[0].content | tojson }}").render(parts("a", "b")) == '"a\\nb"'


def test_templates_that_know_lists_get_them() -> None:
    assert ChatFormat(PARTS).render(parts("a", {"type": "image"}, "b")) == "a[image]b"
    assert ChatFormat(PARTS).render(USER) == "hi"


def test_templates_that_know_nothing_but_lists_get_texts_as_such() -> None:
    assert ChatFormat(ONLY_PARTS).render(USER) == "hi"


def test_an_image_for_a_text_template_is_refused_by_its_place() -> None:
    with pytest.raises(TemplateError, match=r"messages\[0\].content\[1\] is of type 'image_url'"):
        ChatFormat(TURNS).render(parts("a", {"type": "image_url"}))


def call(arguments: Any) -> list[dict[str, Any]]:
    function = {"name": "f", "arguments": arguments}
    return [{"role": "assistant", "content": None, "tool_calls": [{"id": "1", "function": function}]}]


def test_tool_arguments_become_objects() -> None:
    chat = ChatFormat("{{ messages[0].tool_calls[0].function.arguments.city }}")
    assert chat.render(call('{"city": "Lyon"}')) == "Lyon"
    assert chat.render(call({"city": "Lyon"})) == "Lyon"
    assert chat.render(call("")) == ""


@pytest.mark.parametrize("broken", ["{city", "[1]", '"x"', "1"])
def test_arguments_that_are_no_object_are_shown_to_the_model(broken) -> None:
    chat = ChatFormat("{{ messages[0].tool_calls[0].function.arguments.broken_arguments }}")
    assert chat.render(call(broken)) == broken


def test_messages_are_not_changed() -> None:
    messages = parts("a", "b") + call('{"city": 1}')
    before = copy.deepcopy(messages)
    ChatFormat("{% for m in messages %}{{ m.content }}{% endfor %}").render(messages)
    assert messages == before


@pytest.mark.parametrize(
    ("messages", "place"),
    [
        ([{"content": "x"}], r"messages\[0\] has no role"),
        (["x"], r"messages\[0\] has no role"),
        ([{"role": "user", "content": object()}], r"messages\[0\].content is a object"),
        ([{"role": "user", "content": [b"x"]}], r"messages\[0\].content\[0\] is a bytes"),
        ([{"role": "user", 3: "x"}], r"messages\[0\] has the key 3"),
        ([{"role": "user", "tool_calls": ["f"]}], r"messages\[0\].tool_calls\[0\] is not a tool call"),
    ],
)
def test_messages_that_are_no_messages_are_refused_by_their_place(messages: Any, place: str) -> None:
    with pytest.raises(TemplateError, match=place):
        ChatFormat(TURNS).render(messages)


# -- options -------------------------------------------------------------------------------------------------


def test_an_option_that_the_template_does_not_read_is_refused() -> None:
    chat = ChatFormat(TURNS + "{{ tone }}{{ length }}")
    assert chat.render(USER, tone="kind") == "<user>hikind"
    with pytest.raises(TemplateError, match="no option 'tune'; its options are: length, tone"):
        chat.render(USER, tune="kind")
    with pytest.raises(TemplateError, match="no option 'bos_token'"):
        chat.render(USER, bos_token="x")


def test_tools_for_a_template_without_tools_are_refused() -> None:
    assert not ChatFormat(TURNS).takes_tools
    assert ChatFormat(TURNS).render(USER, tools=[]) == "<user>hi"
    with pytest.raises(TemplateError, match="no place for tools"):
        ChatFormat(TURNS).render(USER, tools=[{"type": "function"}])


# -- where templates come from -------------------------------------------------------------------------------


def test_the_template_beside_the_vocabulary_goes_before_our_own(tmp_path: Path) -> None:
    write_byte_tokenizer(tmp_path)
    bare = Tokenizer.from_directory(tmp_path)
    assert not ChatFormat.from_tokenizer(bare).available
    assert not ChatFormat.from_tokenizer(bare, model_type="llama").available
    own = ChatFormat.from_tokenizer(bare, model_type="minimax_m3_vl")
    assert own.template == built_in_template("minimax_m3_vl")
    (tmp_path / "chat_template.jinja").write_text("{{ bos_token }}{{ eos_token }}")
    chat = ChatFormat.from_tokenizer(Tokenizer.from_directory(tmp_path), model_type="minimax_m3_vl")
    assert chat.render(USER) == "]~b][e~["
