from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from freehold.core.errors import ConfigError
from freehold.server.run import Server, require_key, reserve_port, serve, server_url
from support.fake_backend import FakeBackend


def test_a_taken_port_is_told_with_the_way_out():
    with reserve_port("127.0.0.1", 0) as first:
        port = first.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"port {port} .*--port"):
            reserve_port("127.0.0.1", port)
    reserve_port("127.0.0.1", port).close()


def test_a_reserved_port_is_handed_to_the_server_and_closed_in_the_end():
    listener = reserve_port("127.0.0.1", 0)
    with pytest.raises(ConfigError, match="log_level"):
        serve(FakeBackend(), listener=listener, log_level="loud")
    # Refused before it began: the socket still belongs to the caller.
    assert listener.fileno() >= 0
    listener.close()


@pytest.mark.parametrize("port", [-1, 65536])
def test_no_port(port):
    with pytest.raises(ConfigError, match="between 0 and 65535"):
        reserve_port("127.0.0.1", port)


def test_a_host_that_is_not_here():
    with pytest.raises(ConfigError, match="--host"):
        reserve_port("192.0.2.1", 0)
    with pytest.raises(ConfigError, match="--host"):
        reserve_port("a" * 70 + ".invalid", 0)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "", "192.0.2.7"])
def test_other_machines_need_a_key(host, monkeypatch):
    monkeypatch.setattr(Server, "run", lambda *_, **__: pytest.fail("it was served"))
    with pytest.raises(ConfigError, match="no API key"):
        require_key(host, None)
    with pytest.raises(ConfigError, match="no API key"):
        serve(FakeBackend(), host=host, port=0)
    require_key(host, "key")


def test_a_given_socket_is_judged_by_its_own_address(monkeypatch):
    monkeypatch.setattr(Server, "run", lambda *_, **__: pytest.fail("it was served"))
    with socket.socket() as listener:
        listener.bind(("0.0.0.0", 0))
        with pytest.raises(ConfigError, match="no API key"):
            serve(FakeBackend(), host="127.0.0.1", listener=listener)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "127.9.9.9"])
def test_this_machine_needs_none(host):
    require_key(host, None)


def test_urls():
    with reserve_port("127.0.0.1", 0) as listener:
        assert server_url(listener) == f"http://127.0.0.1:{listener.getsockname()[1]}"
    with reserve_port("0.0.0.0", 0) as listener:
        assert server_url(listener).startswith("http://127.0.0.1:")


PROGRAM = """
import sys
from support.fake_backend import FakeBackend, Script
from freehold.server.run import serve
backend = FakeBackend(Script([b"x"] * int(sys.argv[1]), delay=0.02))
serve(backend, port=0, drain_seconds=1, on_ready=lambda url: print(url, flush=True))
print("cut short:", sum(stream.was_cut_short for stream in backend.streams), flush=True)
"""


@pytest.fixture
def start_process():
    processes = []

    def start(num_tokens: int) -> tuple[subprocess.Popen[str], str]:
        root = Path(__file__).parents[2]
        environment = {**os.environ, "PYTHONPATH": f"{root / 'src'}{os.pathsep}{root / 'tests'}"}
        process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(num_tokens)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        processes.append(process)
        assert process.stdout is not None
        return process, process.stdout.readline().strip()

    yield start
    for process in processes:
        process.kill()
        process.communicate()


@pytest.mark.parametrize(("kind", "num_tokens", "cut_short"), [("SIGTERM", 25, 0), ("SIGINT", 10_000, 1)])
def test_a_signal_lets_short_requests_end_and_cancels_long_ones(start_process, kind, num_tokens, cut_short):
    process, url = start_process(num_tokens)
    body = {"model": "fake/model", "prompt": "a", "max_tokens": num_tokens, "stream": True}
    text, whole = "", True
    with httpx.stream("POST", f"{url}/v1/completions", json=body, timeout=20) as response:
        try:
            for line in response.iter_lines():
                if not text:
                    process.send_signal(getattr(signal, kind))
                    signalled = time.monotonic()
                text += line
        except httpx.RemoteProtocolError:
            whole = False
    out, err = process.communicate(timeout=10)
    # `serve` returned, instead of dying of the signal.
    assert process.returncode == 0, err
    assert out.strip() == f"cut short: {cut_short}"
    assert (whole and text.endswith("[DONE]")) == (cut_short == 0)
    assert time.monotonic() - signalled < 5
