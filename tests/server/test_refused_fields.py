from __future__ import annotations

import pytest

from freehold.server.app import create_app
from support.fake_backend import FakeBackend

UNSUPPORTED_IN_CHATS = {
    "audio": {"voice": "x", "format": "wav"},
    "functions": [{"name": "f"}],
    "metadata": {"a": "b"},
    "modalities": ["text", "audio"],
    "prediction": {"type": "content", "content": "x"},
    "store": True,
    "verbosity": "low",
    "web_search_options": {},
}

OFF_IN_CHATS = [
    {"tools": []},
    {"tools": None, "tool_choice": None, "functions": None},
    {"tool_choice": "none"},
    {"tool_choice": "auto"},
    {"n": 1},
    {"n": None, "stream": None, "stream_options": None, "stop": None, "seed": None, "temperature": None},
    {"logprobs": False, "top_logprobs": None},
    {"response_format": {"type": "text"}},
    {"store": False, "metadata": None},
    {"user": "someone", "safety_identifier": "someone", "prompt_cache_key": "some"},
    {"modalities": ["text"]},
    {"stop": []},
    {"max_tokens": 5, "max_completion_tokens": 5},
]


def assert_refused(response, param, code=None):
    error = response.json()["error"]
    assert response.status_code == 400, response.text
    assert set(error) == {"message", "type", "param", "code"}
    assert (error["param"], error["type"]) == (param, "invalid_request_error")
    assert param.rpartition(".")[2].rpartition("[")[0] in error["message"] or param in error["message"]
    if code:
        assert error["code"] == code


@pytest.mark.parametrize(("name", "value"), UNSUPPORTED_IN_CHATS.items())
def test_what_chats_do_not_implement_is_refused_by_name(ask, name, value):
    backend = FakeBackend()
    assert_refused(ask(create_app(backend)).chat(**{name: value}), name, "unsupported_parameter")
    assert backend.streams == []


@pytest.mark.parametrize("fields", OFF_IN_CHATS, ids=lambda fields: "-".join(fields))
def test_values_that_mean_off_are_accepted(ask, fields):
    assert ask(create_app(FakeBackend())).chat(**fields).status_code == 200


@pytest.mark.parametrize(("name", "value"), [("best_of", 2), ("suffix", "x")])
def test_what_completions_do_not_implement_is_refused_by_name(ask, name, value):
    assert_refused(ask(create_app(FakeBackend())).complete(**{name: value}), name, "unsupported_parameter")


def test_off_values_of_completions_are_accepted(ask):
    off = {"echo": False, "best_of": 1, "logprobs": None, "suffix": None}
    assert ask(create_app(FakeBackend())).complete(**off).status_code == 200


def test_off_is_judged_by_type_too(ask):
    """1 == True in Python, not on the wire."""
    assert_refused(ask(create_app(FakeBackend())).complete(best_of=True), "best_of")
    assert_refused(ask(create_app(FakeBackend())).chat(store=0), "store")


NAMED = {"type": "function", "function": {"name": "f"}}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": NAMED}, "tool_choice"),
        ({"tools": [NAMED, NAMED]}, "tools"),
        ({"tools": [{"type": "custom"}]}, "tools[0].type"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name"),
        ({"tools": [{"type": "function", "function": {"name": "<f>"}}]}, "tools[0].function.name"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"reasoning_effort": "huge"}, "reasoning_effort"),
        ({"reasoning_effort": "low", "thinking": {"type": "disabled"}}, "thinking"),
    ],
)
def test_fields_that_contradict_each_other_are_named(ask, fields, param):
    response = ask(create_app(FakeBackend())).chat(**fields)
    assert (response.status_code, response.json()["error"]["param"]) == (400, param)


def test_unknown_fields_are_refused_with_the_near_match(ask):
    response = ask(create_app(FakeBackend())).chat(max_token=3)
    assert_refused(response, "max_token", "unsupported_parameter")
    assert "'max_tokens'" in response.json()["error"]["message"]


