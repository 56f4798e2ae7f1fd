"""What requests of the Messages API become, what is tolerated in them, and what is refused by name."""

from __future__ import annotations

import asyncio
import json
import logging

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from freehold.core.conversation import JsonAnswer
from freehold.core.errors import RequestError
from freehold.model.chat_visuals import take_visuals
from freehold.server.app import create_app
from freehold.server.messages.wire import CountTokensRequest, MessagesRequest
from support.anthropic_types import checked_count, checked_error, checked_message
from support.fake_backend import FakeBackend

TOOL = {"name": "f", "input_schema": {"type": "object"}}
SEARCH = {"type": "web_search_20250305", "name": "web_search", "max_uses": 5}
USE = {"type": "tool_use", "id": "t1", "name": "f", "input": {"a": 1}}
PIXEL = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AA=="}}
LINE = "x-anthropic-billing-header: cc_version=2.1.37; cch=fa690;"


def body(**fields):
    return {"model": "fake/model", "max_tokens": 9, "messages": [{"role": "user", "content": "hi"}], **fields}


def post(asker, path="/v1/messages", **fields):
    return asker.post(path, body(**fields))


def user(*content):
    return {"role": "user", "content": list(content)}


def assistant(*content):
    return {"role": "assistant", "content": list(content)}


def text(value, **more):
    return {"type": "text", "text": value, **more}


def result(tool_use_id, **more):
    return {"type": "tool_result", "tool_use_id": tool_use_id, **more}


def chat_of(*messages, **fields):
    """The messages of the conversation that a request becomes, as (role, content), for a model that sees nothing."""
    request = MessagesRequest.model_validate(body(messages=list(messages), **fields))
    taken, _ = take_visuals(None, request.conversation().messages, local=False)
    return [(message["role"], message["content"]) for message in taken]


# --- conversations ------------------------------------------------------------------------------------------


def test_texts_and_blocks_of_text_are_the_same():
    marked = text("be brief", cache_control={"type": "ephemeral"})
    blocks = chat_of(user(text("hi")), system=[marked])
    assert blocks == chat_of({"role": "user", "content": "hi"}, system="be brief")
    assert blocks == [("system", "be brief"), ("user", "hi")]


def test_the_line_that_changes_with_every_request_is_no_part_of_the_prompt():
    system = [text(LINE), text("You are a program."), text(" "), text("Be brief.")]
    assert chat_of(user(text("hi")), system=system)[0] == ("system", "You are a program.\n\nBe brief.")
    assert chat_of(user(text("hi")), system=[text(LINE)]) == [("user", "hi")]
    assert chat_of(user(text("hi")), system=[text(f"{LINE}\nrest")])[0] == ("system", "rest")
    assert chat_of(user(text(LINE))) == [("user", LINE)]


def test_leading_system_messages_are_one_and_later_ones_join_the_user_s_turn():
    got = chat_of(
        {"role": "system", "content": "B"},
        user(text("hi")),
        {"role": "system", "content": [text("C")]},
        assistant(text("yes")),
        {"role": "system", "content": "D"},
        user(text("go")),
        system="A",
    )
    assert got == [
        ("system", "A\n\nB"),
        ("user", "hi\n\n<system-reminder>\nC\n</system-reminder>"),
        ("assistant", "yes"),
        ("user", "<system-reminder>\nD\n</system-reminder>\n\ngo"),
    ]


def test_a_longer_conversation_begins_like_the_shorter_one():
    """Or else nothing of it would be found in the cache."""
    turns = [
        user(text("hi")),
        {"role": "system", "content": "C"},
        assistant(text("I ask"), USE),
        user(result("t1", content="r"), text("go on")),
        {"role": "system", "content": "D"},
        assistant(text("done")),
        user(text("thanks")),
    ]
    whole = chat_of(*turns)
    for end in (2, 5):
        shorter = chat_of(*turns[:end])
        assert whole[: len(shorter)] == shorter


def test_turns_of_one_side_are_one_turn():
    got = chat_of(user(text("a")), user(text("b")), assistant(text("c")), assistant(text("d")), user(text("e")))
    assert got == [("user", "a\n\nb"), ("assistant", "cd"), ("user", "e")]


