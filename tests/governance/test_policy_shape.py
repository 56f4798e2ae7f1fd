"""What is split over a body is put together, and what nobody knows in it is named as unknown."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest

from freehold.governance.policy.classes import DataClass
from freehold.governance.policy.classify import Classifier
from freehold.governance.policy.settings import read_settings

CARD = "4111111111111111"
GHP = "ghp_aB3dE5gH7jK9mN1pQ3sT5vW7yZ9bC1dE3fG5"
SETTINGS = """
[classes]
base = "public"
source-code = "off"
[[marker]]
name = "nightjar"
class = "proprietary"
texts = ["Project Nightjar"]
paths = ["src/billing/**"]
repositories = ["github.com/acme/core-*"]
"""
CLASSIFIER = Classifier(read_settings(SETTINGS))


def asked(**members: Any) -> dict[str, Any]:
    return {"model": "m", "messages": [{"role": "user", "content": "hi"}], **members}


def said(*messages: dict[str, Any]) -> dict[str, Any]:
    return {"model": "m", "messages": list(messages)}


def user(content: Any) -> dict[str, Any]:
    return said({"role": "user", "content": content})


def call(arguments: Any) -> dict[str, Any]:
    function = {"name": "f", "arguments": json.dumps(arguments)}
    return said({"role": "assistant", "tool_calls": [{"id": "1", "type": "function", "function": function}]})


def parts(*texts: str) -> dict[str, Any]:
    kept = {"type": "ephemeral", "ttl": "5m"}
    return user([{"type": "text", "text": text, "cache_control": kept} for text in texts])


def packed(text: str, width: int, between: str, encoding: str = "utf-8") -> dict[str, Any]:
    coded = base64.b64encode(text.encode(encoding)).decode()
    return user(f"run -enc {between.join(coded[i : i + width] for i in range(0, len(coded), width))}")


SPLIT: dict[str, tuple[str, Any]] = {
    "numbers in an array": ("payment-card", asked(metadata={"c": [4111, 1111, 1111, 1111]})),
    "numbers among others": ("payment-card", asked(metadata={"c": [12, 4111, 1111, 1111, 1111, 7]})),
    "numbers in arguments": ("payment-card", call({"c": [4111, 1111, 1111, 1111]})),
    "numbers in two members": ("payment-card", call({"a": 41111111, "b": 11111111})),
    "names of two members": ("payment-card", asked(metadata={"41111111": "", "11111111": ""})),
    "names in two objects": ("payment-card", asked(metadata=[{"41111111": 1}, {"11111111": 1}])),
    "two names": (
        "payment-card",
        said({"role": "user", "name": CARD[:8], "content": "a"}, {"role": "user", "name": CARD[8:], "content": "a"}),
    ),
    "parts with a time between": ("payment-card", parts(CARD[:8], CARD[8:])),
    "a token in parts with a time between": ("access-token", parts(GHP[:20], GHP[20:])),
    "a path in two members": ("marker:nightjar", call({"dir": "src/billing", "file": "a.py"})),
    "a repository in two members": ("marker:nightjar", call({"host": "github.com", "repo": "acme/core-x"})),
    "UTF-16 in base64": ("access-token", packed(f"card {GHP}", 1000, "", "utf-16-le")),
    "UTF-16 of the other order": ("access-token", packed(f"card {GHP}", 1000, "", "utf-16-be")),
    "short lines of base64": ("access-token", packed(f"tok {GHP}", 16, "\n")),
    "lines of 40": ("access-token", packed(f"the token is here {GHP}", 40, "\r\n")),
    "groups with spaces": ("access-token", packed(f"tok {GHP}", 16, " ")),
    "groups of eight": ("access-token", packed(f"the token is here {GHP}", 8, "  ")),
}  # fmt: skip


@pytest.mark.parametrize("case", SPLIT)
def test_what_is_split_is_put_together(case: str) -> None:
    kind, body = SPLIT[case]
    assert kind in CLASSIFIER.classify(body).findings


def test_what_is_split_over_headers_is_put_together() -> None:
    assert "payment-card" in CLASSIFIER.classify(asked(), extra=[CARD[:8], CARD[8:]]).findings
    assert "payment-card" in CLASSIFIER.classify(user(CARD[:8]), extra=[CARD[8:]]).findings


IMAGE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AAAA"}}
KINDS: list[tuple[str, Any]] = [
    ("reference", {"model": "m", "input": [{"id": "msg_1"}]}),
    ("reference", {"model": "m", "input": [{"type": None, "id": "msg_1"}]}),
    ("reference", said({"role": "assistant", "audio": {"id": "audio_1"}})),
    ("reference", user([{"type": "text", "text": "x", "file_ids": ["file-1"]}])),
    ("reference", asked(audio={"voice": "a", "id": "voice_1"})),
    ("hosted-tool", asked(tools=[{"type": "shell", "environment": {"type": "container_auto"}}])),
    ("hosted-tool", asked(tools=[{"type": "shell"}])),
    ("hosted-tool", asked(tools=[{"type": "computer_use_of_tomorrow"}])),
    ("hosted-tool", asked(tools=["web_search"])),
    ("hosted-tool", asked(tools=[{"type": "namespace", "name": "n", "tools": [{"type": "web_search"}]}])),
    ("image", user(IMAGE)),
    ("image", user([[IMAGE]])),
    ("image", user([{**IMAGE, "type": "Image"}])),
    ("image", user([{"type": "document", "source": {"type": "content", "content": [IMAGE]}}])),
    ("tokens", {"model": "m", "prompt": "a", "prompt_token_ids": [1, 2]}),
    ("stored", {"model": "m", "input": "x", "store": True}),
    ("stored", {"model": "m", "input": "x", "background": True}),
    ("unknown-field", asked(data_sources=[{"type": "azure_search"}])),
    ("unknown-field", asked(models=["other/x"])),
    ("unknown-field", asked(route="fallback")),
    ("unknown-field", asked(new=False)),
    ("unknown-field", asked(temperature={"new": 1})),
    ("unknown-field", asked(tools=[{"type": "function", "function": {"name": "f", "server": "x"}}])),
    ("unknown-field", user([{"type": "text", "text": "x", "attached": "f"}])),
    ("unknown-field", said({"role": "user", "content": "x", "attachments": []})),
    ("file", user([{"inline_data": {"data": "AAAA"}}])),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "body"), KINDS)
def test_what_nobody_knows_is_named(kind: str, body: Any) -> None:
    found = CLASSIFIER.classify(body)
    assert kind in found.findings
    assert found.data_class is DataClass.UNKNOWN


def test_its_class_is_the_operators() -> None:
    lowered = Classifier(read_settings(SETTINGS.replace("[classes]", '[classes]\nunknown-field = "general"')))
    assert lowered.classify(asked(route="x")).data_class is DataClass.GENERAL


USUAL = [
    asked(
        temperature=0.5,
        stop=["x"],
        stream=True,
        stream_options={"include_usage": True},
        seed=1,
        user="u",
        store=False,
        response_format={"type": "json_schema", "json_schema": {"name": "n", "schema": {"any": [{"thing": 1}]}}},
        tools=[
            {"type": "function", "function": {"name": "f", "parameters": {"properties": {"a": {}}}, "strict": True}}
        ],
        tool_choice={"type": "function", "function": {"name": "f"}},
        logit_bias={"12": -1},
        metadata={"a": "b"},
        reasoning_effort="low",
        parallel_tool_calls=False,
        max_completion_tokens=9,
        service_tier=None,
        new=None,
    ),
    call({"any": [{"thing": 1}]}),
    said({"role": "tool", "tool_call_id": "1", "content": [{"type": "text", "text": "x"}]}),
    {
        "model": "m",
        "max_tokens": 9,
        "thinking": {"type": "enabled", "budget_tokens": 1024},
        "metadata": {"user_id": "u"},
        "tools": [
            {
                "name": "f",
                "description": "d",
                "input_schema": {"type": "object"},
                "cache_control": {"type": "ephemeral"},
            },
            {"type": "bash_20250124", "name": "bash"},
        ],
        "messages": [
            {
                "role": "user",
                "content": [{"type": "text", "text": "x", "cache_control": {"type": "ephemeral", "ttl": "1h"}}],
            },
            {
                "role": "assistant",
                "content": [{"type": "tool_use", "id": "t", "name": "f", "input": {"any": {"thing": 1}}}],
            },
            {
                "role": "user",
                "content": [{"type": "tool_result", "tool_use_id": "t", "content": "x", "is_error": False}],
            },
        ],
        "output_config": {"effort": "low"},
    },
    {
        "model": "m",
        "store": False,
        "reasoning": {"effort": "low", "summary": "auto"},
        "include": [],
        "text": {"format": {"type": "text"}, "verbosity": "low"},
        "tools": [{"type": "function", "name": "f", "strict": True}],
        "input": [
            {"role": "user", "content": [{"type": "input_text", "text": "x"}]},
            {
                "type": "message",
                "id": "m",
                "role": "assistant",
                "status": "completed",
                "phase": "final_answer",
                "content": [{"type": "output_text", "text": "x", "annotations": []}],
            },
            {"type": "function_call", "id": "i", "call_id": "c", "name": "f", "arguments": "{}", "status": "completed"},
            {"type": "function_call_output", "call_id": "c", "output": "x"},
            {"type": "reasoning", "id": "r", "summary": [{"type": "summary_text", "text": "x"}]},
        ],
    },
]


@pytest.mark.parametrize("number", range(len(USUAL)))
def test_usual_requests_hold_nothing_unknown(number: int) -> None:
    assert dict(CLASSIFIER.classify(USUAL[number]).findings) == {}


def test_prose_is_no_base64() -> None:
    prose = (
        "Internationalisation and Localisation of applications, Version2 of IPv6Networks: see RfcIndex for details. "
    )
    assert dict(CLASSIFIER.classify(user(prose * 50)).findings) == {}
