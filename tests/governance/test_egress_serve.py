"""`freehold serve --seal`: a real server with a model in MiniMax-M3's shape, that answers and cannot get out."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from freehold.governance.egress.namespaces import network_namespace, packets, process_status
from freehold.governance.egress.recorder import read_attempts
from support.nobody import interpreter, own_directory
from support.repository import ROOT
from support.sealing import need_a_seal
from support.tiny_m3 import SHAPES, write_tiny_m3


@pytest.fixture(scope="module", autouse=True)
def _sealable() -> None:
    need_a_seal()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("models") / "tiny"
    write_tiny_m3(SHAPES["mixed_layers"], directory)
    return directory


@dataclass(frozen=True)
class Sealed:
    """A running server. record: its attempts; log: its stderr."""

    url: str
    pid: int
    record: Path
    log: Path

    def health(self) -> dict[str, Any]:
        found: dict[str, Any] = httpx.get(f"{self.url}/health", timeout=20).json()
        return found

    def generate(self, text: str) -> str:
        body = {"model": "tiny", "prompt": text, "max_tokens": 4, "temperature": 0}
        answer = httpx.post(f"{self.url}/v1/completions", json=body, timeout=60)
        assert answer.status_code == 200, answer.text
        return str(answer.json()["choices"][0]["finish_reason"])


@contextmanager
def serving(model: Path, base: Path, user: str, *options: str, plant: dict[str, str] | None = None) -> Iterator[Sealed]:
    """`freehold serve` with these options, as this user or as nobody, with its data in `base`; skips where nobody
    cannot run it."""
    command, variables, who = [sys.executable], dict(os.environ), {}
    if user == "nobody":
        found = interpreter()
        if isinstance(found, str):
            pytest.skip(found)
        command, variables = found
        who = {"user": "nobody", "group": "nogroup", "extra_groups": []}
        shutil.copytree(model, base / "tiny")
        model = base / "tiny"
        for path in model.iterdir():
            path.chmod(0o644)
    packages = os.pathsep.join(filter(None, [variables.get("PYTHONPATH"), str(ROOT / "src")]))
    variables = {**variables, "PYTHONPATH": packages, "FREEHOLD_HOME": str(base / "home"), "FREEHOLD_DEBUG": "1"}
    if plant is not None:
        variables |= {**plant, "PYTHONPATH": f"{packages}{os.pathsep}{ROOT / 'tests'}"}
    log = base / "log"
    program = "freehold.cli.main" if plant is None else "support.planted_thief"
    words = [*command, "-m", program, "serve", str(model), "--port", "0", *options]
    with log.open("w") as errors:
        process = subprocess.Popen(
            words, stdout=subprocess.PIPE, stderr=errors, text=True, env=variables, cwd="/", **who
        )
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        assert line.startswith("Serving "), log.read_text()[-2000:]
        url = next(word for word in line.split() if word.startswith("http")).removesuffix("/v1")
        yield Sealed(url, process.pid, base / "home-seal" / "attempts.jsonl", log)
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0, log.read_text()[-2000:]
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


@contextmanager
def home(user: str, tmp_path: Path) -> Iterator[Path]:
    if user != "nobody":
        yield tmp_path
        return
    if isinstance(found := interpreter(), str):
        pytest.skip(found)
    with own_directory() as made:
        yield made


@pytest.mark.parametrize(("user", "cheap", "generated"), [("this user", 980, 20), ("nobody", 190, 10)])
def test_a_thousand_requests_and_no_packet(model: Path, tmp_path: Path, user: str, cheap: int, generated: int) -> None:
    with home(user, tmp_path) as base, serving(model, base, user, "--seal", "--log-level", "warning") as server:
        assert network_namespace(server.pid) != network_namespace()
        status = process_status(server.pid)
        assert (status["Seccomp"], status["NoNewPrivs"], int(status["CapPrm"], 16)) == ("2", "1", 0)
        with httpx.Client(timeout=20) as client:
            for number in range(cheap):
                assert client.get(f"{server.url}/{('health', 'v1/models')[number % 2]}").status_code == 200
        for number in range(generated):
            assert server.generate(f"Question {number}: ") in ("length", "stop")
        counted = packets(server.pid)
        assert set(counted.values()) == {0}
        assert counted.keys() >= {"lo.sent", "ip.OutRequests"}
        assert {name.partition(".")[0] for name in counted} <= {"lo", "ip", "ip6"}
        seal = server.health()["seal"]
        assert (seal["refused"], seal["missing"]) == (0, {})
        assert sorted(seal["layers"]) == ["capabilities", "filter", "landlock", "namespace", "record"]
        assert read_attempts(server.record) == []
        assert list((base / "home" / "blocks").iterdir()) != []  # what it may write, it writes


class Collector:
    """Where stolen data would arrive."""

    def __init__(self) -> None:
        self.received: list[str] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._collect, daemon=True)
        self._thread.start()

    def _collect(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            with client:
                self.received.append(client.recv(4096).decode().split()[1])
                client.sendall(b"HTTP/1.0 204 No Content\r\n\r\n")

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()


@pytest.fixture
def collector() -> Iterator[Collector]:
    made = Collector()
    yield made
    made.close()


STOLEN = ["/stolen-by-urllib", "/stolen-by-ctypes", "/stolen-by-curl"]


@pytest.mark.parametrize(("user", "sealed"), [("this user", False), ("this user", True), ("nobody", True)])
def test_a_planted_thief_gets_out_only_without_the_seal(
    model: Path, tmp_path: Path, collector: Collector, user: str, sealed: bool
) -> None:
    if shutil.which("curl") is None:
        pytest.skip("there is no curl")
    with home(user, tmp_path) as base:
        for directory in (base / "home", base / "home" / "tmp"):
            directory.mkdir(mode=0o777)
            directory.chmod(0o777)
        note = base / "home" / "tmp" / "note"
        plant = {"FREEHOLD_PLANTED_PORT": str(collector.port), "FREEHOLD_PLANTED_NOTE": str(note)}
        with serving(model, base, user, *(["--seal"] if sealed else []), plant=plant) as server:
            health = server.health()
            outcome = json.loads(note.read_text())
            if not sealed:
                assert set(outcome.values()) == {"out"}
                assert collector.received == STOLEN
                return
            again = server.health()
        assert collector.received == []
        assert "out" not in outcome.values()
        attempts = read_attempts(server.record)
        assert {found["program"].rstrip("0123456789.") for found in attempts} >= {"python", "curl"}
        assert {(found["call"], found["address"]) for found in attempts} >= {("socket", "AF_INET")}
        assert health["status"] == "ok"  # it goes on answering
        assert again["seal"]["refused"] >= 3
        assert "seal: refused socket to AF_INET by curl" in server.log.read_text()


def run_serve(base: Path, *options: str, **descriptors: Any) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-m", "freehold.cli.main", "serve", "--port", "0", *options]
    path = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), str(ROOT / "src")]))
    variables = {**os.environ, "FREEHOLD_HOME": str(base / "home"), "PYTHONPATH": path}
    return subprocess.run(words, capture_output=True, text=True, env=variables, timeout=60, **descriptors)


def test_a_connection_that_was_handed_down_is_refused(model: Path, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_connection(listener.getsockname()) as client:
        number = client.fileno()
        done = run_serve(tmp_path, str(model), "--seal", pass_fds=[number])
    assert done.returncode == 1
    assert f"Descriptor {number} is a socket" in done.stderr


def test_a_sealed_server_fetches_nothing(tmp_path: Path) -> None:
    done = run_serve(tmp_path, "--seal")
    assert done.returncode == 1
    assert "freehold pull" in done.stderr


KEYS = ("audit-key.pem", "ledger-key.pem", "keys.json", "disclosure-key.pem")
SEALED_BY_SERVE = """
import json, socket, sys
from pathlib import Path
from freehold.cli.sealing import Sealing
from freehold.core.errors import GovernanceError
home, model, places = Path(sys.argv[1]), sys.argv[2], [Path(name) for name in sys.argv[3:]]
listener = socket.create_server(("127.0.0.1", 0))
try:
    Sealing((), None, ()).stand(listener, model, places, [home / "ledger-key.pem"], "text")
