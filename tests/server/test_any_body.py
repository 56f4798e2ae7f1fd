"""Whatever JSON comes, the answer is a status below 500, and a refusal has OpenAI's form."""

from __future__ import annotations

import asyncio
import json

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from freehold.server.app import create_app
from freehold.server.messages.wire import MessagesRequest
from freehold.server.openai.wire import CompletionRequest
from freehold.server.openai.wire_chat import ChatMessage, ChatRequest
from freehold.server.openai.wire_tokenize import DetokenizeRequest, TokenizeRequest
from freehold.server.openapi import BODIES
from freehold.server.operation.guards import OPEN_PATHS
from freehold.server.responses.wire import ResponsesRequest
from support.fake_backend import FakeBackend

JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-(10**400), 10**400)
    | st.floats(allow_nan=False)
    | st.text(max_size=8)
    | st.sampled_from(["text", "user", "fake/model"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)

MESSAGES = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "system", "tool", 1]), "content": st.text(max_size=8) | JSON_VALUES},
    optional={name: JSON_VALUES for name in (*ChatMessage.model_fields, *ChatMessage.OFF, "other")
              if name not in ("role", "content")},
)  # fmt: skip


def bodies(kind, **usual):
    names = st.sampled_from([*kind.model_fields, *getattr(kind, "OFF", ()), "other", "x" * 200])
    noise = st.dictionaries(names, JSON_VALUES, max_size=4)
    good = st.fixed_dictionaries({"model": st.just("fake/model"), **usual})
    return JSON_VALUES | st.tuples(good, noise).map(lambda pair: {**pair[0], **pair[1]})


APP = create_app(FakeBackend(capacity=1 << 30))
"""One application for all bodies: it takes longer to make than to ask."""
PATHS = sorted(BODIES)
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "BREW")


def send(method, path, content=b"", headers=()):
    async def ask():
        transport = httpx.ASGITransport(APP)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return await client.request(method, path, content=content, headers=list(headers))

    return asyncio.run(ask())


def assert_refused(path, response):
    """With a body in the form of the path's API."""
    body = response.json()
    if path.startswith("/v1/messages"):
        assert set(body) == {"type", "error", "request_id"}
        assert set(body["error"]) == {"type", "message"}
    else:
        assert set(body) == {"error"}
        assert set(body["error"]) == {"message", "type", "param", "code"}


def assert_no_failure(path, body):
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    response = send("POST", path, content, [("Content-Type", "application/json")])
    assert response.status_code in (200, 400, 404)
    if response.status_code != 200:
        assert_refused(path, response)


@given(bodies(ChatRequest, messages=st.lists(MESSAGES, min_size=1, max_size=3)))
@settings(max_examples=150, deadline=None)
def test_chats(body):
    assert_no_failure("/v1/chat/completions", body)


@given(bodies(CompletionRequest, prompt=st.text(min_size=1, max_size=8)))
@settings(max_examples=150, deadline=None)
def test_completions(body):
    assert_no_failure("/v1/completions", body)


@given(bodies(MessagesRequest, messages=st.lists(MESSAGES, min_size=1, max_size=3), max_tokens=st.just(5)))
@settings(max_examples=100, deadline=None)
@pytest.mark.parametrize("path", ["/v1/messages", "/v1/messages/count_tokens"])
def test_messages(path, body):
    assert_no_failure(path, body)


@given(bodies(ResponsesRequest, input=st.text(max_size=8) | st.lists(MESSAGES, max_size=3)))
@settings(max_examples=100, deadline=None)
@pytest.mark.parametrize("path", ["/v1/responses", "/v1/responses/input_tokens"])
def test_responses(path, body):
    assert_no_failure(path, body)


@given(bodies(TokenizeRequest, prompt=st.text(max_size=8)))
@settings(max_examples=50, deadline=None)
def test_tokenize(body):
    assert_no_failure("/v1/tokenize", body)


@given(bodies(DetokenizeRequest, tokens=st.lists(st.integers(-1, 2**40), max_size=4)))
@settings(max_examples=50, deadline=None)
def test_detokenize(body):
    assert_no_failure("/v1/detokenize", body)


# --- what is no JSON, or hardly -----------------------------------------------------------------------------

