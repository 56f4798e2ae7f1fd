"""Every API samples as the model's makers recommend, unless the request says otherwise."""

from __future__ import annotations

from typing import Any

import pytest

from freehold.server.app import create_app
from support.fake_backend import FakeBackend

BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "hi"}], "n": 2},
    "/v1/completions": {"prompt": "hi"},
    "/v1/responses": {"input": "hi"},
    "/v1/messages": {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 4},
}


@pytest.mark.parametrize("path", BODIES)
def test_what_a_request_leaves_out_is_as_the_model_says(ask: Any, path: str) -> None:
    backend = FakeBackend(sampling_defaults={"temperature": 0.2, "top_p": 0.9, "top_k": 40})
    answer = ask(create_app(backend)).post(path, {"model": "fake/model", **BODIES[path], "top_p": 0.5})
    assert answer.status_code == 200
    for stream in backend.streams:
        assert (stream.params.temperature, stream.params.top_p, stream.params.top_k) == (0.2, 0.5, 40)
    if path == "/v1/responses":
        assert (answer.json()["temperature"], answer.json()["top_p"]) == (0.2, 0.5)


@pytest.mark.parametrize("path", BODIES)
def test_a_model_that_says_nothing_is_sampled_plainly(ask: Any, path: str) -> None:
    backend = FakeBackend()
    ask(create_app(backend)).post(path, {"model": "fake/model", **BODIES[path]})
    assert (backend.streams[0].params.temperature, backend.streams[0].params.top_p) == (1.0, 1.0)
