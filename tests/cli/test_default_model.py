"""The commands on a real model, in processes of their own."""

from __future__ import annotations

import json
import shlex
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.running import RunningServer, freehold, running_server

pytestmark = pytest.mark.model


def test_generate_continues_a_text(default_model: Path) -> None:
    done = freehold("generate", "--prompt", "The capital of France is", "--max-tokens", "5", "--temperature", "0")
    assert done.returncode == 0, done.stderr
    assert "Paris" in done.stdout
    assert "[prompt 5 tokens (0 cached" in done.stderr


def test_path_and_name_mean_the_same_model(default_model: Path) -> None:
    options = ["--prompt", "One, two,", "--max-tokens", "8", "--temperature", "0", "--json"]
    by_name = freehold("generate", "--model", "smollm2-135m", *options)
    by_path = freehold("generate", "--model", str(default_model), *options)
    assert by_name.returncode == by_path.returncode == 0, by_name.stderr + by_path.stderr
    assert json.loads(by_name.stdout)["text"] == json.loads(by_path.stdout)["text"]


def test_chat_answers_a_pipe(default_model: Path) -> None:
    done = freehold("chat", "--max-tokens", "4", "--temperature", "0", typed="Hello!\nAnd again?\n")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("tokens/s") >= 2


def test_unknown_model_is_an_error_with_a_way_out(default_model: Path) -> None:
    done = freehold("generate", "--model", "smollm2-135", "--prompt", "x")
    assert done.returncode == 1
    assert done.stderr.startswith("error: no model 'smollm2-135'")
    assert "Did you mean smollm2-135m?" in done.stderr


@pytest.fixture(scope="module")
def server(default_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    with running_server(log=tmp_path_factory.mktemp("server") / "log") as running:
        yield running


def test_request_that_serve_prints_is_answered(server: RunningServer) -> None:
    words = shlex.split(server.hint)
    headers = dict(words[i + 1].split(": ") for i, word in enumerate(words) if word == "-H")
    body = {**json.loads(words[-1]), "max_tokens": 4}
    request = urllib.request.Request(words[1], json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=120) as response:
        answer = json.load(response)
    assert answer["choices"][0]["message"]["content"]


def test_health_counts_what_the_engine_did(server: RunningServer) -> None:
    with urllib.request.urlopen(server.base_url.replace("/v1", "/health")) as response:
        engine = json.load(response)["engine"]
    assert engine["requests_running"] == engine["requests_waiting"] == 0
    assert engine["cache_blocks"] > 0


def test_template_options_that_the_model_lacks_are_refused(server: RunningServer) -> None:
    body = {
        "model": "smollm2-135m",
        "messages": [{"role": "user", "content": "x"}],
        "chat_template_kwargs": {"mood": "sunny"},
    }
    request = urllib.request.Request(
        f"{server.base_url}/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(request)
    with caught.value as response:
        assert response.code == 400
        assert "has no option 'mood'" in response.read().decode()
