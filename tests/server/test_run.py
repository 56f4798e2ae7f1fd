from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from freehold.core.errors import ConfigError
from freehold.server.app import create_app
from freehold.server.operation.options import ServerOptions
from freehold.server.operation.port import allow_open_files
from freehold.server.run import Server, require_key, reserve_port, serve, server_config, server_url
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
        serve(FakeBackend(), listener=listener, options=ServerOptions(log_level="loud"))
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
from freehold.server.operation.options import ServerOptions
from freehold.server.run import serve
backend = FakeBackend(Script([b"x"] * int(sys.argv[1]), delay=0.02))
options = ServerOptions(drain_seconds=float(sys.argv[2]))
done = serve(backend, port=0, options=options, on_ready=lambda url: print(url, flush=True))
print("whole" if done else "forced", flush=True)
print("cut short:", sum(stream.was_cut_short for stream in backend.streams), flush=True)
"""


@pytest.fixture
def start_process():
    processes = []

    def start(num_tokens: int, drain_seconds: float = 1) -> tuple[subprocess.Popen[str], str]:
        root = Path(__file__).parents[2]
        environment = {**os.environ, "PYTHONPATH": f"{root / 'src'}{os.pathsep}{root / 'tests'}"}
        process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(num_tokens), str(drain_seconds)],
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
    assert out.split("\n")[:2] == ["whole", f"cut short: {cut_short}"]
    assert ("shutting down" in text) == (cut_short == 1)
    assert (whole and text.endswith("[DONE]")) == (cut_short == 0)
    assert time.monotonic() - signalled < 5


def stream_body(num_tokens: int) -> dict[str, object]:
    return {"model": "fake/model", "prompt": "a", "max_tokens": num_tokens, "stream": True}


def test_while_it_drains_new_work_is_refused_and_it_is_not_ready(start_process):
    process, url = start_process(50, 5)
    with httpx.Client(base_url=url, timeout=10) as client:
        assert client.get("/health/ready").json() == {"status": "ready"}
        with client.stream("POST", "/v1/completions", json=stream_body(50)) as response:
            lines = response.iter_lines()
            next(lines)
            process.send_signal(signal.SIGTERM)
            time.sleep(0.3)
            # Other connections are still taken, and told.
            ready = httpx.get(f"{url}/health/ready")
            refused = httpx.post(f"{url}/v1/completions", json=stream_body(1))
            assert httpx.get(f"{url}/health").status_code == 200
            text = "".join(lines)
    assert (ready.status_code, ready.json()["status"]) == (503, "draining")
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "shutting_down")
    assert "retry-after" in refused.headers
    assert text.endswith("[DONE]")
    process.communicate(timeout=10)
    assert process.returncode == 0


def test_an_orderly_end_is_no_error_in_the_log(start_process):
    """However many answers it cuts short, whole ones and streams."""
    process, url = start_process(10_000, 0.5)
    body = stream_body(10_000)
    with (
        ThreadPoolExecutor() as pool,
        httpx.stream("POST", f"{url}/v1/completions", json=body, timeout=20) as response,
    ):
        whole = pool.submit(httpx.post, f"{url}/v1/completions", json={**body, "stream": False}, timeout=20)
        lines = response.iter_lines()
        next(lines)
        while httpx.get(f"{url}/health").json()["engine"]["requests"] < 2:
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        assert "shutting down" in "".join(lines)
        assert whole.result().status_code == 503
    _, err = process.communicate(timeout=10)
    assert process.returncode == 0
    assert "2 running streams are cancelled" in err
    assert err.count("warning: request ") == 2
    assert " error: " not in err
    assert "Traceback" not in err


def test_a_second_signal_does_not_wait(start_process):
    process, url = start_process(10_000, 60)
    with httpx.stream("POST", f"{url}/v1/completions", json=stream_body(10_000), timeout=20) as response:
        lines = response.iter_lines()
        next(lines)
        process.send_signal(signal.SIGTERM)
        time.sleep(0.2)
        process.send_signal(signal.SIGTERM)
        signalled = time.monotonic()
        assert "shutting down" in "".join(lines)
    out, _ = process.communicate(timeout=10)
    assert time.monotonic() - signalled < 5
    assert out.split("\n")[0] == "forced"


def test_limits_of_open_files_are_checked():
    with pytest.raises(ConfigError, match=r"needs \d+ open files"):
        allow_open_files(10**9)


def test_a_hangup_is_no_end(start_process):
    process, url = start_process(1)
    process.send_signal(signal.SIGHUP)
    time.sleep(0.2)
    assert httpx.get(f"{url}/health").status_code == 200


def test_a_hangup_reads_the_keys_again():
    called = []
    server = Server(server_config(create_app(FakeBackend()), log_level="warning"), on_hangup=lambda: called.append(1))
    with server.capture_signals():
        signal.raise_signal(signal.SIGHUP)
    assert called == [1]
