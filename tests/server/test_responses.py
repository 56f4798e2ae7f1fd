"""What a Responses request becomes, what it is refused for, and what a response repeats of it."""

from __future__ import annotations

import asyncio
import itertools
import json
import logging

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from freehold.core.conversation import JsonAnswer
from freehold.core.errors import RequestError, UnsupportedFieldError
from freehold.core.logprobs import TokenLogprobs
from freehold.model.chat import ChatFormat, built_in_template
from freehold.server.app import create_app
from freehold.server.responses.freeform import FreeformInput, freeform_arguments
from freehold.server.responses.wire import ResponsesRequest
from freehold.server.responses.wire_items import InputMessage
from freehold.server.sealed_reasoning import open_reasoning, seal_reasoning
from freehold.server.wire import parse_request
from support.fake_backend import FakeBackend, FakeStream, Script

FUNCTION = {"type": "function", "name": "f", "parameters": {"type": "object"}}
CUSTOM = {"type": "custom", "name": "p", "description": "Patches."}
CALL = {"type": "function_call", "call_id": "c1", "name": "f", "arguments": "{}"}
OUTPUT = {"type": "function_call_output", "call_id": "c1", "output": "done"}


@pytest.fixture
def respond(ask):
    """`respond(backend, **fields)` asks for a response; the default input is "hi"."""

    def post(backend, **fields):
        return ask(create_app(backend)).post("/v1/responses", {"model": "fake/model", "input": "hi", **fields})

    return post


@pytest.fixture
def conversation(respond):
    """`conversation(**fields)`: what a request becomes."""

    def parse(**fields):
        backend = FakeBackend()
        response = respond(backend, **fields)
        assert response.status_code == 200, response.text
        return backend.conversations[0]

    return parse


# --- messages ------------------------------------------------------------------------------------------------


def test_instructions_and_leading_system_messages_are_one_system_message(conversation):
    items = [
        {"role": "developer", "content": "Be kind."},
        {
            "role": "system",
            "content": [{"type": "input_text", "text": "Be "}, {"type": "input_text", "text": "short."}],
        },
        {"role": "user", "content": "hi"},
    ]
    assert conversation(instructions="Be good.", input=items).messages == [
        {"role": "system", "content": "Be good.\n\nBe kind.\n\nBe short."},
        {"role": "user", "content": "hi"},
    ]


def test_a_later_system_message_is_told_to_the_model_as_a_marked_message(conversation):
    items = [{"role": "user", "content": "hi"}, {"role": "developer", "content": "New rule."}]
    assert conversation(input=items).messages[1:] == [
        {"role": "user", "content": "<developer>\nNew rule.\n</developer>"}
    ]


def test_what_is_said_between_a_call_and_its_output_moves_behind_the_output(conversation):
    items = [{"role": "user", "content": "go"}, CALL, {"role": "developer", "content": "wait"}, OUTPUT]
    assert [m["role"] for m in conversation(input=items).messages] == ["user", "assistant", "tool", "user"]


def test_items_of_one_answer_are_one_message_and_a_new_answer_is_a_new_one(conversation):
    reasoning = {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "r"}]}
    said = {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "a"}]}
    answers = conversation(input=[reasoning, said, reasoning, said, said]).messages
    first = {"role": "assistant", "content": "a", "reasoning_content": "r"}
    assert answers == [first, first, {"role": "assistant", "content": "a"}]


def test_a_late_output_stands_behind_its_call(conversation):
    items = [CALL, {"role": "assistant", "content": "a"}, {"role": "assistant", "content": "b"}, OUTPUT]
    assert [m["role"] for m in conversation(input=items).messages] == ["assistant", "tool", "assistant"]


def test_outputs_stand_in_the_order_of_their_calls(conversation):
    calls = [{**CALL, "call_id": name} for name in "abc"]
    outputs = [{**OUTPUT, "call_id": name, "output": name} for name in "cab"]
    messages = conversation(input=[*calls, *outputs]).messages
    assert [message["tool_call_id"] for message in messages[1:]] == ["a", "b", "c"]