except GovernanceError as error:
    sys.exit(str(error))
said = {}
def attempt(name, act):
    try: act()
    except OSError as error: said[name] = error.errno
    else: said[name] = 0
for name in ("audit-key.pem", "ledger-key.pem", "keys.json", "disclosure-key.pem"):
    attempt(f"write {name}", lambda: (home / name).write_text("replaced"))
    attempt(f"remove {name}", lambda: (home / name).unlink())
    attempt(f"replace {name}", lambda: (home / "tmp" / "x").rename(home / name))
attempt("new", lambda: (home / "new").write_text("x"))
for name in ("tmp", "budgets", "experts"):
    attempt(f"in {name}", lambda: (home / name / "x").write_text("x"))
print(json.dumps(said))
"""


def sealed_as_serve_does(home: Path, model: Path, *places: Path) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), str(ROOT / "src")]))
    variables = {**os.environ, "PYTHONPATH": path, "FREEHOLD_HOME": str(home)}
    words = [sys.executable, "-c", SEALED_BY_SERVE, str(home), str(model), *map(str, places)]
    return subprocess.run(words, capture_output=True, text=True, timeout=60, env=variables)


def test_keys_cannot_be_replaced_from_inside(model: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    (home / "tmp").mkdir(parents=True)
    (home / "tmp" / "x").write_text("mine")
    for name in KEYS:
        (home / name).write_text("key")
    done = sealed_as_serve_does(home, model)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert {said.pop(f"in {name}") for name in ("tmp", "budgets", "experts")} == {0}
    assert set(said.values()) <= {13, 18}  # EACCES; EXDEV is how Landlock refuses to move a file
    assert {(home / name).read_text() for name in KEYS} == {"key"}


def test_keys_must_not_lie_where_the_server_writes(model: Path, tmp_path: Path) -> None:
    done = sealed_as_serve_does(tmp_path / "home", model, tmp_path / "home")
    assert done.returncode == 1
    assert "audit-key.pem lies in" in done.stderr
    assert "Keep keys apart" in done.stderr


@pytest.mark.parametrize(
    "options", [["--seal-without", "landlock"], ["--seal-record", "x"], ["--seal-with-mount", "/far"]]
)
def test_options_of_a_seal_need_one(tmp_path: Path, options: list[str]) -> None:
    done = run_serve(tmp_path, *options)
    assert done.returncode == 2
    assert "belong to --seal" in done.stderr


def test_nothing_of_a_model_is_imported_before_the_seal(model: Path, tmp_path: Path) -> None:
    """The modules at the moment when the seal begins."""
    code = f"""
import os, sys
from freehold.governance.egress import seal as module
def seal(*_, **__):
    print([name for name in sys.modules if name.split(".")[0] in HEAVY or name.startswith(OURS)])
    sys.stdout.flush()
    os._exit(0)
HEAVY = {{"torch", "numpy", "tokenizers", "jinja2", "fastapi", "uvicorn", "pydantic", "safetensors", "gguf"}}
OURS = ("freehold.model", "freehold.engine", "freehold.cache", "freehold.kernels", "freehold.server.app")
module.seal = seal
from freehold.cli.main import main
main(["serve", {str(model)!r}, "--port", "0", "--seal"])
"""
    path = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), str(ROOT / "src")]))
    variables = {**os.environ, "PYTHONPATH": path, "FREEHOLD_HOME": str(tmp_path / "home")}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=variables)
    assert done.stdout == "[]\n", done.stderr
