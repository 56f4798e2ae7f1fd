"""Whoever keeps records hears of each request before its answer is whole; without a record nothing is answered."""

from __future__ import annotations

import contextlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from freehold.core.errors import GovernanceError
from freehold.server.app import create_app
from freehold.server.operation.key_file import add_key
from freehold.server.operation.keys import Keys
from freehold.server.operation.metrics import Metrics
from freehold.server.operation.operation import Operation
from freehold.server.operation.recorder import RequestEnd
from support.fake_backend import FakeBackend, Script


@dataclass
class Kept:
    """A recorder in memory. broken: it takes no new requests. failing: it cannot write ends. order: what came when."""

    ends: list[RequestEnd] = field(default_factory=list)
    requests: list[bytes] = field(default_factory=list)
    answers: list[bytes] = field(default_factory=list)
    broken: bool = False
    failing: bool = False

    def begin(self) -> KeptDraft:
        if self.broken:
            raise GovernanceError("no space left")
        return KeptDraft(self)


@dataclass
class KeptDraft:
    kept: Kept
    request: bytes = b""
    answer: bytes = b""

    def hear_request(self, data: bytes) -> None:
        self.request += data

    def hear_answer(self, data: bytes) -> None:
        self.answer += data

    async def finish(self, end: RequestEnd) -> None:
        if self.kept.failing:
            raise GovernanceError("no space left")
        self.kept.ends.append(end)
        self.kept.requests.append(self.request)
        self.kept.answers.append(self.answer)


CHAT = {"model": "fake/model", "messages": [{"role": "user", "content": "hi"}]}


def app_of(kept: Kept, backend: FakeBackend | None = None, keys: Keys | None = None) -> Any:
    backend = backend or FakeBackend()
    return create_app(backend, operation=Operation(Metrics(backend.stats), keys or Keys(), recorder=kept))


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages"])
@pytest.mark.parametrize("stream", [False, True])
def test_a_served_request_is_recorded_with_its_bytes(ask: Any, path: str, stream: bool) -> None:
    kept = Kept()
    answer = ask(app_of(kept, FakeBackend(cached_tokens=3))).post(path, {**CHAT, "max_tokens": 50, "stream": stream})
    assert answer.status_code == 200
    (end,) = kept.ends
    assert (end.ending, end.status, end.reason, end.whole) == ("served", 200, "stop", True)
    assert (end.prompt_tokens, end.cached_tokens, end.completion_tokens) == (9, 3, 3)
    assert (end.model_asked, end.model, end.route, end.key_id) == ("fake/model", "fake/model", path, "")
    assert end.request_id == answer.headers["x-request-id"]
    assert kept.answers == [answer.content]
    assert kept.requests == [answer.request.content]


@pytest.mark.parametrize("stream", [False, True])
def test_the_record_comes_before_the_last_byte(running: Any, stream: bool) -> None:
    """A client that has the whole answer finds the record written; checked on a socket, twenty times."""
    kept = Kept()
    with running(app_of(kept)) as url, httpx.Client(base_url=url) as client:
        for number in range(1, 21):
            client.post("/v1/chat/completions", json={**CHAT, "stream": stream}).raise_for_status()
            assert len(kept.ends) == number


def test_refusals_are_recorded(ask: Any, tmp_path: Path) -> None:
    kept = Kept()
    asking = ask(app_of(kept, FakeBackend(context_length=20)))
    assert asking.chat(model="other").status_code == 404
    assert asking.chat(messages=[{"role": "user", "content": "x" * 50}]).status_code == 400
    assert asking.request("POST", "/v1/chat/completions", content=b"{").status_code == 415
    found = [(end.ending, end.status, end.model_asked, end.model, end.had_tokens) for end in kept.ends]
    assert found == [
        ("refused", 404, "other", None, False),
        ("refused", 400, "fake/model", "fake/model", False),
        ("refused", 415, None, None, False),
    ]


