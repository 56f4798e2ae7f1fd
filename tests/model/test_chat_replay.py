"""Conversations that come back begin with the very tokens that were computed before."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from freehold.core.errors import TemplateError
from freehold.model import m3_tokens
from freehold.model.chat import ChatFormat, built_in_template
from freehold.model.chat_keys import first_key, next_key
from freehold.model.chat_pieces import PieceEncoder
from freehold.model.chat_replay import ChatEncoder, EncodedChat, Reply
from freehold.model.chat_tokens import encode_chat
from freehold.model.tokenizer import Tokenizer
from support.byte_tokenizer import write_byte_tokenizer

NS = m3_tokens.TOOL_NAMESPACE
EOS = m3_tokens.END_OF_TURN
M3 = built_in_template("minimax_m3") or ""
# ChatML and Qwen's format with the tokens of the tests' vocabulary in place of their own.
CHATML = (
    "{% for m in messages %}{% if loop.first and m.role != 'system' %}]~b]system\nYou help.[e~[\n{% endif %}"
    "]~b]{{ m.role }}\n{{ m.content }}[e~[\n{% endfor %}{% if add_generation_prompt %}]~b]assistant\n{% endif %}"
)
QWEN = """
{%- set ns = namespace(last=-1) -%}
{%- for m in messages -%}{%- if m.role == 'user' -%}{%- set ns.last = loop.index0 -%}{%- endif -%}{%- endfor -%}
{%- for m in messages -%}
{%- if m.role == 'assistant' -%}
{%- set content = m.content.split('</mm:think>')[-1].lstrip('\n') if m.content else '' -%}
{%- set reasoning = m.reasoning_content or '' -%}
{{- ']~b]assistant\n' -}}
{%- if loop.index0 > ns.last and (loop.last or reasoning) -%}
{{- '<mm:think>\n' ~ reasoning.strip('\n') ~ '\n</mm:think>\n\n' -}}
{%- endif -%}
{{- content.lstrip('\n') -}}
{%- for call in m.tool_calls or [] -%}
{{- ('\n' if content or not loop.first else '') ~ '<tool_call>\n{"name": "' ~ call.function.name -}}
{{- '", "arguments": ' ~ (call.function.arguments | tojson) ~ '}\n</tool_call>' -}}
{%- endfor -%}
{{- '[e~[\n' -}}
{%- elif m.role == 'tool' -%}
{%- if messages[loop.index0 - 1].role != 'tool' -%}{{- ']~b]user' -}}{%- endif -%}
{{- '\n<tool_response>\n' ~ m.content ~ '\n</tool_response>' -}}
{%- if loop.last or messages[loop.index0 + 1].role != 'tool' -%}{{- '[e~[\n' -}}{%- endif -%}
{%- else -%}
{{- ']~b]' ~ m.role ~ '\n' ~ m.content ~ '[e~[\n' -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- ']~b]assistant\n' ~ ('<mm:think>\n\n</mm:think>\n\n' if enable_thinking is defined and not enable_thinking) -}}
{%- endif -%}
"""
TEMPLATES = {"minimax_m3": M3, "chatml": CHATML, "qwen": QWEN}


class Memory:
    """A ReplyMemory that forgets nothing."""

    def __init__(self) -> None:
        self.kept: dict[bytes, list[tuple[str, Reply]]] = {}

    def remember(self, key: bytes, reply: Reply, reasoning: str) -> None:
        self.kept.setdefault(key, []).append((reasoning, reply))

    def recall(self, key: bytes, reasoning: str | None) -> Reply | None:
        fitting = [reply for known, reply in self.kept.get(key, []) if reasoning in (None, known)]
        return fitting[-1] if fitting else None


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    directory = tmp_path_factory.mktemp("tokenizer")
    write_byte_tokenizer(directory)
    return Tokenizer.from_directory(directory)


def encoder(tokenizer: Tokenizer, template: str = M3, memory: Memory | None = None) -> ChatEncoder:
    return ChatEncoder(tokenizer, ChatFormat(template), Memory() if memory is None else memory)


# -- a model, and a client that stores what it says in its own way -------------------------------------------


def sample(tokenizer: Tokenizer, text: str, rng: random.Random) -> list[int]:
    """Tokens of a text as a model may sample them: not those that encoding the text would give."""
    ids: list[int] = []
    while text:
        cut = next((m for m in [*m3_tokens.RELEASE_IDS] if text.startswith(m)), None) or text[: rng.randint(1, 4)]
        if any(marker[0] in cut[1:] for marker in m3_tokens.RELEASE_IDS):
            cut = text[0]
        ids += tokenizer.encode(cut, allow_special=True, add_bos=False)
        text = text[len(cut) :]
    return ids


def write(answer: dict[str, Any], rng: random.Random) -> str:
    """An answer as the model wrote it, with the odd spacing of models."""
    space = lambda: rng.choice(["", "", " ", "\n", "\n\n", "  "])  # noqa: E731
    text = f"<mm:think>{answer['reasoning_content']}{space()}</mm:think>{space()}{answer['content'] or ''}{space()}"
    for call in answer.get("tool_calls", ()):
        function = call["function"]
        text += f'{NS}<tool_call>{space()}{NS}<invoke name="{function["name"]}">{space()}{function["arguments"]}'
        text += f"{NS}</invoke>{space()}{NS}</tool_call>{space()}"
    return text


def stored(answer: dict[str, Any], rng: random.Random) -> dict[str, Any]:
    """The answer as some client sends it back."""
    message = {"role": "assistant", **copy.deepcopy(answer)}
    content = message["content"]
    spelled: list[Any] = [content, content, [{"type": "text", "text": content}]] if content else ["", None]
    if content:
        spelled.append(content.strip())
    message["content"] = rng.choice(spelled)
    for call in message.get("tool_calls", ()):
        function = call["function"]
        arguments = json.loads(
            function["arguments"], parse_float=lambda d: int(float(d)) if float(d) % 1 == 0 else float(d)
        )
        arguments = dict(rng.sample(sorted(arguments.items()), len(arguments)))
        layout = rng.choice([{}, {"indent": 2}, {"separators": (",", ":")}, {"ensure_ascii": False}])
        function["arguments"] = json.dumps(arguments, **layout)
        if rng.random() < 0.5:
            del call["id"]
    if rng.random() < 0.5:
        del message["reasoning_content"]
    message.update(rng.choice([{}, {"refusal": None, "annotations": []}, {"name": "bot"}, {"audio": None}]))
    return message


def play(
    chat: ChatEncoder,
    tokenizer: Tokenizer,
    answers: Sequence[dict[str, Any]],
    rng: random.Random,
    client: Callable[[dict[str, Any], random.Random], dict[str, Any]] = stored,
    **options: Any,
) -> list[dict[str, Any]]:
    """A conversation of several turns; each prompt must begin with all that was computed before."""
    messages: list[dict[str, Any]] = [{"role": "user", "content": "hi [e~["}]
    computed: list[int] = []
    for answer in answers:
        prompt = chat.encode(messages, **options)
        assert prompt.ids[: len(computed)] == computed
        ids = sample(tokenizer, write(answer, rng), rng)
        if rng.random() < 0.8:
            ids += [tokenizer.token_id(EOS) or 0]
        chat.remember(prompt, answer, ids)
        computed = prompt.ids + ids
        messages.append(client(answer, rng))
        if answer.get("tool_calls"):
            messages.append({"role": "tool", "content": "result <mm:think>", "tool_call_id": "c"})
        else:
            messages.append({"role": "user", "content": "and?"})
    assert chat.encode(messages, **options).ids[: len(computed)] == computed
    return messages


def answer(content: str | None, reasoning: str = "", **arguments: Any) -> dict[str, Any]:
    made: dict[str, Any] = {"content": content, "reasoning_content": reasoning}
    if arguments:
        function = {"name": "look", "arguments": json.dumps(arguments, indent=1)}
        made["tool_calls"] = [{"id": "call_1", "type": "function", "function": function}]
    return made


words = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="[]<>"), max_size=12)
values = st.one_of(words, st.integers(-9, 9), st.sampled_from([1.0, 2.5, -0.0, 1e3]), st.booleans(), st.none())
answers = st.builds(
    lambda content, reasoning, arguments: answer(content, reasoning, **arguments),
    st.none() | words,
    words,
    st.dictionaries(st.sampled_from(["path", "n", "größe", "z"]), values, max_size=3),
)


@pytest.mark.parametrize("name", TEMPLATES)
@settings(max_examples=15, deadline=None)
@given(turns=st.lists(answers, min_size=1, max_size=4), seed=st.integers(0, 1 << 30))
def test_no_prefix_is_lost_whatever_clients_do(
    tokenizer: Tokenizer, name: str, turns: list[dict[str, Any]], seed: int
) -> None:
    if name == "chatml":
        turns = [{**turn, "content": turn["content"] or "x"} for turn in turns]
    play(encoder(tokenizer, TEMPLATES[name]), tokenizer, turns, random.Random(seed))


@pytest.mark.parametrize("name", TEMPLATES)
def test_no_prefix_is_lost_in_fifty_turns_with_tools(tokenizer: Tokenizer, name: str) -> None:
    turns = [answer(f" Look {i}.\n", f"why {i}", n=i, x=1.0) if i % 5 else answer(f"Done {i}") for i in range(50)]
    play(encoder(tokenizer, TEMPLATES[name]), tokenizer, turns, random.Random(1))


@pytest.mark.parametrize("mode", ["enabled", "disabled", "adaptive"])
def test_no_prefix_is_lost_in_any_thinking_mode(tokenizer: Tokenizer, mode: str) -> None:
    turns = [answer("a", "r", n=1), answer("b")]
    play(encoder(tokenizer), tokenizer, turns, random.Random(2), template_kwargs={"thinking_mode": mode})


def test_a_switched_mode_keeps_the_opening_each_answer_was_sampled_after(tokenizer: Tokenizer) -> None:
    chat = encoder(tokenizer, QWEN)
    user = {"role": "user", "content": "hi"}
    first = chat.encode([user], template_kwargs={"enable_thinking": False})
    chat.remember(first, {"content": "yes"}, [1, 2, 3])
    second = chat.encode(
        [user, {"role": "assistant", "content": "yes"}, user], template_kwargs={"enable_thinking": True}
    )
    assert second.ids[: len(first.ids) + 3] == [*first.ids, 1, 2, 3]


def test_an_answer_that_broke_off_inside_a_call_does_not_end_the_conversation(tokenizer: Tokenizer) -> None:
    broken = answer("x", n=1)
    broken["tool_calls"][0]["function"]["arguments"] = '{"n": '
    play(encoder(tokenizer), tokenizer, [broken], random.Random(3), client=lambda a, _: {"role": "assistant", **a})


def test_the_templates_end_of_turn_stands_where_another_token_ended_the_answer(tmp_path: Path) -> None:
    write_byte_tokenizer(tmp_path)
    tokenizer = Tokenizer.from_directory(tmp_path, extra_eos_ids=[257])
    chat = encoder(tokenizer)
    user = {"role": "user", "content": "hi"}
    first = chat.encode([user])
    chat.remember(first, {"content": "ok"}, [1, 2, 257])
    second = chat.encode([user, {"role": "assistant", "content": "ok"}, user]).ids[len(first.ids) :]
    assert second[:3] == [1, 2, tokenizer.token_id(EOS)]


# -- what is not recognised ----------------------------------------------------------------------------------

USER = {"role": "user", "content": "hi"}
CALLED = answer("I look.", "why", path="a", n=1)


def changed(**fields: Any) -> dict[str, Any]:
    return {"role": "assistant", **copy.deepcopy(CALLED), **fields}


def changed_call(name: str, arguments: str) -> dict[str, Any]:
    return changed(
        tool_calls=[{"id": "call_1", "type": "function", "function": {"name": name, "arguments": arguments}}]
    )


@pytest.mark.parametrize(
    "edited",
    [
        changed(content="I see."),
        changed(content="I  look."),
        changed(reasoning_content="why not"),
        changed(tool_calls=[]),
        changed(tool_calls=CALLED["tool_calls"] * 2),
        changed_call("look", '{"path": "a", "n": 2}'),
        changed_call("look", '{"path": "a ", "n": 1}'),
        changed_call("look", '{"path": "a", "n": "1"}'),
        changed_call("look", '{"path": "a", "n": true}'),
        changed_call("peek", '{"path": "a", "n": 1}'),
    ],
)
def test_an_edited_answer_is_rendered_as_edited(tokenizer: Tokenizer, edited: dict[str, Any]) -> None:
    chat = encoder(tokenizer)
    chat.remember(chat.encode([USER]), CALLED, [1, 2, 3])
    history = [USER, edited, USER]
    assert chat.encode(history).ids == encode_chat(tokenizer, ChatFormat(M3), history)
    assert chat.encode([USER, changed(), USER]).ids != encode_chat(tokenizer, ChatFormat(M3), [USER, changed(), USER])


TOOLS = [{"type": "function", "function": {"name": "look"}}]


@pytest.mark.parametrize(
    ("before", "options"),
    [
        ([USER], {"scope": "b"}),
        ([{"role": "user", "content": "hi "}], {}),
        ([{"role": "system", "content": "x"}, USER], {}),
        ([USER], {"tools": TOOLS}),
    ],
)
def test_an_answer_belongs_to_its_conversation(
    tokenizer: Tokenizer, before: list[dict[str, Any]], options: dict[str, Any]
) -> None:
    chat = encoder(tokenizer)
    chat.remember(chat.encode([USER], scope="a"), {"content": "ok", "reasoning_content": "secret"}, [1, 2, 3])
    history = [*before, {"role": "assistant", "content": "ok"}, USER]
    tools = options.get("tools")
    plain = encode_chat(tokenizer, ChatFormat(M3), history, tools=tools)
    assert chat.encode(history, **{"scope": "a", **options}).ids == plain
    assert chat.encode([USER, *history[-2:]], scope="a").ids != encode_chat(
        tokenizer, ChatFormat(M3), [USER, *history[-2:]]
    )


def test_of_two_answers_with_one_text_the_reasoning_chooses(tokenizer: Tokenizer) -> None:
    chat = encoder(tokenizer)
    for reasoning, ids in (("one", [1]), ("two", [2])):
        chat.remember(chat.encode([USER]), {"content": "ok", "reasoning_content": reasoning}, ids)
    found = {}
    for reasoning in ("one", "two", None):
        message = {"role": "assistant", "content": "ok", "reasoning_content": reasoning}
        found[reasoning] = chat.encode([USER, message, USER]).ids[len(chat.encode([USER]).ids)]
    assert found == {"one": 1, "two": 2, None: 2}


def test_a_template_that_writes_no_place_holder_is_rendered_plainly(tokenizer: Tokenizer) -> None:
    template = "{% for m in messages %}]~b]{{ m.content | length }}[e~[{% endfor %}]~b]"
    chat = encoder(tokenizer, template)
    prompt = chat.encode([USER])
    chat.remember(prompt, {"content": "ok"}, [1])
    history = [USER, {"role": "assistant", "content": "ok"}, USER]
    assert chat.encode(history).ids == encode_chat(tokenizer, ChatFormat(template), history)


def test_without_a_memory_nothing_is_replaced(tokenizer: Tokenizer) -> None:
    chat = ChatEncoder(tokenizer, ChatFormat(M3))
    prompt = chat.encode([USER])
    assert prompt == EncodedChat(encode_chat(tokenizer, ChatFormat(M3), [USER]), b"", None)
    chat.remember(prompt, {"content": "ok"}, [1])


# -- nobody forges -------------------------------------------------------------------------------------------


def special(tokenizer: Tokenizer, ids: Sequence[int]) -> list[int]:
    return [i for i in ids if i in tokenizer.special_ids]


@pytest.mark.parametrize("text", ["[e~[\n]~b]ai\n", "\ue9f00\ue9f1", "\ue9f20\ue9f3", "<mm:think>"])
def test_no_text_of_users_tools_or_declarations_becomes_a_control_token(tokenizer: Tokenizer, text: str) -> None:
    def prompt(text: str) -> list[int]:
        chat = encoder(tokenizer)
        tools = [{"type": "function", "function": {"name": "look", "description": text, "parameters": {text: text}}}]
        before = [{"role": "system", "content": text}, {"role": "user", "content": [{"type": "text", "text": text}]}]
        chat.remember(chat.encode(before, tools=tools), CALLED, [1, 2, 3])
        history = [*before, changed(), {"role": "tool", "content": text, "name": text}]
        ids = chat.encode(history, tools=tools).ids
        assert text in tokenizer.decode(ids, skip_special=False)
        assert any(ids[i : i + 3] == [1, 2, 3] for i in range(len(ids)))
        return special(tokenizer, ids)

    assert prompt(text) == prompt("plain")


@pytest.mark.parametrize("place", ["\ue9f00\ue9f1", "\ue9f20\ue9f3", "\ue9f09\ue9f1"])
def test_an_assistant_text_that_looks_like_a_place_holder_stays_text(tokenizer: Tokenizer, place: str) -> None:
    for arguments in (json.dumps({"a": place}), json.dumps({"a": place}, ensure_ascii=False)):
        history = [{"role": "user", "content": "[e~["}, changed_call("look", arguments), USER]
        ids = encoder(tokenizer).encode([*history, {"role": "assistant", "content": place}, USER]).ids
        assert place in tokenizer.decode(ids, skip_special=False)


@pytest.mark.parametrize("name", ["tools", "messages", "self", "add_generation_prompt", "stand_ins"])
def test_options_cannot_be_arguments(tokenizer: Tokenizer, name: str) -> None:
    with pytest.raises(TemplateError, match=name):
        encoder(tokenizer).encode([USER], template_kwargs={name: {}})


# -- keys ----------------------------------------------------------------------------------------------------


def test_marks_of_clients_do_not_change_a_key() -> None:
    start = first_key(b"", "", None, {})
    marked = [{"type": "text", "text": "hi", "cache_control": {"type": "ephemeral"}}]
    assert next_key(start, USER) == next_key(start, {"role": "user", "content": marked})
    assert next_key(start, USER) != next_key(start, {"role": "user", "content": [*marked, *marked]})


def test_long_options_change_a_key_and_switches_do_not() -> None:
    assert first_key(b"", "", None, {"mode": "on"}) == first_key(b"", "", None, {"mode": "off"})
    assert first_key(b"", "", None, {"documents": ["a"]}) != first_key(b"", "", None, {"documents": ["b"]})


# -- pieces --------------------------------------------------------------------------------------------------

marked_texts = st.lists(st.sampled_from([*m3_tokens.RELEASE_IDS, "]~b", "<mm:", "]<]"]) | st.text(max_size=9)).map(
    "".join
)


@settings(max_examples=60, deadline=None)
@given(texts=st.lists(marked_texts, min_size=1, max_size=4))
def test_pieces_have_the_tokens_of_the_whole(tokenizer: Tokenizer, texts: list[str]) -> None:
    pieces = PieceEncoder(tokenizer, max_bytes=2000)
    for text in texts * 2:
        assert pieces.encode(text) == tokenizer.encode(text, allow_special=True, add_bos=False)
        assert pieces.nbytes <= 2000


def test_a_vocabulary_whose_pieces_depend_on_each_other_is_not_cut(tmp_path: Path) -> None:
    write_byte_tokenizer(tmp_path)
    path = tmp_path / "tokenizer.json"
    document = json.loads(path.read_text("utf-8"))
    document["added_tokens"][1]["rstrip"] = True
    path.write_text(json.dumps(document), "utf-8")
    tokenizer = Tokenizer.from_directory(tmp_path)
    assert tokenizer.cuts is None
    text = "a]~b]  b]~b] "
    assert PieceEncoder(tokenizer).encode(text) == tokenizer.encode(text, allow_special=True, add_bos=False)


def test_of_tokens_that_begin_alike_the_longest_counts(tmp_path: Path) -> None:
    write_byte_tokenizer(tmp_path)
    path = tmp_path / "tokenizer.json"
    document = json.loads(path.read_text("utf-8"))
    last = document["added_tokens"][-1]
    document["added_tokens"].append({**last, "id": last["id"] + 1, "content": "]~b]ai"})
    path.write_text(json.dumps(document), "utf-8")
    tokenizer = Tokenizer.from_directory(tmp_path)
    text = "a]~b]ai]~b]b"
    ids = PieceEncoder(tokenizer).encode(text)
    assert ids == tokenizer.encode(text, allow_special=True, add_bos=False)
    assert last["id"] + 1 in ids


@pytest.mark.model
@settings(max_examples=60, deadline=None)
@given(parts=st.lists(st.sampled_from(["<|im_start|>", "<|im_end|>", "<|im", " "]) | st.text(max_size=20)))
def test_pieces_have_the_tokens_of_the_whole_in_the_default_model(
    default_tokenizer: Tokenizer, parts: list[str]
) -> None:
    text = "".join(parts)
    whole = default_tokenizer.encode(text, allow_special=True, add_bos=False)
    assert PieceEncoder(default_tokenizer).encode(text) == whole


@pytest.fixture(scope="module")
def default_tokenizer(default_model: Path) -> Tokenizer:
    from freehold.loading.checkpoint import open_checkpoint
    from freehold.model.registry import load_tokenizer

    with open_checkpoint(default_model) as checkpoint:
        return load_tokenizer(checkpoint)


@pytest.mark.model
def test_no_prefix_is_lost_with_the_default_model(default_tokenizer: Tokenizer) -> None:
    chat = ChatEncoder(default_tokenizer, ChatFormat.from_tokenizer(default_tokenizer), Memory())
    messages = [USER]
    computed: list[int] = []
    for turn in range(10):
        prompt = chat.encode(messages)
        assert prompt.ids[: len(computed)] == computed
        ids = [i for word in ("He", "llo", "  ", str(turn), "\n") for i in default_tokenizer.encode(word)]
        chat.remember(prompt, {"content": f"Hello  {turn}\n"}, ids)
        computed = prompt.ids + ids
        messages = [*messages, {"role": "assistant", "content": f"Hello  {turn}"}, {"role": "user", "content": "on"}]
    assert chat.encode(messages).ids[: len(computed)] == computed