@pytest.mark.parametrize("arguments", ['{"a": ', "[1]", "no", '"x"', "null", "[" * 100_000])
def test_broken_arguments_do_not_end_a_session(conversation, arguments):
    """They stay as they are, so that an answer of our own is recognised; the chat format shows them to the model."""
    (message,) = conversation(input=[{**CALL, "arguments": arguments}]).messages
    assert message["tool_calls"][0]["function"]["arguments"] == arguments
    chat = ChatFormat("{{ messages[0].tool_calls[0].function.arguments.broken_arguments }}")
    assert chat.render([message]) == arguments


@pytest.mark.parametrize(
    ("name", "sent"), [("a b<c>", "a_b_c_"), ("", "unnamed"), ("x-y", "x-y"), ("x" * 200, "x" * 64)]
)
def test_improper_names_of_called_functions_do_not_end_a_session(conversation, name, sent):
    (message,) = conversation(input=[{**CALL, "name": name}]).messages
    assert message["tool_calls"][0]["function"]["name"] == sent


M3_FORMAT = ChatFormat(built_in_template("minimax_m3"))
ITEMS = st.one_of(
    st.sampled_from(["user", "system", "developer", "assistant"]).map(lambda role: {"role": role, "content": role}),
    st.sampled_from(["{}", '{"a": 1}', '{"a', "[]"]).map(lambda text: {**CALL, "arguments": text}),
    st.just({"type": "custom_tool_call", "call_id": "c1", "name": "p", "input": "x"}),
    st.just({"type": "reasoning", "summary": [], "encrypted_content": seal_reasoning("why")}),
    st.just(OUTPUT),
)


@given(st.lists(ITEMS, min_size=1, max_size=8))
@settings(max_examples=100, deadline=None)
def test_any_history_is_one_that_the_template_of_minimax_m3_takes(items):
    """But for what is refused by its place: an output without its call, and two calls with one id."""
    request = parse_request(ResponsesRequest, {"model": "m", "input": items, "instructions": "Be good."})
    messages, refused = [], None
    try:
        messages = request.conversation().messages
    except RequestError as error:
        refused = error.field
    if refused is not None:
        assert refused.endswith(".call_id")
        return
    assert [message["role"] for message in messages].count("system") == 1
    said = sum(item.get("role") == "user" for item in items)
    assert sum(message["role"] == "user" and message["content"] == "user" for message in messages) == said
    M3_FORMAT.render(messages)


# --- reasoning -----------------------------------------------------------------------------------------------


@given(st.text())
def test_sealed_reasoning_opens(text):
    assert open_reasoning(seal_reasoning(text)) == text


def test_reasoning_comes_back_from_what_is_there(conversation):
    sealed = {"type": "reasoning", "summary": [], "encrypted_content": seal_reasoning("sealed")}
    assert conversation(input=[sealed]).messages[0]["reasoning_content"] == "sealed"
    plain = {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "plain"}]}
    assert conversation(input=[plain]).messages[0]["reasoning_content"] == "plain"
    foreign = {"type": "reasoning", "summary": [{"type": "summary_text", "text": "sum"}], "encrypted_content": "gAAAA"}
    assert conversation(input=[foreign]).messages[0]["reasoning_content"] == "sum"


@pytest.mark.parametrize("sealed", ["freehold-reasoning.2.aGk=", "freehold-reasoning.1.a", "freehold-reasoning.1./w=="])
def test_damaged_reasoning_is_refused(respond, sealed):
    response = respond(FakeBackend(), input=[{"type": "reasoning", "encrypted_content": sealed}])
    assert (response.status_code, response.json()["error"]["param"]) == (400, "input[0].encrypted_content")


@pytest.mark.parametrize(
    ("effort", "thinking"),
    [("none", "disabled"), ("minimal", "adaptive"), ("medium", "adaptive"), ("xhigh", "enabled"), (None, None)],
)
def test_an_effort_is_a_mode_of_thinking(conversation, effort, thinking):
    assert conversation(reasoning={"effort": effort, "summary": "auto"}).thinking == thinking


