"""What passes the gateway, and how: bytes as they come, headers that may, failures in the client's own form."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import anthropic
import httpx
import openai
import pytest

from freehold.governance.policy.record import DecisionRecord, ReturnedUsage
from freehold.server.operation.key_file import add_key
from freehold.server.operation.keys import Keys
from support.gateway_rig import Rig, endpoints_toml, running_gateway, setup_of
from support.recording_upstream import RecordingUpstream
from support.served_app import served

PERMIT = '@id("everything") permit (principal, action, resource);'
PATHS = ["/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages"]
HI = [{"role": "user", "content": "hi"}]


def body_for(path: str, **fields: Any) -> dict[str, Any]:
    content = {"/v1/completions": {"prompt": "hi"}, "/v1/responses": {"input": "hi"}}.get(path, {"messages": HI})
    return {"model": "m", **content, **({"max_tokens": 5} if "messages" in path else {}), **fields}


@contextlib.contextmanager
def rig(
    tmp_path: Path, *upstreams: RecordingUpstream, entry: dict[str, Any] | None = None, **options: Any
) -> Iterator[Rig]:
    """Each upstream serves "m", in this order."""
    with contextlib.ExitStack() as stack:
        entries = []
        for upstream in upstreams:
            url = stack.enter_context(served(upstream.app()))
            entries.append(
                {"name": upstream.name, "base_url": url, "api": ["openai", "anthropic"], "models": {"m": "real/m"},
                 "path": "self-hosted", "answer_seconds": 0.5, **(entry or {})}
            )  # fmt: skip
        environ = {"UPSTREAM_KEY": "sk-of-the-gateway"}
        setup = setup_of(PERMIT, endpoints_toml(tmp_path, *entries), environ=environ)
        yield stack.enter_context(running_gateway(setup, **options))


@pytest.mark.parametrize("path", PATHS)
def test_whole_answers_pass(tmp_path: Path, path: str) -> None:
    upstream = RecordingUpstream("fleet")
    with rig(tmp_path, upstream) as door:
        answer = httpx.post(door.url + path, json=body_for(path, temperature=0.5))
        # Recorded before it was whole.
        assert [record.outcome for record in door.records] == ["decided", "served"]
        assert answer.json() == upstream.whole(path)
    (arrival,) = upstream.arrivals
    assert arrival.path == path
    assert arrival.json == body_for(path, temperature=0.5, model="real/m")
    record = door.ended()[0]
    assert answer.headers["x-freehold-decision"] == answer.headers["x-request-id"] == record.id
    assert (answer.headers["x-freehold-endpoint"], answer.headers["x-freehold-class"]) == ("fleet", "public")
    assert answer.headers["x-freehold-clause"] == "everything"
    assert answer.headers["x-freehold-policy"] == record.policy == door.gateway.setup.rules.digest
    assert (record.outcome, record.status, record.model_asked, record.model_sent) == ("served", 200, "m", "real/m")
    assert record.model_answered == "fleet-model"
    assert record.response_bytes == len(answer.content)


@pytest.mark.parametrize("path", PATHS)
def test_streams_pass_unchanged(tmp_path: Path, path: str) -> None:
    upstream = RecordingUpstream("fleet")
    with rig(tmp_path, upstream) as door:
        answer = httpx.post(door.url + path, json=body_for(path, stream=True))
        assert answer.content == b"".join(upstream.events(path))
    record = door.ended()[0]
    assert (record.outcome, record.streamed, record.model_answered) == ("served", True, "fleet-model")
    assert record.response_bytes == len(answer.content)
    assert record.events == answer.content.count(b"data:")


def test_events_are_not_held_back(tmp_path: Path) -> None:
    upstream = RecordingUpstream("fleet")
    released = threading.Event()

    async def slow(events: list[bytes], *, broken: bool = False) -> Any:
        yield events[0]
        while not released.is_set():
            await asyncio.sleep(0.01)
        yield events[1]

    upstream._sent = slow  # type: ignore[method-assign]
    with (
        rig(tmp_path, upstream, entry={"answer_seconds": 20}) as door,
        httpx.stream("POST", door.url + PATHS[0], json=body_for(PATHS[0], stream=True), timeout=10) as answer,
    ):
        chunks = answer.iter_raw()
        assert next(chunks) == upstream.events(PATHS[0])[0]
        released.set()
        assert next(chunks) == upstream.events(PATHS[0])[1]


def test_usage_is_what_the_endpoint_says(tmp_path: Path) -> None:
    with rig(tmp_path, RecordingUpstream("fleet")) as door:
        for path in PATHS:
            for stream in (False, True):
                httpx.post(door.url + path, json=body_for(path, stream=stream)).raise_for_status()
        httpx.post(door.url + "/v1/messages/count_tokens", json={"model": "m", "messages": HI}).raise_for_status()
    usages = [record.usage for record in door.ended()]
    openai_s = ReturnedUsage(input_tokens=12, cached_tokens=4, output_tokens=2)
    responses = ReturnedUsage(input_tokens=9, cached_tokens=4, output_tokens=2, reasoning_tokens=1)
    whole = ReturnedUsage(input_tokens=12, cached_tokens=4, cache_write_tokens=5, output_tokens=2)
    streamed = ReturnedUsage(input_tokens=12, cached_tokens=4, cache_write_tokens=5, output_tokens=7)
    assert usages == [openai_s] * 4 + [responses] * 2 + [whole, streamed, ReturnedUsage(input_tokens=12)]


def test_only_named_headers_pass(tmp_path: Path) -> None:
    upstream = RecordingUpstream("fleet")
    keys_file = tmp_path / "keys.json"
    key = add_key(keys_file, "laptop", now=datetime.now(timezone.utc))
    sent = {
        "authorization": f"Bearer {key}", "x-api-key": key, "cookie": "a=b", "x-secret": "s", "connection": "x-hop",
        "x-hop": "h", "anthropic-beta": "files-2026", "proxy-authorization": "Basic eA==",
        "x-forwarded-for": "10.0.0.1", "te": "trailers", "referer": "http://intranet/secret",
    }  # fmt: skip
    with rig(tmp_path, upstream, entry={"key_env": "UPSTREAM_KEY"}, keys=Keys(keys_file)) as door:
        httpx.post(door.url + "/v1/chat/completions?x=secret", json=body_for(PATHS[0]), headers=sent).raise_for_status()
        httpx.post(door.url + "/v1/messages?beta=true", json=body_for("/v1/messages"), headers=sent).raise_for_status()
        assert httpx.post(door.url + PATHS[0], json=body_for(PATHS[0])).status_code == 401
    first, second = upstream.arrivals
    ours = {"host", "accept", "accept-encoding", "user-agent", "content-type", "content-length"}
    assert set(first.headers) == ours | {"authorization", "anthropic-beta"}
    assert first.headers["authorization"] == "Bearer sk-of-the-gateway"
    assert set(second.headers) == ours | {"x-api-key", "anthropic-beta", "anthropic-version"}
    assert second.headers["x-api-key"] == "sk-of-the-gateway"
    assert (first.query, second.query) == ("", "beta=true")
    assert {record.client for record in door.records} == {"laptop"}
    assert not any(key in arrival.body.decode() + str(arrival.headers) for arrival in upstream.arrivals)


def test_budgets_hold_for_streams_and_for_answers_that_break_off(tmp_path: Path) -> None:
    keys_file = tmp_path / "keys.json"
    now = datetime.now(timezone.utc)
    for mode, fields in (("ok", {}), ("ok", {"stream": True}), ("half", {"stream": True})):
        key = add_key(
            keys_file, f"k{len(keys_file.read_text()) if keys_file.exists() else 0}", now=now, budget_tokens=10
        )
        with rig(tmp_path, RecordingUpstream("fleet", mode=mode), keys=Keys(keys_file)) as door:
            headers = {"authorization": f"Bearer {key}"}
            first = httpx.post(door.url + PATHS[0], json=body_for(PATHS[0], **fields), headers=headers)
            second = httpx.post(door.url + PATHS[0], json=body_for(PATHS[0], **fields), headers=headers)
        assert first.headers["x-ratelimit-remaining-budget"] == "10"
        if mode == "ok":
            assert (second.status_code, second.json()["error"]["code"]) == (429, "insufficient_quota")
        else:
            assert int(second.headers["x-ratelimit-remaining-budget"]) < 10


FAILURES = {
    "error": (503, "is full", "upstream_error"),
    "no_json": (502, "answered 502", "upstream_error"),
    "key_refused": (502, "refuses this gateway's key", "upstream_key"),
    "redirect": (502, "sent the request elsewhere", "upstream_redirect"),
    "hang": (504, "did not answer in time", "upstream_timeout"),
}


def error_of(answer: httpx.Response, path: str) -> dict[str, Any]:
    body = answer.json()
    if path == "/v1/messages":
        assert body["type"] == "error"
    assert isinstance(body["error"]["message"], str)
    assert isinstance(body["error"]["type"], str)
    return body["error"]


@pytest.mark.parametrize("mode", FAILURES)
@pytest.mark.parametrize("path", PATHS)
def test_failures_have_the_client_s_form_and_no_stand_in(tmp_path: Path, path: str, mode: str) -> None:
    other = RecordingUpstream("other")
    with served(other.app()) as elsewhere:
        upstream = RecordingUpstream("fleet", mode=mode, elsewhere=elsewhere)
        with rig(tmp_path, upstream, other) as door:
            answer = httpx.post(door.url + path, json=body_for(path))
    status, text, reason = FAILURES[mode]
    assert answer.status_code == status
    assert text in error_of(answer, path)["message"]
    assert answer.headers["x-freehold-endpoint"] == "fleet"
    assert answer.headers.get("retry-after") == ("7" if mode == "error" else None)
    assert "location" not in answer.headers
    assert len(upstream.arrivals) == 1
    assert other.arrivals == []
    record = door.ended()[0]
    assert (record.outcome, record.reason, record.status) == ("failed", reason, status)


@pytest.mark.parametrize("path", PATHS)
def test_an_endpoint_that_is_down(tmp_path: Path, path: str) -> None:
    other = RecordingUpstream("other")
    with served(RecordingUpstream("x").app()) as gone, served(other.app()) as url:
        pass
    entries = [
        {"name": name, "base_url": url, "api": ["openai", "anthropic"], "models": ["m"], "path": "self-hosted"}
        for name, url in (("down", gone), ("other", url))
    ]
    with running_gateway(setup_of(PERMIT, endpoints_toml(tmp_path, *entries))) as door:
        answer = httpx.post(door.url + path, json=body_for(path))
    assert answer.status_code == 502
    assert "down cannot be reached" in error_of(answer, path)["message"]
    assert other.arrivals == []
    assert [(r.outcome, r.reason) for r in door.records] == [("decided", ""), ("failed", "upstream_unreachable")]


@pytest.mark.parametrize("path", PATHS)
def test_a_stream_that_breaks_off_says_so(tmp_path: Path, path: str) -> None:
    upstream = RecordingUpstream("fleet", mode="half")
    with rig(tmp_path, upstream) as door:
        answer = httpx.post(door.url + path, json=body_for(path, stream=True))
    sent = upstream.events(path)
    whole = b"".join(sent[: len(sent) // 2 + 1])
    assert answer.content.startswith(whole)
    assert b"broke off" in answer.content[len(whole) :]
    assert answer.content.endswith(b"\n\n")
    record = door.ended()[0]
    assert (record.outcome, record.reason, record.aborted) == ("failed", "upstream_failed", True)
    assert record.response_bytes == len(whole)


def test_a_whole_answer_that_breaks_off_is_not_ended(tmp_path: Path) -> None:
    with rig(tmp_path, RecordingUpstream("fleet", mode="half")) as door, pytest.raises(httpx.RemoteProtocolError):
        httpx.post(door.url + PATHS[0], json=body_for(PATHS[0]))
    assert door.ended()[0].outcome == "failed"


def test_a_client_that_goes_away_ends_the_endpoint_s_work(
    tmp_path: Path, until: Callable[[Callable[[], bool]], None]
) -> None:
    upstream = RecordingUpstream("fleet")

    async def endless(events: list[bytes], *, broken: bool = False) -> Any:
        try:
            while True:
                yield events[1]
                await asyncio.sleep(0.005)
        finally:
            upstream.given_up += 1

    upstream._sent = endless  # type: ignore[method-assign]
    with rig(tmp_path, upstream) as door:
        with httpx.stream("POST", door.url + PATHS[0], json=body_for(PATHS[0], stream=True)) as answer:
            next(answer.iter_raw())
        until(lambda: bool(door.ended()) and upstream.given_up == 1)
        record = door.ended()[0]
        assert (record.outcome, record.aborted) == ("disconnected", True)
        assert record.response_bytes > 0
        upstream.mode, upstream.hang_seconds = "hang", 20
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(door.url + PATHS[0], json=body_for(PATHS[0]), timeout=0.2)
        until(lambda: len(door.ended()) == 2)
        assert door.ended()[1].outcome == "disconnected"


def test_what_cannot_be_recorded_is_not_sent(tmp_path: Path) -> None:
    upstream = RecordingUpstream("fleet")

    def full(record: DecisionRecord) -> None:
        raise OSError("no space left")

    with rig(tmp_path, upstream, on_decision=full) as door:
        answer = httpx.post(door.url + PATHS[0], json=body_for(PATHS[0]))
    assert answer.status_code == 503
    assert answer.json()["error"]["code"] == "not_recorded"
    assert upstream.arrivals == []


def test_the_same_name_twice_reaches_nobody_twice(tmp_path: Path) -> None:
    """Of two members of one name parsers take different ones; the endpoint gets the one that was looked at."""
    upstream = RecordingUpstream("fleet")
    body = b'{"model": "m", "messages": [{"role": "user", "content": "first", "content": "second"}], "model": "m"}'
    with rig(tmp_path, upstream) as door:
        httpx.post(door.url + PATHS[0], content=body, headers={"content-type": "application/json"}).raise_for_status()
    assert b"first" not in upstream.arrivals[0].body
    assert upstream.arrivals[0].json["messages"][0]["content"] == "second"


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b'{"messages": []}', b'{"model": 3}', b'{"model": "\xff"}', b"NaN"])
def test_what_is_no_request_is_refused_and_recorded(tmp_path: Path, body: bytes) -> None:
    upstream = RecordingUpstream("fleet")
    with rig(tmp_path, upstream) as door:
        answer = httpx.post(door.url + PATHS[0], content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 400
    assert upstream.arrivals == []
    assert [record.outcome for record in door.records] == ["refused"]


def test_an_unknown_class_is_refused_and_recorded(tmp_path: Path) -> None:
    upstream = RecordingUpstream("fleet")
    with rig(tmp_path, upstream) as door:
        answer = httpx.post(door.url + PATHS[0], json=body_for(PATHS[0]), headers={"x-freehold-class": "top-secret"})
        assert answer.status_code == 400
        assert "it must be one of public, general" in answer.json()["error"]["message"]
        raised = httpx.post(door.url + PATHS[0], json=body_for(PATHS[0]), headers={"x-freehold-class": "Secret"})
    assert raised.headers["x-freehold-class"] == "secret"
    assert [(r.outcome, r.declared) for r in door.ended()] == [("refused", None), ("served", "secret")]


def test_models_and_unknown_ones(tmp_path: Path) -> None:
    with rig(tmp_path, RecordingUpstream("fleet"), entry={"api": "openai"}) as door:
        client = openai.OpenAI(base_url=door.url + "/v1", api_key="none", max_retries=0)
        assert [(model.id, model.owned_by) for model in client.models.list()] == [("m", "fleet")]
        assert client.models.retrieve("m").id == "m"
        with pytest.raises(openai.NotFoundError, match="there are: m"):
            client.chat.completions.create(model="other", messages=HI)  # type: ignore[arg-type]
        claude = anthropic.Anthropic(base_url=door.url, api_key="none", max_retries=0)
        assert [model.id for model in claude.models.list()] == ["m"]
        with pytest.raises(anthropic.NotFoundError, match="served over openai's API"):
            claude.messages.create(model="m", messages=HI, max_tokens=5)  # type: ignore[arg-type]
        client.close()
        claude.close()


def test_a_drain_ends_streams_and_says_so(tmp_path: Path) -> None:
    upstream = RecordingUpstream("fleet")

    async def endless(events: list[bytes], *, broken: bool = False) -> Any:
        while True:
            yield events[1]
            await asyncio.sleep(0.005)

    upstream._sent = endless  # type: ignore[method-assign]
    with rig(tmp_path, upstream) as door:
        with httpx.stream("POST", door.url + PATHS[0], json=body_for(PATHS[0], stream=True)) as answer:
            chunks = answer.iter_raw()
            next(chunks)
            door.operation.lifecycle.cancel_streams()
            rest = b"".join(chunks)
        assert b"shutting down" in rest
        end = time.monotonic() + 5
        while not door.ended() and time.monotonic() < end:
            time.sleep(0.01)
        assert door.ended()[0].outcome == "aborted"