def test_results_come_first_in_the_order_of_the_calls_and_every_call_has_one():
    calls = [dict(USE, id=f"t{number}") for number in (1, 2, 3)]
    got = chat_of(
        user(text("hi")),
        assistant(*calls),
        user(text("look"), result("t3", content=[text("x"), text("y")]), result("t1", content="bad", is_error=True)),
    )
    missing = ("tool", "There is no result: the call was not carried out.")
    assert got[2:] == [("tool", "Error: bad"), missing, ("tool", "x\n\ny"), ("user", "look")]


def test_calls_and_reasoning_of_the_assistant():
    turn = assistant(
        {"type": "thinking", "thinking": "hm", "signature": "of another server"},
        {"type": "redacted_thinking", "data": "xyz"},
        text("Well"),
        USE,
        {"type": "thinking", "thinking": ", oh", "signature": ""},
        text("."),
    )
    request = MessagesRequest.model_validate(body(messages=[user(text("hi")), turn, user(result("t1"))]))
    assert request.conversation().messages[1:] == [
        {
            "role": "assistant",
            "content": "Well.",
            "reasoning_content": "hm, oh",
            "tool_calls": [{"id": "t1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}],
        },
        {"role": "tool", "tool_call_id": "t1", "content": ""},
    ]


def test_documents_and_search_results_are_text():
    plain = {"type": "text", "media_type": "text/plain", "data": "words"}
    parts = {"type": "content", "content": [text("a"), text("b")]}
    found = {"type": "search_result", "source": "s", "title": "t", "content": [text("x")]}
    got = chat_of(
        user(
            {"type": "document", "source": plain, "title": "T", "context": None, "citations": {"enabled": False}},
            {"type": "document", "source": parts},
            {"type": "document", "source": {"type": "content", "content": "c"}},
            found,
        )
    )
    assert got[0][1].split("\n\n<") == [
        "<document>\ntitle: T\nwords\n</document>",
        "document>\na\n\nb\n</document>",
        "document>\nc\n</document>",
        "search_result>\ntitle: t\nsource: s\nx\n</search_result>",
    ]


def test_a_model_is_told_of_what_it_cannot_see_in_a_result():
    content = [text("look:"), PIXEL, {"type": "tool_reference", "tool_name": "g"}]
    got = chat_of(user(text("hi")), assistant(USE), user(result("t1", content=content)))
    assert got[2] == ("tool", "look:\n\n[an image was left out here: this model reads text alone]\n\n[tool: g]")


def test_empty_content_is_an_empty_message():
    assert chat_of(user(text("a")), assistant(), user()) == [("user", "a"), ("assistant", ""), ("user", "")]


# --- how to answer ------------------------------------------------------------------------------------------


def conversation(**fields):
    return MessagesRequest.model_validate(body(**fields)).conversation()


def test_sampling_fields_reach_the_engine():
    given = {"temperature": 1, "top_p": 0.5, "top_k": 3, "min_p": 0.1, "seed": 4}
    asked = conversation(stop_sequences=["a", "b"], metadata={"user_id": "me", "other": 1}, priority=2, **given)
    (params,) = asked.params
    assert {name: getattr(params, name) for name in given} == given
    assert (params.max_tokens, params.stop, asked.user, asked.priority) == (9, ("a", "b"), "me", 2)


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        (None, ("auto", None, True)),
        ({"type": "auto"}, ("auto", None, True)),
        ({"type": "auto", "disable_parallel_tool_use": True}, ("auto", None, False)),
        ({"type": "any"}, ("required", None, True)),
        ({"type": "none"}, ("none", None, True)),
        ({"type": "tool", "name": "f"}, ("required", "f", True)),
    ],
)
def test_tools_are_declared_as_functions(choice, expected):
    tool = {**TOOL, "description": "d", "type": "custom", "cache_control": {"type": "ephemeral"}, "strict": True}
    asked = conversation(tools=[tool], tool_choice=choice).tool_use
    function = {"name": "f", "description": "d", "parameters": {"type": "object"}}
    assert asked.tools == ({"type": "function", "function": function},)
    assert (asked.choice, asked.only, asked.parallel) == expected