GOOD = b'{"model": "fake/model", "prompt": "hi", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 5}'
STRANGE = {
    "nothing": b"",
    "half": GOOD[:-9],
    "two": GOOD * 2,
    "not UTF-8": b'{"model": "\xff\xfe"}',
    "half a surrogate pair": b'{"model": "\\ud800"}',
    "a byte order mark": b"\xef\xbb\xbf" + GOOD,
    "UTF-16": GOOD.decode().encode("utf-16"),
    "NaN": b'{"model": "fake/model", "temperature": NaN}',
    "a number beyond all": b'{"model": "fake/model", "seed": 1' + b"0" * 5000 + b', "temperature": 1e99999}',
    "a number with many places": b'{"temperature": 0.' + b"1" * 50_000 + b"}",
    "deep lists": b"[" * 100_000 + b"]" * 100_000,
    "deep objects": b'{"messages": ' * 5_000 + b"1" + b"}" * 5_000,
    "deep in a field": b'{"model": "fake/model", "messages": [{"role": "user", "content": '
    + b"[" * 70
    + b"]" * 70
    + b"}]}",
    "a key twice": b'{"model": "other", ' + GOOD[1:],
    "a list": b"[" + GOOD + b"]",
    "a long key": b'{"' + b"k" * 1_000_000 + b'": 1}',
    "a null byte": b'{"model": "fake/model\x00"}',
}


@pytest.mark.parametrize("name", STRANGE)
@pytest.mark.parametrize("path", PATHS)
def test_strange_bodies(path, name):
    assert_no_failure(path, STRANGE[name])


@given(st.sampled_from(PATHS), st.integers(0, len(GOOD)), st.integers(0, len(GOOD)), st.binary(max_size=6))
@settings(max_examples=150, deadline=None)
def test_a_good_body_with_a_wrong_place(path, start, end, noise):
    assert_no_failure(path, GOOD[:start] + noise + GOOD[end:])


# --- around the body ----------------------------------------------------------------------------------------


@given(
    st.sampled_from(PATHS),
    st.sampled_from(["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "", "json"])
    | st.text("abc/;= \xff", max_size=20),
)
@settings(max_examples=60, deadline=None)
def test_bodies_of_another_type_are_refused(path, kind):
    response = send("POST", path, GOOD, [(b"Content-Type", kind.encode("latin-1"))])
    assert response.status_code == 415
    assert_refused(path, response)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("path", sorted(APP.openapi()["paths"]))
def test_methods_that_a_path_does_not_have(path, method):
    if method.lower() in APP.openapi()["paths"][path]:
        return
    if path == "/v1/responses/input_tokens" and method in ("GET", "DELETE"):
        return  # where it is the id of a response, of which there is none
    if path in OPEN_PATHS and method == "HEAD":
        return  # for probes; a description would say nothing of its own
    response = send(method, path.replace("{", "").replace("}", ""))
    assert response.status_code == 405
    assert response.headers["allow"]
    if method != "HEAD":
        assert_refused(path, response)


NAMES = st.text("abcdefghijklmnopqrstuvwxyz-", min_size=1, max_size=30).filter(lambda name: name != "host")
KNOWN = st.sampled_from(
    ["authorization", "x-api-key", "content-length", "transfer-encoding", "accept", "expect", "x-request-id", "origin",
     "anthropic-version", "anthropic-beta", "openai-organization", "x-forwarded-for", "accept-encoding", "range"]
)  # fmt: skip


@given(
    st.sampled_from(PATHS),
    st.lists(st.tuples(NAMES | KNOWN, st.text(st.characters(max_codepoint=255), max_size=50)), max_size=12),
)
@settings(max_examples=100, deadline=None)
def test_strange_headers(path, headers):
    """As they come out of the HTTP parser, which knows which bytes may stand in a header."""
    raw = [(name.encode(), value.encode("latin-1")) for name, value in headers]
    response = send("POST", path, GOOD, [*raw, (b"Content-Type", b"application/json")])
    assert response.status_code in (200, 400, 404, 415)
    if response.status_code != 200:
        assert_refused(path, response)


MANY = [None] * 1000


@pytest.mark.parametrize(
    "fields",
    [
        {"messages": MANY},
        {"messages": [dict.fromkeys(map(str, range(1000)))]},
        {"messages": [{"role": "user", "content": MANY}]},
        {"stop": MANY},
        {"stop_token_ids": MANY},
        {"logit_bias": dict.fromkeys(map(str, range(1000)))},
        {"stream_options": dict.fromkeys(map(str, range(1000)))},
        dict.fromkeys(map(str, range(1000))),
    ],
    ids=lambda fields: next(iter(fields)),
)
def test_errors_are_not_collected(fields):
    """Otherwise a few megabytes of zeros would become gigabytes of descriptions."""
    body = {"model": "fake/model", "messages": [{"role": "user", "content": "hi"}], **fields}
    with pytest.raises(ValidationError) as refused:
        ChatRequest.model_validate(body)
    assert refused.value.error_count() == 1
