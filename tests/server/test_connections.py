"""Slow and many connections cost little, and honest clients are served meanwhile."""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import socket
import ssl
import subprocess
import sys
import threading
import time
from datetime import datetime, timedelta, timezone

import httpx
import pytest

from freehold.core.errors import ConfigError
from freehold.server.app import create_app
from freehold.server.operation.connections import Door, protocol_class
from freehold.server.operation.metrics import Metrics
from freehold.server.operation.options import ServerOptions
from freehold.server.operation.port import allow_open_files
from freehold.server.operation.tls import tls_context
from freehold.server.run import Server, reserve_port, server_config, server_url
from support.fake_backend import FakeBackend, Script
from support.repository import ROOT

SCRIPT = Script()


@pytest.fixture
def serving():
    """`with serving(...) as (url, door):` a server behind a door, in a thread."""

    @contextlib.contextmanager
    def run(script=SCRIPT, *, max_connections=20, header_seconds=0.5, tls=None, app=(), **options):
        door = Door(max_connections=max_connections, header_seconds=header_seconds, metrics=Metrics(), context=tls)
        listener = reserve_port("127.0.0.1", 0)
        ready = threading.Event()
        settings = ServerOptions(access_log=False, **options)
        application = create_app(FakeBackend(script), **dict(app))
        config = server_config(application, log_level="critical", drain_seconds=1, door=door, options=settings)
        server = Server(config, ready.set)
        server.capture_signals = contextlib.nullcontext
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            assert ready.wait(10)
            yield server_url(listener, "http" if tls is None else "https"), door
        finally:
            server.should_exit = True
            thread.join(10)
            assert not thread.is_alive()
            listener.close()
            for name in ("freehold", "uvicorn"):
                logging.getLogger(name).setLevel(logging.NOTSET)

    return run


def connect(url):
    host, port = httpx.URL(url).host, httpx.URL(url).port
    return socket.create_connection((host, port), timeout=5)


def read_all(sock):
    data = b""
    with contextlib.suppress(ConnectionError):
        while chunk := sock.recv(65536):
            data += chunk
    return data


def open_slowly(url, count):
    """Connections that say less than a request; some say nothing."""
    sockets = []
    for number in range(count):
        sock = connect(url)
        with contextlib.suppress(ConnectionError):
            sock.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: local"[: number % 40])
        sockets.append(sock)
    return sockets


@pytest.mark.parametrize(("said", "answer"), [(b"", b""), (b"GET / HT", b"HTTP/1.1 408 ")])
def test_headers_that_do_not_come_end_the_connection(serving, said, answer):
    with serving() as (url, door), connect(url) as sock:
        begin = time.monotonic()
        sock.sendall(said)
        assert read_all(sock).startswith(answer)
        assert 0.4 < time.monotonic() - begin < 3
        assert door.num_open == 0


def test_one_byte_at_a_time_gives_no_more_time(serving):
    with serving() as (url, _), connect(url) as sock:
        begin = time.monotonic()
        with contextlib.suppress(ConnectionError):
            for byte in b"GET /health HTTP/1.1\r\nHost: localhost\r\nx: " + b"y" * 100:
                sock.sendall(bytes([byte]))
                time.sleep(0.02)
                if time.monotonic() - begin > 1.5:
                    break
        assert b"408" in read_all(sock)


def test_a_second_request_must_be_as_quick(serving):
    with serving() as (url, _), connect(url) as sock:
        sock.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert sock.recv(65536).startswith(b"HTTP/1.1 200")
        begin = time.monotonic()
        sock.sendall(b"GET /he")
        assert b"408" in read_all(sock)
        assert time.monotonic() - begin < 3


def test_a_long_answer_is_not_cut_by_the_limit_for_headers(serving):
    with serving(Script([b"x"] * 10, delay=0.1)) as (url, _):
        body = {"model": "fake/model", "prompt": "a"}
        assert httpx.post(f"{url}/v1/completions", json=body, timeout=10).status_code == 200


def test_kept_connections_live_longer_than_the_limit_for_headers(serving):
    with serving(header_seconds=0.3) as (url, _), httpx.Client(base_url=url) as client:
        client.get("/health")
        time.sleep(0.6)
        with connect(url):
            pass
        stream = client.get("/health").extensions["network_stream"]
        time.sleep(0.6)
        assert client.get("/health").extensions["network_stream"] is stream


def test_idle_connections_end(serving):
    with serving(idle_seconds=0.2) as (url, door), connect(url) as sock:
        sock.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert read_all(sock).startswith(b"HTTP/1.1 200")
        assert door.num_open == 0