def test_an_effort_that_the_model_cannot_make_is_answered_with_null(respond):
    class NoReasoning(FakeBackend):
        def prepare_chat(self, conversation, *, client):
            if conversation.thinking is not None:
                raise UnsupportedFieldError("this model cannot reason", field="thinking")
            return super().prepare_chat(conversation, client=client)

    response = respond(NoReasoning(), reasoning={"effort": "high"})
    assert (response.status_code, response.json()["reasoning"]) == (200, {"effort": None, "summary": None})
    assert respond(FakeBackend(), reasoning={"effort": "high"}).json()["reasoning"]["effort"] == "high"


def test_what_else_the_model_cannot_do_is_refused_once(respond):
    class NoTools(FakeBackend):
        def prepare_chat(self, conversation, *, client):
            self.conversations.append(conversation)
            raise UnsupportedFieldError("this model cannot call tools", field="tools")

    backend = NoTools()
    response = respond(backend, reasoning={"effort": "high"}, tools=[FUNCTION])
    assert (response.status_code, response.json()["error"]["param"]) == (400, "tools")
    assert len(backend.conversations) == 1


# --- tools ---------------------------------------------------------------------------------------------------


def test_functions_and_custom_tools_are_declared_to_the_model(conversation):
    custom = {**CUSTOM, "format": {"type": "grammar", "syntax": "lark", "definition": 'start: "x"'}}
    use = conversation(tools=[FUNCTION, custom], parallel_tool_calls=False).tool_use
    function, stand_in = use.tools
    assert function == {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
    assert stand_in["function"]["description"] == "Patches."
    assert 'start: "x"' in stand_in["function"]["parameters"]["properties"]["input"]["description"]
    assert (use.choice, use.only, use.parallel) == ("auto", None, False)


@pytest.mark.parametrize(
    ("choice", "names", "mode", "only"),
    [
        ("none", ["f", "p"], "none", None),
        ("required", ["f", "p"], "required", None),
        ({"type": "function", "name": "f"}, ["f", "p"], "required", "f"),
        ({"type": "custom", "name": "p"}, ["f", "p"], "required", "p"),
        (
            {"type": "allowed_tools", "mode": "required", "tools": [{"type": "custom", "name": "p"}]},
            ["p"], "required", None,
        ),
        (
            {"type": "allowed_tools", "mode": "auto",
             "tools": [{"type": "web_search"}, {"type": "function", "name": "f"}]},
            ["f"], "auto", None,
        ),
    ],
)  # fmt: skip
def test_choices_of_tools(conversation, choice, names, mode, only):
    use = conversation(tools=[FUNCTION, CUSTOM], tool_choice=choice).tool_use
    assert ([tool["function"]["name"] for tool in use.tools], use.choice, use.only) == (names, mode, only)


HOSTED = ["web_search", "file_search", "local_shell", "mcp", "image_generation", "code_interpreter", "computer",
          "apply_patch", "shell", "namespace", "tool_search", "something_new"]  # fmt: skip


@pytest.mark.parametrize("kind", HOSTED)
def test_hosted_tools_are_left_out_and_the_log_says_so(respond, kind, caplog):
    backend = FakeBackend()
    with caplog.at_level(logging.INFO, "freehold.server"):
        response = respond(backend, tools=[{"type": kind, "anything": {"a": 1}}, FUNCTION])
    assert [tool["name"] for tool in response.json()["tools"]] == ["f"]
    assert len(backend.conversations[0].tool_use.tools) == 1
    assert kind in caplog.text


def test_tools_are_echoed_as_the_api_has_them(respond):
    tools = respond(FakeBackend(), tools=[FUNCTION, CUSTOM]).json()["tools"]
    assert tools == [
        {"type": "function", "name": "f", "description": None, "parameters": {"type": "object"}, "strict": None},
        {"type": "custom", "name": "p", "description": "Patches.", "format": {"type": "text"}},
    ]


@given(st.text(), st.booleans(), st.lists(st.integers(0, 60), max_size=4))
def test_free_text_comes_out_of_a_call_s_arguments_in_any_pieces(text, ascii_only, cuts):
    text = text.encode(errors="replace").decode()
    arguments = json.dumps({"input": text}, ensure_ascii=ascii_only)
    reader = FreeformInput()
    ends = [0, *sorted(cuts), len(arguments)]
    pieces = [reader.feed(arguments[a:b]) for a, b in itertools.pairwise(ends)]
    assert "".join([*pieces, reader.end()]) == reader.text == text
    assert json.loads(freeform_arguments(text)) == {"input": text}


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ('{"input": "a", "b": 2}', "a"),
        ('{"b": 2, "input": "a"}', "a"),
        ('{"patch": "a"}', "a"),
        ('"a"', "a"),
        ("{}", "{}"),
        ('{"input": 3}', '{"input": 3}'),
        ('{"in put": "x"}', "x"),
        ('{"input": "\\ud83d', ""),
        ('{"input": "\\ud83d"}', "\N{REPLACEMENT CHARACTER}"),
        ('{"inp', ""),
        ("", ""),
    ],
)
def test_arguments_of_other_forms(arguments, text):
    for size in (1, 100):
        reader = FreeformInput()
        for start in range(0, len(arguments), size):
            reader.feed(arguments[start : start + size])
        reader.end()
        assert reader.text == text