ADAPTIVE = {"type": "adaptive"}


@pytest.mark.parametrize(
    ("thinking", "effort", "expected"),
    [
        (None, None, None),
        ({"type": "enabled", "budget_tokens": 1024}, None, "enabled"),
        ({"type": "disabled"}, "max", "disabled"),
        (ADAPTIVE, None, "adaptive"),
        (ADAPTIVE, "high", "adaptive"),
        (ADAPTIVE, "max", "enabled"),
        ({"type": "between_tools"}, None, "adaptive"),
        (None, "low", "adaptive"),
        (None, "xhigh", "enabled"),
    ],
)
def test_thinking_and_effort(thinking, effort, expected):
    assert conversation(thinking=thinking, output_config={"effort": effort}).thinking == expected


@pytest.mark.parametrize("where", ["output_config", "output_format"])
def test_an_answer_may_have_to_be_json(where):
    wanted = {"type": "json_schema", "schema": {"type": "object"}}
    fields = {where: {"format": wanted} if where == "output_config" else wanted}
    answer = conversation(**fields).json_answer
    assert answer == JsonAnswer({"type": "object"})
    # A refusal of the schema names the field that this API has.
    assert answer.where == {"output_config": "output_config.format.schema"}.get(where, "output_format.schema")
    assert conversation().json_answer is None


class Unthinking(FakeBackend):
    """A model that cannot be told how much to reason."""

    def prepare_chat(self, conversation, *, client):
        if conversation.thinking is not None:
            raise RequestError("this model does not reason", field="thinking")
        if conversation.json_answer is not None:
            raise RequestError("no grammar covers this", field="response_format")
        return super().prepare_chat(conversation, client=client)


@pytest.mark.parametrize("path", ["/v1/messages", "/v1/messages/count_tokens"])
def test_a_model_that_does_not_reason_answers_all_the_same(ask, path):
    asker = ask(create_app(Unthinking()))
    assert post(asker, path, thinking=ADAPTIVE).status_code == 200
    refused = post(asker, path, thinking=ADAPTIVE, output_format={"type": "json_schema", "schema": {}})
    assert (refused.status_code, "no grammar" in refused.text) == (400, True)


# --- tolerance ----------------------------------------------------------------------------------------------

CLAUDE_CODE = {
    "system": [text(LINE), text("You are a program.", cache_control={"type": "ephemeral", "ttl": "1h"})],
    "messages": [
        user(text("<system-reminder>\ncontext\n</system-reminder>"), text("hi", cache_control={"type": "ephemeral"})),
        {"role": "system", "content": [text("The agents are:", cache_control={"type": "ephemeral"})]},
    ],
    "tools": [{**TOOL, "eager_input_streaming": True, "defer_loading": False, "input_examples": [], "strict": False}],
    "metadata": {"user_id": '{"device_id": "1", "session_id": "2"}'},
    "max_tokens": 32000,
    "thinking": {"type": "adaptive", "display": "omitted"},
    "context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
    "output_config": {"effort": "high"},
    "service_tier": "auto",
    "container": None,
    "mcp_servers": [],
    "betas": ["interleaved-thinking-2025-05-14"],
    "temperature": 1,
    "stream": False,
}


def test_what_claude_code_sends_is_answered(ask):
    asker = ask(create_app(FakeBackend()), **{"anthropic-beta": "claude-code-20250219", "x-api-key": "none"})
    response = post(asker, "/v1/messages?beta=true", **CLAUDE_CODE)
    assert response.status_code == 200, response.text
    assert response.headers["request-id"] == response.headers["x-request-id"]
    checked_message(response.json())
    asked = {name: CLAUDE_CODE[name] for name in ("system", "messages", "tools", "thinking")}
    counted = asker.post("/v1/messages/count_tokens?beta=true", {"model": "fake/model", **asked})
    usage = response.json()["usage"]
    assert checked_count(counted.json()) == usage["input_tokens"] + usage["cache_read_input_tokens"]