def test_when_all_places_are_busy_the_next_is_told(serving):
    with serving(Script([b"x"] * 1000, delay=0.01), max_connections=2) as (url, _), contextlib.ExitStack() as stack:
        body = {"model": "fake/model", "prompt": "a", "stream": True, "max_tokens": 1000}
        answers = [
            stack.enter_context(httpx.stream("POST", f"{url}/v1/completions", json=body)).iter_lines() for _ in range(2)
        ]
        for answer in answers:
            next(answer)
        with connect(url) as sock:
            answer = read_all(sock)
        assert answer.startswith(b"HTTP/1.1 503 ")
        assert b"too_many_connections" in answer
        assert b"retry-after: 1" in answer


def test_the_one_that_waited_longest_makes_room(serving):
    with serving(max_connections=2, header_seconds=30) as (url, door), contextlib.ExitStack() as stack:
        first = stack.enter_context(connect(url))
        second = stack.enter_context(connect(url))
        # What it says does not make it younger.
        first.sendall(b"GET /")
        assert httpx.get(f"{url}/health").status_code == 200
        first.settimeout(2)
        assert read_all(first) == b""
        second.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert second.recv(100).startswith(b"HTTP/1.1 200")
        assert door.num_open <= 2


def test_honest_clients_are_served_among_hundreds_of_slow_ones(serving):
    with serving(max_connections=50, header_seconds=1.0) as (url, door):
        slow = open_slowly(url, 400)
        try:
            assert door.num_open <= 50
            for _ in range(5):
                assert httpx.get(f"{url}/health").status_code == 200
        finally:
            for sock in slow:
                sock.close()
        assert httpx.get(f"{url}/health").status_code == 200


SERVER = """
import sys
from support.fake_backend import FakeBackend
from freehold.server.operation.options import ServerOptions
from freehold.server.operation.port import allow_open_files
from freehold.server.run import serve
options = ServerOptions(access_log=False, max_connections=1000, header_seconds=5)
serve(FakeBackend(), port=0, options=options, on_ready=lambda url: print(url, flush=True))
"""


@pytest.mark.slow
def test_ten_thousand_slow_connections():
    allow_open_files(10_100)
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "tests")}
    process = subprocess.Popen([sys.executable, "-c", SERVER], stdout=subprocess.PIPE, text=True, env=environment)
    slow = []
    try:
        url = process.stdout.readline().strip()
        before = resident_of(process.pid)
        slow = open_slowly(url, 10_000)
        waits = []
        for _ in range(20):
            begin = time.monotonic()
            assert httpx.get(f"{url}/health", timeout=5).status_code == 200
            waits.append(time.monotonic() - begin)
        assert max(waits) < 2
        # A thousand parsers at most, not ten thousand.
        assert resident_of(process.pid) - before < 150 * 2**20
    finally:
        for sock in slow:
            sock.close()
        process.terminate()
        process.communicate(timeout=20)
    assert process.returncode == 0


def resident_of(pid):
    with open(f"/proc/{pid}/statm") as file:
        return int(file.read().split()[1]) * 4096


def test_what_is_no_http_and_too_long_headers_get_an_answer(serving):
    with serving() as (url, _):
        for sent, status in (
            (b"hello\r\n\r\n", b"400"),
            # Without an end, which the parser sees; a whole one is up to a guard.
            (b"GET /health HTTP/1.1\r\nx: " + b"y" * 40_000, b"431"),
        ):
            with connect(url) as sock, contextlib.suppress(ConnectionError):
                sock.sendall(sent)
                answer = read_all(sock)
            assert answer.startswith(b"HTTP/1.1 " + status)
            assert b"invalid_http_request" in answer


def test_long_targets_and_many_headers_are_refused(ask):
    asker = ask(create_app(FakeBackend()))
    assert asker.get("/v1/models?" + "x" * 9000).status_code == 414
    assert asker.get("/v1/models", headers={"x": "y" * 40_000}).status_code == 431
    assert asker.get("/v1/models", headers={f"x-{i}": "y" for i in range(120)}).status_code == 431


def test_a_slow_body_is_given_up(serving):
    with serving(app={"body_seconds": 0.3}) as (url, _), connect(url) as sock:
        sock.sendall(
            b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            b"Content-Length: 100\r\n\r\n{"
        )
        begin = time.monotonic()
        answer = read_all(sock)
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert time.monotonic() - begin < 3


AUTHORITY = """
[ca]
default_ca = own
[own]
dir = {folder}
new_certs_dir = {folder}
database = {folder}/index.txt
serial = {folder}/serial
default_md = sha256
policy = any
x509_extensions = names
unique_subject = no
[any]
commonName = supplied
[names]
subjectAltName = IP:127.0.0.1
[req]
distinguished_name = nobody
[nobody]
"""


def openssl(*arguments):
    subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True)


