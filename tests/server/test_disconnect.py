"""When the client goes, the work stops: on real sockets, for both kinds of answer."""

from __future__ import annotations

import contextlib
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from freehold.server.app import create_app
from support.fake_backend import FakeBackend, Script

PATHS = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "hi"}]},
    "/v1/completions": {"prompt": ["a", "b"], "max_tokens": 1000},
}


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("script", [Script([b"x"] * 1000, delay=0.01), Script(prefill=30)], ids=["decode", "prefill"])
@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_goes_cancels_its_requests(running, until, path, script, stream):
    backend = FakeBackend(script)
    body = {"model": "fake/model", "n": 2, "stream": stream, **PATHS[path]}
    expected = 4 if "prompt" in body else 2
    with running(create_app(backend)) as url, httpx.Client(base_url=url, timeout=0.3) as client:
        # The connection is closed at the first token, or else by the client's own timeout.
        with contextlib.suppress(httpx.ReadTimeout), client.stream("POST", path, json=body) as response:
            next(line for line in response.iter_lines() if '"x"' in line)
        assert len(backend.streams) == expected
        until(lambda: all(stream.was_cut_short for stream in backend.streams))
        # The server goes on.
        assert httpx.get(f"{url}/health").status_code == 200


def test_a_client_that_stays_is_not_cut_short(running):
    backend = FakeBackend(Script([b"x"] * 20, delay=0.01))
    body = {"model": "fake/model", "prompt": "a", "max_tokens": 100}
    with running(create_app(backend)) as url, httpx.Client(base_url=url) as client:
        # Twice over one connection: the end of an answer is no disconnect.
        for _ in range(2):
            assert client.post("/v1/completions", json=body).json()["choices"][0]["text"] == "x" * 20
    assert not any(stream.was_cut_short for stream in backend.streams)


@pytest.mark.parametrize("stream", [False, True])
def test_a_request_that_is_deleted_ends_and_is_not_sent_again(running, until, stream):
    """Client libraries send again what ended with 409, 429 or 5xx."""
    backend = FakeBackend(Script([b"x"] * 1000, delay=0.01))
    with running(create_app(backend)) as url, ThreadPoolExecutor(1) as pool:
        body = {"model": "fake/model", "prompt": "a", "max_tokens": 1000, "stream": stream}
        answer = pool.submit(httpx.post, f"{url}/v1/completions", json=body)
        until(lambda: bool(httpx.get(f"{url}/v1/requests").json()["data"]))
        (entry,) = httpx.get(f"{url}/v1/requests").json()["data"]
        assert httpx.delete(f"{url}/v1/requests/{entry['id']}").status_code == 204
        response = answer.result(10)
        assert (response.status_code, "DELETE" in response.text) == (200 if stream else 410, True)
        assert len(backend.streams) == 1
        assert httpx.delete(f"{url}/v1/requests/{entry['id']}").status_code == 404
