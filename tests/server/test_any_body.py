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
from freehold.server.wire_chat import ChatMessage, ChatRequest
from freehold.server.wire_openai import CompletionRequest
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
    names = st.sampled_from([*kind.model_fields, *kind.OFF, "other", "x" * 200])
    noise = st.dictionaries(names, JSON_VALUES, max_size=4)
    good = st.fixed_dictionaries({"model": st.just("fake/model"), **usual})
    return JSON_VALUES | st.tuples(good, noise).map(lambda pair: {**pair[0], **pair[1]})


def assert_no_failure(path, body):
    async def ask():
        transport = httpx.ASGITransport(create_app(FakeBackend()))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            content = json.dumps(body).encode()
            return await client.post(path, content=content, headers={"Content-Type": "application/json"})

    response = asyncio.run(ask())
    assert response.status_code in (200, 400, 404)
    if response.status_code != 200:
        assert set(response.json()["error"]) == {"message", "type", "param", "code"}


@given(bodies(ChatRequest, messages=st.lists(MESSAGES, min_size=1, max_size=3)))
@settings(max_examples=150, deadline=None)
def test_chats(body):
    assert_no_failure("/v1/chat/completions", body)


@given(bodies(CompletionRequest, prompt=st.text(min_size=1, max_size=8)))
@settings(max_examples=150, deadline=None)
def test_completions(body):
    assert_no_failure("/v1/completions", body)


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