def make_certificate(folder, name="a", start="20200101000000Z", end="20990101000000Z"):
    """A certificate signed with its own key, and the key."""
    cert, key, request, config = (folder / f"{name}.{kind}" for kind in ("pem", "key", "csr", "cnf"))
    config.write_text(AUTHORITY.format(folder=folder))
    (folder / "index.txt").touch()
    if not (folder / "serial").exists():
        (folder / "serial").write_text("01")
    openssl("ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", key)
    openssl("req", "-new", "-config", config, "-subj", "/CN=localhost", "-key", key, "-out", request)
    dates = ("-startdate", start, "-enddate", end)
    openssl(
        "ca", "-batch", "-notext", "-selfsign", "-config", config, "-keyfile", key, "-in", request, "-out", cert, *dates
    )
    return cert, key


def test_tls(serving, tmp_path):
    cert, key = make_certificate(tmp_path)
    with serving(tls=tls_context(cert, key)) as (url, _):
        trust = ssl.create_default_context(cafile=str(cert))
        assert url.startswith("https://")
        with httpx.Client(base_url=url, verify=trust) as client:
            assert client.get("/health").json()["status"] == "ok"
            body = {"model": "fake/model", "prompt": "a" * 100_000}
            assert client.post("/v1/completions", json=body).status_code == 400
        with pytest.raises(httpx.ConnectError, match="certificate"):
            httpx.get(url, verify=ssl.create_default_context())


def test_a_handshake_that_does_not_come_ends(serving, tmp_path):
    cert, key = make_certificate(tmp_path)
    with serving(tls=tls_context(cert, key), max_connections=10) as (url, door):
        slow = [connect(url) for _ in range(30)]
        trust = ssl.create_default_context(cafile=str(cert))
        assert httpx.get(f"{url}/health", verify=trust).status_code == 200
        assert door.num_open <= 10
        begin = time.monotonic()
        read_all(slow[-1])
        assert time.monotonic() - begin < 3
        for sock in slow:
            sock.close()
        gc.collect()


def test_wrong_certificates_are_told_apart(tmp_path):
    cert, key = make_certificate(tmp_path)
    _, other = make_certificate(tmp_path, "b")
    old, old_key = make_certificate(tmp_path, "c", end="20210101000000Z")
    new, new_key = make_certificate(tmp_path, "d", start="20900101000000Z")
    locked = tmp_path / "locked.key"
    openssl("pkey", "-in", key, "-aes256", "-passout", "pass:x", "-out", locked)
    (tmp_path / "junk.pem").write_text("junk")
    for files, said in (
        ((tmp_path / "no.pem", key), r"certificate .*no\.pem cannot be read"),
        ((cert, tmp_path), "cannot be read"),
        ((cert, other), "does not belong to the certificate"),
        ((old, old_key), "has expired"),
        ((new, new_key), "not valid yet"),
        ((cert, locked), "has a passphrase"),
        ((tmp_path / "junk.pem", key), "not usable PEM"),
    ):
        with pytest.raises(ConfigError, match=said):
            tls_context(*files)
    tls_context(cert, key)


def test_a_certificate_that_soon_ends_is_warned_of(tmp_path, caplog):
    soon = datetime.now(timezone.utc) + timedelta(days=3)
    tls_context(*make_certificate(tmp_path, end=f"{soon:%Y%m%d%H%M%SZ}"))
    assert "expires in" in caplog.text


def test_the_protocol_has_the_door():
    door = Door(max_connections=1, header_seconds=1, metrics=Metrics())
    assert protocol_class(door).door is door


@pytest.mark.parametrize(("proxy", "named"), [((), "127.0.0.1"), (("127.0.0.0/8",), "203.0.113.7")])
def test_forwarded_addresses_are_believed_only_from_the_proxy(serving, proxy, named):
    seen = []

    async def app(scope, receive, send):
        seen.append(scope["client"][0])
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    options = ServerOptions(behind_proxy=proxy, access_log=False)
    config = server_config(app, log_level="critical", options=options)
    config.load()

    async def ask():
        transport = httpx.ASGITransport(config.loaded_app, client=("127.0.0.1", 1))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            await client.get("/", headers={"X-Forwarded-For": "198.51.100.1, 203.0.113.7"})

    import asyncio

    asyncio.run(ask())
    assert seen == [named]


def test_a_root_path_opens_nothing(serving):
    with serving(app={"api_key": "key"}, root_path="/llm") as (url, _):
        assert httpx.get(f"{url}/health").status_code == 200
        assert httpx.get(f"{url}/v1/models").status_code == 401
        assert httpx.get(f"{url}/v1/models", headers={"x-api-key": "key"}).status_code == 200
        assert httpx.get(f"{url}/metrics", headers={"x-api-key": "key"}).status_code == 200
        assert httpx.post(f"{url}/v1/messages", json={}).json()["type"] == "error"
