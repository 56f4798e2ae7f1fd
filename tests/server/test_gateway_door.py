"""What the gateway refuses, hides or takes the stricter way: streams, declared classes, names, cookies, keys, hosts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response

from freehold.core.errors import ConfigError
from freehold.governance.policy.record import shown_name
from freehold.server.gateway.endpoints import read_endpoints
from support.gateway_rig import TODAY, endpoints_toml, running_gateway, setup_of
from support.recording_upstream import RecordingUpstream
from support.served_app import served

PERMIT = '@id("all") permit (principal, action, resource);\n'
NO_STREAMS = PERMIT + '@id("whole") forbid (principal, action, resource) when { context.streamed };'
PATH = "/v1/chat/completions"
KEY = 'sk-of-the-"gateway"'


def entry(url: str, name: str = "e", **members: Any) -> dict[str, Any]:
    return {"name": name, "base_url": url, "api": ["openai", "anthropic"], "models": ["m", f"m-{name}"],
            "path": "self-hosted", **members}  # fmt: skip


def asked(**members: Any) -> dict[str, Any]:
    return {"model": "m", "messages": [{"role": "user", "content": "hi"}], **members}


@pytest.mark.parametrize("stream", [1, "true", "false", 0, [], {}, 1.0])
@pytest.mark.parametrize("path", [PATH, "/v1/messages", "/v1/responses"])
def test_a_stream_that_is_neither_true_nor_false_is_refused(tmp_path: Path, path: str, stream: Any) -> None:
    upstream = RecordingUpstream("e")
    with (
        served(upstream.app()) as url,
        running_gateway(setup_of(NO_STREAMS, endpoints_toml(tmp_path, entry(url)))) as door,
    ):
        answer = httpx.post(door.url + path, json=asked(stream=stream))
        assert answer.status_code == 400
        assert "stream must be true or false" in answer.json()["error"]["message"]
        assert httpx.post(door.url + path, json=asked(stream=True)).status_code == 403
        assert upstream.arrivals == []
        for member in ({"stream": None}, {"stream": False}, {}):
            assert httpx.post(door.url + PATH, json=asked(**member)).status_code == 200


@pytest.mark.parametrize(
    "headers", [["public", "secret"], ["secret", "public"], ["public, Secret"], ["general", "public,secret"]]
)
def test_of_several_declared_classes_the_highest_counts(tmp_path: Path, headers: list[str]) -> None:
    with (
        served(RecordingUpstream("e").app()) as url,
        running_gateway(setup_of(PERMIT, endpoints_toml(tmp_path, entry(url)))) as door,
    ):
        sent = [("x-freehold-class", word) for word in headers]
        answer = httpx.post(door.url + PATH, json=asked(), headers=sent)
        bad = httpx.post(door.url + PATH, json=asked(), headers=[*sent, ("x-freehold-class", "x")])
    assert answer.headers["x-freehold-class"] == "secret"
    assert bad.status_code == 400


def test_names_of_models_are_cut_in_records(tmp_path: Path) -> None:
    upstream = RecordingUpstream("e", model="said\nby " + "the endpoint " * 50)
    with (
        served(upstream.app()) as url,
        running_gateway(setup_of(PERMIT, endpoints_toml(tmp_path, entry(url)))) as door,
    ):
        httpx.post(door.url + PATH, json=asked(model="my diagnosis\x1b[2J is " + "long " * 500))
        httpx.post(door.url + PATH, json=asked())
    first, second = door.ended()
    assert first.model_asked is not None
    assert first.model_asked.startswith("my diagnosis?[2J is long")
    assert len(first.model_asked) == 83
    assert second.model_answered is not None
    assert second.model_answered.startswith("said?by the endpoint")
    assert len(second.model_answered) == 83
    assert shown_name(None) is None
    assert shown_name("MiniMaxAI/MiniMax-M3") == "MiniMaxAI/MiniMax-M3"


def test_cookies_reach_nobody(tmp_path: Path) -> None:
    """Not another endpoint, not another client, not the one that set them."""
    seen: list[str | None] = []
    app = FastAPI()

    @app.post("/v1/{rest:path}")
    async def take(request: Request) -> Response:
        seen.append(request.headers.get("cookie"))
        return JSONResponse({"model": "m"}, headers={"set-cookie": "who=first; Path=/"})

    with (
        served(app) as one,
        served(app) as two,
        running_gateway(setup_of(PERMIT, endpoints_toml(tmp_path, entry(one), entry(two, "f")))) as door,
    ):
        for model in ("m-e", "m-f", "m-e"):
            answer = httpx.post(door.url + PATH, json=asked(model=model), headers={"cookie": "c=client"})
            assert answer.status_code == 200
            assert "set-cookie" not in answer.headers
    assert seen == [None, None, None]


def test_an_endpoint_s_own_words_do_not_show_its_key(tmp_path: Path) -> None:
    app = FastAPI()

    @app.post("/v1/{rest:path}")
    async def take(request: Request) -> Response:
        error = {"message": f"bad header: {request.headers['authorization']} \u00e4", "type": "invalid_request_error"}
        return JSONResponse({"error": error}, 400)

    setup_key = {"key_env": "UPSTREAM_KEY"}
    with served(app) as url:
        setup = setup_of(PERMIT, endpoints_toml(tmp_path, entry(url, **setup_key)), environ={"UPSTREAM_KEY": KEY})
        with running_gateway(setup) as door:
            answer = httpx.post(door.url + PATH, json=asked())
    assert answer.status_code == 400
    assert answer.json()["error"]["message"] == "bad header: Bearer [key] \u00e4"


@pytest.mark.parametrize(
    "host",
    ["api.openai.com", "api.openai.com.", "134744072", "0x8080808", "010.8.8.8", "8.8.8.8", "8.8", "8.8.8.8.",
     "[2001:4860:4860::8888]", "[::ffff:8.8.8.8]", "api%2eopenai%2ecom", "api\u3002openai\u3002com"],
)  # fmt: skip
def test_public_hosts_are_not_taken_for_own_hardware(tmp_path: Path, host: str) -> None:
    path = endpoints_toml(tmp_path, entry(f"https://{host}"))
    with pytest.raises(ConfigError, match=r"is a public address or name|is a number|is no name of"):
        read_endpoints(path, None, TODAY)


@pytest.mark.parametrize(
    "host", ["fleet", "fleet.internal", "10.0.0.5", "localhost", "[fd00::1]", "[::1]", "a.home.arpa"]
)
def test_private_hosts_are(tmp_path: Path, host: str) -> None:
    assert read_endpoints(endpoints_toml(tmp_path, entry(f"http://{host}:8000")), None, TODAY).entries


def test_an_operator_can_name_a_public_host_as_own(tmp_path: Path) -> None:
    for host in ("llm.example.com", "8.8.8.8"):
        assert read_endpoints(endpoints_toml(tmp_path, entry(f"https://{host}", own_host=host)), None, TODAY).entries
    for wrong in ("other.example.com", "8.8.8.8"):
        with pytest.raises(ConfigError, match="own_host is"):
            read_endpoints(endpoints_toml(tmp_path, entry("https://llm.example.com", own_host=wrong)), None, TODAY)
    with pytest.raises(ConfigError, match="is a number"):
        read_endpoints(endpoints_toml(tmp_path, entry("https://134744072", own_host="134744072")), None, TODAY)