def test_fields_without_effect_are_told_once(ask, caplog):
    asker = ask(create_app(FakeBackend()))
    with caplog.at_level(logging.WARNING, logger="freehold.server"):
        for _ in range(2):
            assert post(asker, logprobs=True, cache_control={}, tools=[SEARCH]).status_code == 200
    told = [record.getMessage() for record in caplog.records if record.name == "freehold.server"]
    assert len(told) == 2
    assert "'logprobs'" in told[0]
    assert "web_search_20250305" in told[1]


def test_tools_that_a_server_would_run_are_not_declared():
    assert [t["function"]["name"] for t in conversation(tools=[SEARCH, TOOL]).tool_use.tools] == ["f"]


def test_counting_takes_a_conversation_that_ends_with_the_assistant(ask):
    messages = [user(text("hi")), assistant(text("yes"))]
    response = ask(create_app(FakeBackend())).post(
        "/v1/messages/count_tokens", {"model": "fake/model", "messages": messages}
    )
    assert checked_count(response.json()) == len("user: hi\nassistant: yes\n")


# --- refusals -----------------------------------------------------------------------------------------------

PDF = {"type": "document", "source": {"type": "base64", "media_type": "application/pdf", "data": "AA=="}}


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"messages": [user(PIXEL)]}, "messages[0].content[0]: this model takes no images"),
        ({"messages": [user(text("a")), assistant(PIXEL)]}, "messages[1].content[0].type: images"),
        ({"messages": [user({"type": "image", "source": {"type": "url", "url": "https://example.org/x.png"}})]},
         "messages[0].content[0].source.type: sources of type 'url'"),
        ({"messages": [user({"type": "image"})]}, "messages[0].content[0].source is missing"),
        ({"messages": [user(text("a"), PDF)]}, "messages[0].content[1].source.type: sources of type 'base64'"),
        ({"messages": [user({"type": "mystery"})]}, "messages[0].content[0].type: content blocks of type 'mystery'"),
        ({"messages": [user(USE)]}, "messages[0].content[0].type: blocks of type 'tool_use'"),
        ({"messages": [user(text(1))]}, "messages[0].content[0].text"),
        ({"messages": [user("a")]}, "messages[0].content[0]"),
        ({"messages": [{"role": "tool", "content": "a"}]}, "messages[0].role"),
        ({"messages": [{"role": "user"}]}, "messages[0].content is missing"),
        ({"messages": [user(text("a")), assistant(text("b"))]}, "messages[1].role: this model does not support"),
        ({"messages": [user(result("t9"))]}, "messages[0].content[0].tool_use_id is 't9'"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "system", "content": "a"}]}, "messages: it has no message of the user"),
        ({"messages": [user(text("a")), assistant({"type": "thinking", "thinking": "",
            "signature": "freehold-reasoning.1.?"}), user(text("b"))]}, "messages[1].content[0].signature"),
        ({"max_tokens": None}, "max_tokens"),
        ({"max_tokens": 0}, "max_tokens: 0"),
        ({"temperature": 1.5}, "temperature"),
        ({"top_k": 0}, "top_k is 0"),
        ({"stop_sequences": "x"}, "stop_sequences"),
        ({"stop_sequences": [""]}, "stop_sequences[0]"),
        ({"stop_sequences": ["a"] * 17}, "stop_sequences: it has 17 items"),
        ({"stream": 1}, "stream"),
        ({"system": 1}, "system"),
        ({"metadata": "me"}, "metadata"),
        ({"mcp_servers": [{"url": "https://example.org"}]}, "mcp_servers: this server connects to no others"),
        ({"thinking": {"type": "much"}}, "thinking.type"),
        ({"output_config": {"effort": "huge"}}, "output_config.effort"),
        ({"output_format": {"type": "json_schema"}}, "output_format.schema is missing"),
        ({"tools": [{"name": "f"}]}, "tools[0].input_schema"),
        ({"tools": [{"type": "bash_20250124", "name": "bash"}]}, "tools[0].type: tools of type 'bash_20250124'"),
        ({"tools": [{"type": "new_20270101", "name": "n"}]}, "tools[0].type: tools of type 'new_20270101'"),
        ({"tools": [TOOL, TOOL]}, "tools: the function 'f' is declared twice"),
        ({"tool_choice": {"type": "any"}}, "tool_choice: a tool is required"),
        ({"tools": [TOOL], "tool_choice": {"type": "tool", "name": "g"}}, "tool_choice: there is no function 'g'"),
        ({"tools": [TOOL], "tool_choice": {"type": "tool"}}, "tool_choice.name: it is missing"),
        ({"tools": [SEARCH], "tool_choice": {"type": "tool", "name": "web_search"}}, "tool_choice: 'web_search' would"),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_refused_by_name(ask, fields, named):
    backend = FakeBackend()
    response = post(ask(create_app(backend)), **fields)
    assert response.status_code == 400, response.text
    error = checked_error(response.json()).error
    assert (error.type, backend.streams) == ("invalid_request_error", [])
    assert error.message.startswith(named), error.message


