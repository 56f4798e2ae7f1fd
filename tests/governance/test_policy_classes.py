"""All of a body is looked through; a class is only ever raised; whatever fails makes it unknown."""

from __future__ import annotations

import base64
import random
import string
import time
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from freehold.core.errors import ConfigError
from freehold.governance.policy.classes import DataClass
from freehold.governance.policy.classify import Classifier
from freehold.governance.policy.contents import contents
from freehold.governance.policy.detector import Detector
from freehold.governance.policy.settings import ClassSettings, read_settings

CARD = "4111 1111 1111 1111"
STRICT = Classifier(ClassSettings())


def kinds(body: Any) -> dict[str, int]:
    return dict(contents(body).kinds)


def user(content: Any) -> dict[str, Any]:
    return {"model": "m", "messages": [{"role": "user", "content": content}]}


PLACES: dict[str, Any] = {
    "a message": user(CARD),
    "a part": user([{"type": "text", "text": CARD}]),
    "a system prompt of OpenAI's": {"messages": [{"role": "system", "content": CARD}]},
    "a system prompt of Anthropic's": {"system": [{"type": "text", "text": CARD}], "messages": []},
    "instructions": {"instructions": CARD, "input": "x"},
    "a tool's description": {"tools": [{"type": "function", "function": {"name": "f", "description": CARD}}]},
    "a tool's schema": {"tools": [{"name": "f", "input_schema": {"properties": {"a": {"enum": [CARD]}}}}]},
    "the name of a property": {"tools": [{"name": "f", "input_schema": {"properties": {CARD: {}}}}]},
    "arguments as text": {
        "messages": [
            {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": f'{{"n": "{CARD}"}}'}}]}
        ]
    },
    "arguments as an object": user([{"type": "tool_use", "id": "t", "name": "f", "input": {"n": CARD}}]),
    "arguments as a number": user([{"type": "tool_use", "id": "t", "name": "f", "input": {"n": 4111111111111111}}]),
    "a tool's result": {"messages": [{"role": "tool", "tool_call_id": "t", "content": CARD}]},
    "a result of Anthropic's": user(
        [{"type": "tool_result", "tool_use_id": "t", "content": [{"type": "text", "text": CARD}]}]
    ),
    "an item of Responses": {"input": [{"type": "function_call_output", "call_id": "c", "output": CARD}]},
    "a prompt": {"prompt": ["x", CARD]},
    "reasoning": {"messages": [{"role": "assistant", "reasoning_content": CARD, "content": "x"}]},
    "thinking": user([{"type": "thinking", "thinking": CARD}]),
    "metadata": {"metadata": {"note": CARD}, **user("x")},
    "a user's name": {"user": CARD, **user("x")},
    "a file's name": user([{"type": "file", "file": {"filename": f"{CARD}.pdf", "file_data": "x"}}]),
    "a stop sequence": {"stop": [CARD], **user("x")},
    "a field that nobody knows": {"x_new": {"deep": [[{"er": CARD}]]}, **user("x")},
    "a name of a field": {"x": {CARD: 1}},
    "a predicted output": {"prediction": {"type": "content", "content": CARD}, **user("x")},
}


@pytest.mark.parametrize("place", PLACES)
def test_every_place_is_looked_at(place: str) -> None:
    assert "payment-card" in STRICT.classify(PLACES[place]).findings


def test_what_leaves_beside_the_body_is_looked_at() -> None:
    assert "payment-card" in STRICT.classify({}, extra=["2023-06-01", CARD]).findings


PICTURE = "data:image/png;base64,iVBORw0KGgo="
KINDS: list[tuple[str, Any]] = [
    ("image", user([{"type": "image_url", "image_url": {"url": "https://a.b/c.png"}}])),
    ("image", user([{"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AAAA"}}])),
    ("image", {"input": [{"role": "user", "content": [{"type": "input_image", "file_id": "f"}]}]}),
    ("image", user(f"![x]({PICTURE})")),
    ("image", user([{"type": "tool_result", "content": [{"type": "image", "source": {}}]}])),
    ("image", user([{"type": "video_url", "video_url": {"url": "x"}}])),
    ("image", {"x": {"image_url": "x"}}),
    ("file", user([{"type": "input_audio", "input_audio": {"data": "AAAA"}}])),
    ("file", user([{"type": "document", "source": {"type": "base64", "data": "AAAA"}}])),
    ("file", user([{"type": "a-kind-of-tomorrow", "x": 1}])),
    ("tokens", {"prompt": [1, 2, 3]}),
    ("tokens", {"prompt": [[1, 2], [3]]}),
    ("reference", {"previous_response_id": "resp_1", "input": "x"}),
    ("reference", {"conversation": "conv_1", "input": "x"}),
    ("reference", {"prompt": {"id": "pmpt_1"}, "input": "x"}),
    ("reference", {"input": [{"type": "item_reference", "id": "x"}]}),
    ("sealed", {"input": [{"type": "reasoning", "encrypted_content": "gAAA"}]}),
    ("sealed", user([{"type": "redacted_thinking", "data": "x"}])),
    ("hosted-tool", {"tools": [{"type": "web_search"}], "input": "x"}),
    ("hosted-tool", {"tools": [{"type": "web_search_20250305", "name": "web_search"}]}),
    ("hosted-tool", {"mcp_servers": [{"url": "https://x"}]}),
    ("system-prompt", {"messages": [{"role": "developer", "content": "x"}]}),
    ("system-prompt", {"system": "x"}),
    ("system-prompt", {"instructions": "x"}),
]


@pytest.mark.parametrize(("kind", "body"), KINDS)
def test_what_cannot_be_read_is_named(kind: str, body: Any) -> None:
    assert kinds(body).get(kind, 0) >= 1
    assert STRICT.classify(body).data_class >= DataClass.PROPRIETARY


