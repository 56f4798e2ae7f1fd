"""`freehold gateway` as people run it: in front of a second Freehold, asked by the official clients."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anthropic
import httpx
import openai
import pytest
from click.testing import CliRunner

from freehold.cli.main import main
from support.gateway_rig import endpoints_toml
from support.running import COMMAND, freehold, running_server
from support.small_m3 import write_small_m3

KEY = "fleet-key-of-the-gateway"


@contextmanager
def running_gateway(*arguments: str, log: Path, **environment: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """`freehold gateway` on a free port: its address, and the process. SIGINT ends it, with status 0."""
    words = [*COMMAND, "gateway", "--port", "0", *arguments]
    with log.open("w") as errors:
        process = subprocess.Popen(words, stdout=errors, stderr=errors, text=True, env={**os.environ, **environment})
    try:
        yield _address(process, log), process
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0, log.read_text()[-2000:]
    finally:
        process.kill()
        process.wait()


def _address(process: subprocess.Popen[str], log: Path) -> str:
    end = time.monotonic() + 60
    while time.monotonic() < end and process.poll() is None:
        for line in log.read_text().splitlines():
            if line.startswith("Open on "):
                return line.split()[2].removesuffix("/v1")
        time.sleep(0.05)
    raise AssertionError(f"the gateway did not start:\n{log.read_text()[-2000:]}")


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Freehold with a small M3, which asks for a key."""
    folder = tmp_path_factory.mktemp("fleet")
    model = write_small_m3(folder)
    with running_server(str(model), "--api-key", KEY, "--alias", "small", log=folder / "log") as server:
        yield server.base_url.removesuffix("/v1")


def endpoints(folder: Path, fleet: str, **fields: Any) -> Path:
    entry = {"name": "fleet", "base_url": fleet, "api": ["openai", "anthropic"], "models": {"m3": "small"},
             "path": "self-hosted", "key_env": "FLEET_KEY", **fields}  # fmt: skip
    return endpoints_toml(folder, entry)


def test_the_official_clients_talk_through_the_gateway(tmp_path: Path, fleet: str) -> None:
    files = ["--endpoints", str(endpoints(tmp_path, fleet)), "--profile", "product-company"]
    with running_gateway(*files, log=tmp_path / "log", FLEET_KEY=KEY) as (url, _):
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
        assert [model.id for model in client.models.list()] == ["m3"]
        raw = client.chat.completions.with_raw_response.create(
            model="m3", messages=[{"role": "user", "content": "Say something."}], max_tokens=4, temperature=0
        )
        assert raw.headers["x-freehold-endpoint"] == "fleet"
        assert (raw.headers["x-freehold-class"], raw.headers["x-freehold-clause"]) == ("proprietary", "own-hardware")
        answer = raw.parse()
        assert answer.usage is not None
        assert answer.usage.completion_tokens <= 4
        said: Any = [{"role": "user", "content": "Say something."}]
        options: Any = {"stream": True, "stream_options": {"include_usage": True}}
        chunks = list(client.chat.completions.create(model="m3", messages=said, max_tokens=4, temperature=0, **options))
        assert chunks[-1].usage is not None
        assert chunks[-1].usage.prompt_tokens == answer.usage.prompt_tokens
        assert client.completions.create(model="m3", prompt="x", max_tokens=2).usage is not None
        assert client.responses.create(model="m3", input="x", max_output_tokens=4, store=False).usage is not None
        claude = anthropic.Anthropic(base_url=url, api_key="none", max_retries=0)
        messages: Any = [{"role": "user", "content": "Say something."}]
        counted = claude.messages.count_tokens(model="m3", messages=messages).input_tokens
        message = claude.messages.create(model="m3", messages=messages, max_tokens=4)
        assert message.usage.input_tokens + (message.usage.cache_read_input_tokens or 0) == counted
        with claude.messages.stream(model="m3", messages=messages, max_tokens=4) as stream:
            assert stream.get_final_message().usage.output_tokens <= 4
        # The fleet's own refusal reaches the client in its own words.
        with pytest.raises(openai.BadRequestError, match="temperature"):
            client.chat.completions.create(model="m3", messages=messages, temperature=-1)
        client.close()
        claude.close()