# --- other fields --------------------------------------------------------------------------------------------


def test_what_codex_sends_is_accepted(respond):
    items = [
        {"type": "message", "role": "developer", "content": [{"type": "input_text", "text": "<permissions>"}]},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "hi"}],
         "internal_chat_message_metadata_passthrough": {"turn_id": "t"}},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "I look."}],
         "phase": "commentary"},
        {"type": "reasoning", "summary": [], "encrypted_content": None},
        {**CALL, "namespace": None},
        OUTPUT,
        {"type": "custom_tool_call", "status": "completed", "call_id": "c2", "name": "p", "input": "*** Begin Patch"},
        {"type": "custom_tool_call_output", "call_id": "c2", "output": "ok"},
    ]  # fmt: skip
    response = respond(
        FakeBackend(),
        instructions="You are Codex.",
        input=items,
        tools=[FUNCTION, {**CUSTOM, "format": {"type": "text"}}, {"type": "web_search", "external_web_access": False},
               {"type": "namespace", "name": "mcp", "description": "", "tools": []}],
        tool_choice="auto",
        parallel_tool_calls=False,
        reasoning={"effort": "medium", "summary": "auto", "context": "all_turns"},
        store=False,
        include=["reasoning.encrypted_content"],
        prompt_cache_key="thread",
        text={"verbosity": "low"},
        service_tier="priority",
        client_metadata={"x-codex-installation-id": "i"},
    )  # fmt: skip
    assert response.status_code == 200, response.text


def test_nothing_is_stored_whatever_a_client_asks(respond):
    assert respond(FakeBackend(), store=True).json()["store"] is False


def test_formats_of_text(conversation):
    schema = {"type": "object"}
    assert conversation(text={"format": {"type": "text"}}).json_answer is None
    assert conversation(text={"format": {"type": "json_object"}}).json_answer == JsonAnswer()
    wanted = {"type": "json_schema", "name": "n", "schema": schema, "strict": True}
    answer = conversation(text={"format": wanted}).json_answer
    assert answer == JsonAnswer(schema)
    # A refusal of the schema names the field that this API has.
    assert answer.where == "text.format.schema"


def test_sampling_fields_reach_the_engine_and_come_back(respond):
    backend = FakeBackend()
    body = respond(
        backend, temperature=0.5, top_p=0.9, max_output_tokens=2, top_k=3, seed=7, priority=4, user="u"
    ).json()
    params = backend.streams[0].params
    assert (params.temperature, params.top_p, params.max_tokens, params.top_k, params.seed) == (0.5, 0.9, 2, 3, 7)
    assert (backend.streams[0].priority, backend.streams[0].client) == (4, ("host 127.0.0.1", "user u"))
    assert (body["temperature"], body["top_p"], body["max_output_tokens"], body["user"]) == (0.5, 0.9, 2, "u")
    assert (body["status"], body["output"][0]["status"]) == ("incomplete", "incomplete")