def test_plain_requests_hold_nothing_else() -> None:
    tools = [{"type": "function", "function": {"name": "f"}}, {"name": "g", "input_schema": {}}, {"type": "custom"}]
    assert kinds({**user([{"type": "text", "text": "x"}]), "tools": tools, "stream": True, "max_tokens": 5}) == {}
    assert kinds({"system": "", "instructions": None, **user("x")}) == {}


def test_long_base64_is_unpacked_or_counts_as_a_file() -> None:
    noise = base64.b64encode(random.Random(1).randbytes(4000)).decode()
    assert STRICT.classify(user(noise)).findings == {"file": 1}
    plain = "a plain text of some length. " * 10_000
    assert STRICT.classify(user(base64.b64encode(plain.encode()).decode())).findings == {}
    hidden = plain[:100_000] + CARD + plain[100_000:]
    for packed in (base64.b64encode(hidden.encode()), base64.encodebytes(hidden.encode())):
        assert STRICT.classify(user(packed.decode())).findings == {"payment-card": 1}


@given(st.sampled_from(list(DataClass)), st.sampled_from(list(DataClass)), st.booleans())
def test_a_declared_class_only_raises(base: DataClass, declared: DataClass, with_card: bool) -> None:
    settings = read_settings(f'[classes]\nbase = "{base.word}"\nsystem-prompt = "off"')
    body = user(CARD if with_card else "hello")
    without = Classifier(settings).classify(body)
    found = Classifier(settings).classify(body, declared=declared)
    assert found.data_class is max(without.data_class, declared)
    assert without.data_class is max(base, DataClass.REGULATED if with_card else DataClass.PUBLIC)


def test_only_the_clients_own_table_lowers() -> None:
    text = '[classes]\nbase = "proprietary"\n[clients.docs]\nbase = "public"\nsource-code = "public"\n'
    classifier = Classifier(read_settings(text))
    code = "import os\nimport sys\nprint(os.name)\n"
    assert classifier.classify(user(code), client="docs").data_class is DataClass.PUBLIC
    assert classifier.classify(user(code), client="other").data_class is DataClass.PROPRIETARY
    assert classifier.classify(user(CARD), client="docs").data_class is DataClass.REGULATED
    # What a text says about itself counts for nothing.
    assert classifier.classify({**user(code), "user": "docs"}, client="other").data_class is DataClass.PROPRIETARY


def crash(text: str) -> Iterator[str]:
    raise RuntimeError(f"cannot read {text}")


def crash_late(text: str) -> Iterator[str]:
    yield "one"
    raise MemoryError


@pytest.mark.parametrize("find", [crash, crash_late, lambda text: 1 / 0, lambda text: None])
def test_a_detector_that_fails_closes(find: Any, caplog: pytest.LogCaptureFixture) -> None:
    settings = read_settings('[classes]\nbase = "public"')
    found = Classifier(settings, detectors=[Detector("odd", find)]).classify(user("a secret word"))
    assert found.data_class is DataClass.UNKNOWN
    assert found.findings == {"failed:odd": 1}
    assert "secret word" not in caplog.text


def test_a_detector_that_takes_too_long_closes() -> None:
    def slow(text: str) -> list[str]:
        time.sleep(0.02)
        return []

    settings = read_settings('[classes]\nbase = "public"\n[limits]\nseconds = 0.05')
    found = Classifier(settings, detectors=[Detector("slow", slow)] * 20).classify(user("x"))
    assert found.data_class is DataClass.UNKNOWN
    assert found.findings == {"failed:time": 1}


def test_a_finding_that_no_settings_know_is_unknown() -> None:
    settings = read_settings('[classes]\nbase = "public"')
    found = Classifier(settings, detectors=[Detector("new", lambda text: ["x"])]).classify(user("x"))
    assert found.data_class is DataClass.UNKNOWN


def test_findings_are_counts_and_never_texts() -> None:
    found = STRICT.classify(user(f"{CARD} and 5555 5555 5555 4444 and {CARD}, bob@acme.io"))
    assert found.findings["payment-card"] == 2
    assert not any(part in str(found) for part in ("4111", "bob", "acme"))


@pytest.mark.parametrize(
    "text",
    ['[classes]\nbse = "public"', '[classes]\nbase = "off"', '[classes]\nbase = "open"', "[classes]\nbase = 3", "[x]",
     '[[marker]]\nname = "a"\nclass = "public"', '[[marker]]\nname = "a"\nclass = "secret"\ntexts = ["ab"]',
     '[[marker]]\nname = "A B"\nclass = "secret"\ntexts = ["abcd"]',
     '[[marker]]\nname = "a"\nclass = "secret"\npaths = ["**"]',
     '[[marker]]\nname = "a"\nclass = "secret"\ntexts = "abcd"', "[limits]\nseconds = 0", "[limits]\nseconds = true",
     "[clients]\ndocs = 3", "[clients.docs]\nx = 1", "nonsense", '[[marker]]\nname = "a"\nclas = "secret"'],
)  # fmt: skip
def test_settings_that_are_not_understood_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"^my\.toml: "):
        read_settings(text, "my.toml")


def test_betterleaks_finds_what_it_knows() -> None:
    pytest.importorskip("betterleaks")
    settings = read_settings('[classes]\nbase = "public"\nbetterleaks = "secret"\naccess-token = "off"')
    token = "ghp_" + "".join(random.Random(3).choices(string.ascii_letters + string.digits, k=36))
    assert Classifier(settings).classify(user(f'token = "{token}"')).findings == {"betterleaks": 1}
    assert Classifier(settings).classify(user("Nothing to see here.")).findings == {}