def test_sighup_reads_everything_again(tmp_path: Path, fleet: str) -> None:
    path = endpoints(tmp_path, fleet)
    body = {"model": "m3", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 1}
    log = tmp_path / "log"
    with running_gateway("--endpoints", str(path), "--profile", "open-source", log=log, FLEET_KEY=KEY) as (
        url,
        process,
    ):
        assert httpx.post(f"{url}/v1/chat/completions", json=body).status_code == 200
        path.write_text(path.read_text() + '\nstate = "withdrawn"\nreason = "export directive"\nsince = 2026-06-12\n')
        process.send_signal(signal.SIGHUP)
        _until(lambda: httpx.get(f"{url}/v1/models").json()["data"] == [])
        answer = httpx.post(f"{url}/v1/chat/completions", json=body)
        assert answer.status_code == 403
        assert answer.headers["x-freehold-clause"] == "not-available"
        assert "withdrawn since 2026-06-12 (export directive)" in answer.json()["error"]["message"]
        # A file that cannot be used changes nothing.
        path.write_text("nonsense")
        process.send_signal(signal.SIGHUP)
        _until(lambda: "stay as they were" in log.read_text())
        assert httpx.post(f"{url}/v1/chat/completions", json=body).status_code == 403


def _until(condition: Any) -> None:
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end, "it did not happen within ten seconds"
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"key_env": "NOT_SET"}, "the variable NOT_SET holds no key"),
        ({"key": "sk-abc"}, "keys do not stand in this file"),
        ({"api_key": "sk-abc"}, "keys do not stand in this file"),
        ({"pat": "x"}, "has 'pat', which nobody reads"),
        ({"path": "moon"}, "path is 'moon'"),
        ({"path": "vendor-api", "base_url": "http://api.example"}, "goes over https"),
        ({"base_url": "http://8.8.8.8"}, "is a public address"),
        ({"base_url": "http://user:pw@127.0.0.1"}, "no user, password"),
        ({"base_url": "ftp://x"}, "it must be an address"),
        ({"state": "withdrawn"}, "needs a reason"),
        ({"state": "gone"}, "state is 'gone'"),
        ({"disclosure": "nobody/knows"}, "nobody/knows"),
        ({"disclosure": "minimax-m3/api"}, "is about 'vendor-api'"),
        ({"models": []}, "models is []"),
        ({"api": "grpc"}, "api is 'grpc'"),
        ({"ca_file": "none.pem"}, "no such file"),
        ({"answer_seconds": 0}, "it must be a number above 0"),
        ({"facts": {"source": "signed-disclosure"}}, "what only an operator can know"),
        ({"facts": {"moon": 1}}, "facts have no 'moon'"),
    ],
)
def test_endpoints_that_cannot_be_relied_on_are_refused(tmp_path: Path, fields: dict[str, Any], says: str) -> None:
    path = endpoints(tmp_path, "http://127.0.0.1:1", **{"key_env": None, **fields})
    path.write_text("\n".join(line for line in path.read_text().splitlines() if not line.endswith("None")))
    done = CliRunner().invoke(main, ["gateway", "--endpoints", str(path), "--profile", "open-source", "--port", "0"])
    assert done.exit_code == 1
    assert says in done.output


def test_other_machines_need_a_key(tmp_path: Path) -> None:
    path = endpoints(tmp_path, "http://127.0.0.1:1", key_env="X")
    done = freehold("gateway", "--endpoints", str(path), "--profile", "open-source", "--host", "0.0.0.0")
    assert done.returncode == 1
    assert "there is no API key" in done.stderr