def test_logprobs_are_those_of_the_text(respond, monkeypatch):
    events = FakeStream.__aiter__

    async def with_logprobs(stream):
        async for event in events(stream):
            if hasattr(event, "token_id"):
                event = type(event)(event.request_id, event.token_id, event.text, TokenLogprobs(-0.5, ((97, -0.5),)))
            yield event

    monkeypatch.setattr(FakeStream, "__aiter__", with_logprobs)
    backend = FakeBackend(Script([b"a", b"b"]))
    fields = {"include": ["message.output_text.logprobs"], "top_logprobs": 1}
    (part,) = respond(backend, **fields).json()["output"][0]["content"]
    top = {"token": "a", "logprob": -0.5, "bytes": [97]}
    assert part["logprobs"] == [
        {**top, "top_logprobs": [top]},
        {**top, "token": "b", "bytes": [98], "top_logprobs": [top]},
    ]
    assert backend.streams[0].params.logprobs == 1
    text = respond(backend, stream=True, **fields).text
    deltas = [json.loads(line[6:]) for line in text.split("\n") if '"response.output_text.delta"' in line[:60]]
    short = {"token": "a", "logprob": -0.5}
    assert [delta["logprobs"] for delta in deltas] == [
        [{**short, "top_logprobs": [short]}], [{**short, "token": "b", "top_logprobs": [short]}],
    ]  # fmt: skip


REFUSED = [
    ({"previous_response_id": "resp_1"}, "previous_response_id"),
    ({"conversation": "conv_1"}, "conversation"),
    ({"prompt": {"id": "pmpt_1"}}, "prompt"),
    ({"background": True}, "background"),
    ({"truncation": "auto"}, "truncation"),
    ({"max_tool_calls": 3}, "max_tool_calls"),
    ({"context_management": [{"type": "compaction"}]}, "context_management"),
    ({"input": [{"type": "item_reference", "id": "msg_1"}]}, "input[0].type"),
    ({"input": [{"type": "web_search_call", "id": "ws_1"}]}, "input[0].type"),
    ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "data:"}]}]},
     "input[0].content[0]"),
    ({"input": [{"role": "user", "content": [{"type": "input_image", "file_id": "file_1"}]}]},
     "input[0].content[0].file_id"),
    ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "data:", "detail": "low"}]}]},
     "input[0].content[0].detail"),
    ({"input": [{"role": "system", "content": [{"type": "input_image", "image_url": "data:"}]}]}, "input[0].content"),
    ({"input": [{"role": "user", "content": [{"type": "input_file", "file_id": "file_1"}]}]},
     "input[0].content[0].type"),
    ({"input": [{"role": "user", "content": "a"}, {**CALL, "namespace": "mcp"}]}, "input[1].namespace"),
    ({"input": [{"role": "user", "content": "a", "colour": 1}]}, "input[0].colour"),
    ({"tool_choice": {"type": "web_search_preview"}}, "tool_choice.type"),
    ({"tools": [{**FUNCTION, "async": True}]}, "tools[0].async"),
    ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools[0].function"),
    ({"tools": [FUNCTION], "tool_choice": {"type": "function", "function": {"name": "f"}}}, "tool_choice.function"),
    ({"reasoning": {"context": "current_turn"}}, "reasoning.context"),
    ({"max_tokens": 3}, "max_tokens"),
    ({"stream": True, "stream_options": {"include_usage": True}}, "stream_options.include_usage"),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "param"), REFUSED, ids=lambda value: value if isinstance(value, str) else "")
def test_what_is_not_implemented_is_refused_by_name(respond, fields, param):
    backend = FakeBackend()
    response = respond(backend, **fields)
    error = response.json()["error"]
    assert (response.status_code, error["param"], error["code"]) == (400, param, "unsupported_parameter")
    assert backend.streams == []