def test_a_key_beyond_its_budget_is_recorded_and_a_stranger_is_not(ask: Any, tmp_path: Path) -> None:
    from datetime import datetime, timezone

    file = tmp_path / "keys.json"
    key = add_key(
        file,
        "laptop",
        now=datetime.now(timezone.utc),
        scopes=("inference",),
        requests_per_minute=None,
        tokens_per_minute=None,
        budget_tokens=5,
        budget_period="day",
        expires=None,
        priority=0,
    )
    kept = Kept()
    app = app_of(kept, keys=Keys(file))
    known = ask(app, Authorization=f"Bearer {key}")
    assert [known.chat().status_code for _ in range(2)] == [200, 429]
    assert ask(app, Authorization="Bearer wrong").chat().status_code == 401
    assert [(end.ending, end.status) for end in kept.ends] == [("served", 200), ("refused", 429)]
    assert len({end.key_id for end in kept.ends} - {""}) == 1


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("script", "ending"),
    [
        (Script([b"a", b"b"], reason="error", error="broke"), "failed"),
        (Script([b"a", b"b"], crash=RuntimeError("broke")), "failed"),
        (Script([b"a", b"b"], reason="timeout"), "aborted"),
        (Script([b"a", b"b"], reason="cancelled"), "aborted"),
    ],
)
def test_what_breaks_off_is_recorded_with_the_tokens_so_far(
    ask: Any, script: Script, ending: str, stream: bool
) -> None:
    kept = Kept()
    ask(app_of(kept, FakeBackend(script))).chat(stream=stream)
    (end,) = kept.ends
    assert (end.ending, end.whole, end.had_tokens) == (ending, False, True)
    assert end.completion_tokens == 2


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_goes_is_recorded(running: Any, until: Any, stream: bool) -> None:
    kept = Kept()
    backend = FakeBackend(Script([b"x"] * 1000, delay=0.01))
    body = {**CHAT, "stream": stream, "max_tokens": 1000}
    with running(app_of(kept, backend)) as url, httpx.Client(base_url=url, timeout=0.3) as client:
        with (
            contextlib.suppress(httpx.ReadTimeout),
            client.stream("POST", "/v1/chat/completions", json=body) as response,
        ):
            next(line for line in response.iter_lines() if '"x"' in line)
        until(lambda: len(kept.ends) == 1)
    (end,) = kept.ends
    assert (end.ending, end.whole, end.had_tokens) == ("disconnected", False, True)
    assert 0 < end.completion_tokens < 1000
    assert end.prompt_tokens == 9


def test_without_a_writable_ledger_nothing_is_begun(ask: Any) -> None:
    kept, backend = Kept(broken=True), FakeBackend()
    asking = ask(app_of(kept, backend))
    for path, code in (("/v1/chat/completions", "ledger_unavailable"), ("/v1/messages", "overloaded_error")):
        answer = asking.post(path, {**CHAT, "max_tokens": 5})
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "10")
        assert code in answer.text
    assert backend.streams == []
    # Looking at something is not work.
    assert asking.get("/v1/models").status_code == 200
    kept.broken = False
    assert asking.chat().status_code == 200


def test_an_answer_without_a_record_is_not_given(ask: Any) -> None:
    answer = ask(app_of(Kept(failing=True))).chat()
    assert answer.status_code == 503
    assert "Hello" not in answer.text
    assert answer.headers["x-request-id"]


def test_a_stream_without_a_record_has_no_end(running: Any) -> None:
    """The client's own reader sees that it is not whole."""
    with running(app_of(Kept(failing=True))) as url, pytest.raises(httpx.RemoteProtocolError):
        httpx.post(f"{url}/v1/chat/completions", json={**CHAT, "stream": True})


def test_requests_at_once_have_a_record_each(running: Any) -> None:
    kept = Kept()
    with running(app_of(kept, FakeBackend(Script(delay=0.005)))) as url, ThreadPoolExecutor(8) as pool:
        posts = [pool.submit(httpx.post, f"{url}/v1/chat/completions", json=CHAT) for _ in range(40)]
        ids = {post.result(20).headers["x-request-id"] for post in posts}
    assert {end.request_id for end in kept.ends} == ids
    assert len(kept.ends) == 40
