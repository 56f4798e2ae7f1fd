"""Calls and results belong together by their ids: every API refuses the same histories, each in its own form."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from freehold.server.app import create_app
from support.fake_backend import FakeBackend

Step = tuple[str, str]
"""("call", id): a call of the assistant's turn; ("result", id); ("say", text): a message of the user."""


def as_chat(steps: list[Step]) -> tuple[str, dict[str, Any], Callable[[int], str]]:
    """One message for each step but calls, which are one message while they follow each other."""
    messages: list[dict[str, Any]] = [{"role": "user", "content": "hi"}]
    places = []
    for kind, value in steps:
        if kind == "call":
            if messages[-1]["role"] != "assistant":
                messages.append({"role": "assistant", "tool_calls": []})
            calls = messages[-1]["tool_calls"]
            calls.append({"id": value, "type": "function", "function": {"name": "f", "arguments": "{}"}})
            places.append(f"messages[{len(messages) - 1}].tool_calls[{len(calls) - 1}].id")
        elif kind == "result":
            messages.append({"role": "tool", "tool_call_id": value, "content": f"of {value}"})
            places.append(f"messages[{len(messages) - 1}].tool_call_id")
        else:
            messages.append({"role": "user", "content": value})
            places.append("")
    return "/v1/chat/completions", {"messages": messages}, places.__getitem__


def as_responses(steps: list[Step]) -> tuple[str, dict[str, Any], Callable[[int], str]]:
    items: list[dict[str, Any]] = [{"role": "user", "content": "hi"}]
    for kind, value in steps:
        if kind == "call":
            items.append({"type": "function_call", "call_id": value, "name": "f", "arguments": "{}"})
        elif kind == "result":
            items.append({"type": "function_call_output", "call_id": value, "output": f"of {value}"})
        else:
            items.append({"role": "user", "content": value})
    return "/v1/responses", {"input": items}, lambda step: f"input[{step + 1}].call_id"


def as_messages(steps: list[Step]) -> tuple[str, dict[str, Any], Callable[[int], str]]:
    messages: list[dict[str, Any]] = [{"role": "user", "content": "hi"}]
    places = []
    for kind, value in steps:
        role = "assistant" if kind == "call" else "user"
        block = {
            "call": {"type": "tool_use", "id": value, "name": "f", "input": {}},
            "result": {"type": "tool_result", "tool_use_id": value, "content": f"of {value}"},
            "say": {"type": "text", "text": value},
        }[kind]
        if messages[-1]["role"] != role or messages[-1]["content"] == "hi":
            messages.append({"role": role, "content": []})
        messages[-1]["content"].append(block)
        name = {"call": "id", "result": "tool_use_id", "say": ""}[kind]
        places.append(f"messages[{len(messages) - 1}].content[{len(messages[-1]['content']) - 1}].{name}")
    return "/v1/messages", {"messages": messages, "max_tokens": 4}, places.__getitem__


APIS = {"chat": as_chat, "responses": as_responses, "messages": as_messages}
A, B = ("call", "a"), ("call", "b")
GOT_A, GOT_B = ("result", "a"), ("result", "b")


@pytest.mark.parametrize("api", APIS)
@pytest.mark.parametrize(
    ("steps", "wrong", "why"),
    [
        ([GOT_A], 0, "no call with this id"),
        ([A, GOT_B], 1, "no call with this id"),
        ([A, GOT_A, GOT_A], 2, "has a result already"),
        ([A, B, GOT_B, GOT_A, GOT_B], 4, "has a result already"),
        ([A, A, GOT_A], 1, "another call of this turn has the same id"),
        ([A, B, A, GOT_A], 2, "another call of this turn has the same id"),
    ],
)
def test_what_does_not_belong_together_is_refused_by_its_place(
    ask: Any, api: str, steps: list[Step], wrong: int, why: str
) -> None:
    path, body, place_of = APIS[api](steps)
    response = ask(create_app(FakeBackend())).post(path, {"model": "fake/model", **body})
    error = response.json()["error"]
    assert response.status_code == 400
    assert error["type"] == "invalid_request_error"
    assert why in error["message"]
    assert error["message"].startswith(f"{place_of(wrong)} is '{steps[wrong][1]}'; ")
    assert api == "messages" or (error["param"], error["code"]) == (place_of(wrong), "invalid_value")


@pytest.mark.parametrize("api", APIS)
@pytest.mark.parametrize(
    "steps",
    [
        [A, GOT_A],
        [A, B, GOT_B, GOT_A, ("say", "so?")],
        [A, GOT_A, A, GOT_A],  # ids that begin anew with each turn
        [A, ("say", "never mind")],
    ],
)
def test_what_belongs_together_is_answered_and_results_stand_in_the_order_of_their_calls(
    ask: Any, api: str, steps: list[Step]
) -> None:
    backend = FakeBackend()
    path, body, _ = APIS[api](steps)
    assert ask(create_app(backend)).post(path, {"model": "fake/model", **body}).status_code == 200
    wanted = iter(value for kind, value in steps if kind == "call")
    results = [message["tool_call_id"] for message in backend.messages if message["role"] == "tool"]
    assert results == [value for value in wanted if ("result", value) in steps or api == "messages"]


def test_a_result_after_something_else_belongs_to_no_call_of_a_chat(ask: Any) -> None:
    path, body, _ = as_chat([A, ("say", "wait"), GOT_A])
    response = ask(create_app(FakeBackend())).post(path, {"model": "fake/model", **body})
    assert response.json()["error"]["param"] == "messages[3].tool_call_id"


def test_messages_to_tokenize_are_held_to_the_same(ask: Any) -> None:
    _, body, _ = as_chat([GOT_A])
    assert ask(create_app(FakeBackend())).post("/v1/tokenize", body).status_code == 400