WRONG = [
    ({"input": []}, "input"),
    ({"input": 3}, "input"),
    ({"input": [3]}, "input[0]"),
    ({"input": [{"content": "a"}]}, "input[0].role"),
    ({"input": [OUTPUT]}, "input[0].call_id"),
    ({"input": [CALL, CALL]}, "input[1].call_id"),
    ({"input": [CALL, OUTPUT, OUTPUT]}, "input[2].call_id"),
    ({"tools": [{"type": "funtion", "name": "f"}]}, "tools[0].type"),
    ({"tools": [{"type": "web_search"}, {"type": "function", "name": "a b"}]}, "tools[1].name"),
    ({"tools": [FUNCTION, FUNCTION]}, "tools"),
    ({"tools": [FUNCTION, {**CUSTOM, "name": "f"}]}, "tools"),
    ({"tools": [{**CUSTOM, "format": {"type": "grammar", "syntax": "lark"}}]}, "tools[0].format.definition"),
    ({"tool_choice": "required"}, "tool_choice"),
    ({"tool_choice": {"type": "custom", "name": "f"}, "tools": [FUNCTION]}, "tool_choice"),
    ({"tool_choice": "any"}, "tool_choice"),
    ({"text": {"format": {"type": "json_schema", "name": "n"}}}, "text.format.schema"),
    ({"text": {"format": {"type": "json_object", "schema": {}}}}, "text.format.schema"),
    ({"reasoning": {"effort": "huge"}}, "reasoning.effort"),
    ({"include": ["everything"]}, "include[0]"),
    ({"max_output_tokens": 0}, "max_output_tokens"),
    ({"temperature": -1}, "temperature"),
    ({"top_logprobs": 21}, "top_logprobs"),
    ({"metadata": {"a": 1}}, "metadata.a"),
    ({"metadata": {str(n): "" for n in range(17)}}, "metadata"),
    ({"stream_options": {}}, "stream_options"),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "param"), WRONG, ids=lambda value: value if isinstance(value, str) else "")
def test_wrong_values_are_refused_by_name(respond, fields, param):
    response = respond(FakeBackend(), **fields)
    assert (response.status_code, response.json()["error"]["param"]) == (400, param), response.text


def test_unknown_fields_are_refused_with_the_near_match_unless_null(respond):
    assert "'instructions'" in respond(FakeBackend(), instruction="x").json()["error"]["message"]
    assert respond(FakeBackend(), instruction=None, input=[{"role": "user", "content": "x", "colour": None}]).is_success


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=6)
    | st.sampled_from(["function", "custom", "message", "reasoning", "user", "auto", "allowed_tools", "text"]),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(
        st.sampled_from(["type", "role", "content", "name", "call_id", "output", "tools", "text", "arguments", "x"]),
        inner, max_size=4),
    max_leaves=8,
)  # fmt: skip
NAMES = st.sampled_from([*ResponsesRequest.model_fields, *ResponsesRequest.OFF, *InputMessage.model_fields, "x" * 200])
BACKEND = FakeBackend(capacity=1 << 30)
APP = create_app(BACKEND)


@given(st.dictionaries(NAMES, JSON_VALUES, max_size=5))
@settings(max_examples=100, deadline=None)
def test_any_body_is_answered_or_refused_in_the_api_s_form(fields):
    async def post():
        async with httpx.AsyncClient(transport=httpx.ASGITransport(APP), base_url="http://localhost") as client:
            return await client.post("/v1/responses", json={"model": "fake/model", "input": "hi", **fields})

    response = asyncio.run(post())
    assert response.status_code in (200, 400, 404)
    if response.status_code != 200:
        assert set(response.json()["error"]) == {"message", "type", "param", "code"}


def test_the_api_is_described(ask):
    paths = ask(create_app(FakeBackend())).get("/openapi.json").json()["paths"]
    schema = paths["/v1/responses"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert schema == {"$ref": "#/components/schemas/ResponsesRequest"}