def test_refusals_before_a_route_have_the_same_form(ask):
    asker = ask(create_app(FakeBackend()))
    for response in (asker.get("/v1/messages"), asker.request("POST", "/v1/messages", content=b"{", headers=JSON)):
        assert response.status_code in (400, 405)
        assert checked_error(response.json()).request_id == response.headers["request-id"]
    elsewhere = asker.post("/v1/messagesx", {})
    assert set(elsewhere.json()["error"]) == {"message", "type", "param", "code"}


JSON = {"Content-Type": "application/json"}


# --- any body -----------------------------------------------------------------------------------------------

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=6)
    | st.sampled_from(["text", "user", "fake/model", "tool", "tool_use", "tool_result", "document", "image"]),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(
        st.sampled_from(["type", "text", "content", "source", "id", "name", "input", "role", "tool_use_id", "thinking",
                         "data", "title", "x"]),
        inner,
        max_size=4,
    ),
    max_leaves=8,
)  # fmt: skip
MESSAGES = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant", "system"]), "content": VALUES}), max_size=3
)
BODIES = VALUES | st.builds(
    lambda messages, noise: {**body(messages=messages), **noise},
    MESSAGES | st.just([{"role": "user", "content": "hi"}]),
    st.dictionaries(st.sampled_from([*MessagesRequest.model_fields, "other"]), VALUES, max_size=3),
)


APP = create_app(FakeBackend(capacity=10**6))


@given(BODIES, st.sampled_from(["/v1/messages", "/v1/messages/count_tokens"]))
@settings(max_examples=150, deadline=None)
def test_whatever_comes_the_answer_is_a_message_or_a_refusal(value, path):
    async def ask_it():
        transport = httpx.ASGITransport(APP)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return await client.post(path, content=json.dumps(value).encode(), headers=JSON)

    response = asyncio.run(ask_it())
    assert response.status_code in (200, 400, 404), response.text
    if response.status_code != 200:
        checked_error(response.json())
    elif path.endswith("count_tokens"):
        checked_count(response.json())
    elif response.headers["content-type"] == "application/json":
        checked_message(response.json())


MANY = [None] * 1000


@pytest.mark.parametrize(
    "fields",
    [
        {"messages": MANY},
        {"messages": [{"role": "user", "content": MANY}]},
        {"messages": [user(result("t", content=MANY))]},
        {"messages": [user({"type": "document", "source": {"type": "content", "content": MANY}})]},
        {"messages": [user({"type": "search_result", "source": "", "title": "", "content": MANY})]},
        {"system": MANY},
        {"tools": MANY[:500]},
        {"stop_sequences": MANY},
    ],
    ids=lambda fields: json.dumps(fields)[:60],
)
def test_errors_are_not_collected(fields):
    """Otherwise a few megabytes of zeros would become gigabytes of descriptions."""
    with pytest.raises(ValidationError) as refused:
        MessagesRequest.model_validate(body(**fields))
    assert refused.value.error_count() == 1


def test_the_description_of_the_api_names_both_paths(ask):
    schema = ask(create_app(FakeBackend())).get("/openapi.json").json()
    for path, model in (("/v1/messages", MessagesRequest), ("/v1/messages/count_tokens", CountTokensRequest)):
        reference = schema["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]["$ref"]
        assert reference == f"#/components/schemas/{model.__name__}"
        assert model.__name__ in schema["components"]["schemas"]