@pytest.mark.parametrize(
    ("message", "param"),
    [
        ({"role": "user"}, "messages[1].content"),
        ({"role": "user", "content": None}, "messages[1].content"),
        ({"role": "user", "content": 3}, "messages[1].content"),
        ({"role": "tool", "content": "x"}, "messages[1].tool_call_id"),
        ({"role": "tool", "content": "x", "tool_call_id": ""}, "messages[1].tool_call_id"),
        ({"role": "user", "content": "x", "tool_call_id": "1"}, "messages[1].tool_call_id"),
        ({"role": "user", "content": "x", "reasoning_content": "y"}, "messages[1].reasoning_content"),
        ({"role": "assistant", "content": None}, "messages[1].content"),
        ({"role": "user", "content": "x", "colour": 1}, "messages[1].colour"),
        ({"role": "assistant", "content": "x", "tool_calls": [{}]}, "messages[1].tool_calls[0].function"),
        ({"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:"}}]},
         "messages[1].content[0]"),
        ({"role": "user", "content": [{"type": "image_url", "image_url": "data:"}]},
         "messages[1].content[0].image_url"),
        ({"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:", "detail": "low"}}]},
         "messages[1].content[0].image_url.detail"),
        ({"role": "user", "content": [{"type": "video_url", "video_url": {"url": "data:", "fps": 3}}]},
         "messages[1].content[0].video_url.fps"),
        ({"role": "assistant", "content": [{"type": "image_url", "image_url": {"url": "data:"}}]},
         "messages[1].content"),
        ({"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "input_audio"}]},
         "messages[1].content[1].type"),
        ({"role": "user", "content": [{"type": "text"}]}, "messages[1].content[0].text"),
        ({"role": "user", "content": ["a"]}, "messages[1].content[0]"),
        ("x", "messages[1]"),
    ],
)  # fmt: skip
def test_messages_are_refused_with_their_place(ask, message, param):
    response = ask(create_app(FakeBackend())).chat(messages=[{"role": "user", "content": "a"}, message])
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (400, param)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"temperature": "0.5"}, "temperature"),
        ({"temperature": -1}, "temperature"),
        ({"temperature": 10**400}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"top_k": 0}, "top_k"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": True}, "max_tokens"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"max_completion_tokens": 0}, "max_completion_tokens"),
        ({"max_tokens": 4, "max_completion_tokens": 5}, "max_completion_tokens"),
        ({"n": 17}, "n"),
        ({"n": 0}, "n"),
        ({"seed": 2**63}, "seed"),
        ({"stop": 3}, "stop"),
        ({"stop": ["a", 3]}, "stop[1]"),
        ({"stop": ["a"] * 17}, "stop"),
        ({"stop": ""}, "stop"),
        ({"stop_token_ids": ["a"]}, "stop_token_ids[0]"),
        ({"logit_bias": {"x": 1}}, "logit_bias"),
        ({"logit_bias": {"1": 101}}, "logit_bias.1"),
        ({"logit_bias": {"1": "x"}}, "logit_bias.1"),
        ({"logit_bias": [1]}, "logit_bias"),
        ({"presence_penalty": 3}, "presence_penalty"),
        ({"stream": "yes"}, "stream"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"stream": True, "stream_options": {"foo": True}}, "stream_options.foo"),
        ({"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs.messages"),
        ({"chat_template_kwargs": []}, "chat_template_kwargs"),
        ({"messages": []}, "messages"),
        ({"messages": "hi"}, "messages"),
        ({"model": None}, "model"),
    ],
)
def test_wrong_values_are_refused_by_name(ask, fields, param):
    response = ask(create_app(FakeBackend())).chat(**fields)
    assert (response.status_code, response.json()["error"]["param"]) == (400, param)


def test_missing_fields_are_named(ask):
    asker = ask(create_app(FakeBackend()))
    response = asker.post("/v1/chat/completions", {"model": "fake/model"})
    assert (response.status_code, response.json()["error"]["param"]) == (400, "messages")
    response = asker.post("/v1/completions", {"prompt": "x"})
    assert (response.status_code, response.json()["error"]["param"]) == (400, "model")


def test_the_model_must_be_the_served_one_or_an_alias(ask):
    asker = ask(create_app(FakeBackend(), aliases=["other"]))
    response = asker.chat(model="gpt-4o")
    error = response.json()["error"]
    assert (response.status_code, error["code"], error["param"]) == (404, "model_not_found", "model")
    assert "'gpt-4o'" in error["message"]
    assert "'fake/model'" in error["message"]
    body = asker.chat(model="other").json()
    assert body["model"] == "fake/model"
