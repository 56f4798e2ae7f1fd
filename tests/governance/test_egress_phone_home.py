"""Nothing that this package imports or does by itself tries to reach anybody, looked at where nobody can be reached."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

from freehold.governance.egress.recorder import read_attempts
from support.repository import PACKAGE, ROOT, module_name, sources, tree
from support.sealing import need_a_seal
from support.tiny_m3 import SHAPES, write_tiny_m3

COMMAND = [sys.executable, "-m", "freehold.cli.main"]


@pytest.fixture(scope="module", autouse=True)
def _sealable() -> None:
    need_a_seal()


def watched(command: list[str], tmp_path: Path) -> tuple[subprocess.CompletedProcess[str], list[str]]:
    """Run a command to its end; whom it tried to reach beside Unix sockets."""
    record = tmp_path / "record"
    path = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), str(ROOT / "src"), str(ROOT / "tests")]))
    variables = {**os.environ, "PYTHONPATH": path, "FREEHOLD_HOME": str(tmp_path / "home")}
    # As people have it: what the tests switch off must be silent by itself.
    for name in ("HF_HUB_OFFLINE", "HF_HUB_DISABLE_TELEMETRY", "DO_NOT_TRACK"):
        variables.pop(name, None)
    words = [sys.executable, "-m", "support.phone_home", str(record), *command]
    done = subprocess.run(words, capture_output=True, text=True, env=variables, timeout=240, cwd=tmp_path)
    found = [
        f"{line['program']}: {line['call']} {line['address']}"
        for line in read_attempts(record)
        if line["address"] is not None and not line["address"].startswith("AF_UNIX")
    ]
    return done, found


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("models") / "tiny"
    write_tiny_m3(SHAPES["mixed_layers"], directory)
    return directory


@pytest.mark.parametrize(
    ("code", "seen"),
    [
        ("import socket; socket.socket().connect_ex(('192.0.2.1', 80))", "connect AF_INET 192.0.2.1:80"),
        ("import socket; socket.socket(type=2).sendto(b'x', ('192.0.2.1', 53))", "sendto AF_INET 192.0.2.1:53"),
        ("import socket; socket.socket(10, 2).sendmsg([b'x'], [], 0, ('::1', 5))", "sendmsg AF_INET6 [::1]:5"),
        (
            "import subprocess; subprocess.run(['bash', '-c', ': > /dev/tcp/192.0.2.1/9'])",
            "connect AF_INET 192.0.2.1:9",
        ),
    ],
)
def test_the_watch_sees_who_is_called(code: str, seen: str, tmp_path: Path) -> None:
    _, found = watched([sys.executable, "-c", code], tmp_path)
    assert any(line.endswith(seen) for line in found), found


def third_parties() -> list[str]:
    """Every package that any file of ours imports anywhere, inside of functions too."""
    names = set()
    for path in sources():
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                names.add(node.module)
    return sorted(name for name in names if name.partition(".")[0] not in {"freehold", *sys.stdlib_module_names})


def test_imports_call_nobody(tmp_path: Path) -> None:
    """Every module of the package, and every third-party module that one of them imports when it needs it."""
    modules = [module_name(path) for path in sources() if path.name not in ("__main__.py",)]
    ours = [name.removesuffix(".__init__") for name in modules if not name.split(".")[-1].startswith("side_")]
    code = f"""
import importlib
for name in {third_parties()!r}:
    try: importlib.import_module(name)
    except ImportError as error: print("absent", name, error)
for name in {ours!r}: importlib.import_module(name)
print("imported", {len(ours)})
"""
    done, found = watched([sys.executable, "-c", code], tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.splitlines()[-1] == f"imported {len(ours)}"
    assert found == []


@pytest.mark.parametrize(
    "arguments",
    [
        ["generate", "--model", "MODEL", "--max-tokens", "3", "--prompt", "Once upon a time"],
        ["plan", "MODEL"],
        ["doctor"],
        ["models"],
        ["convert", "--help"],
        ["quantize", "MODEL", "OUT", "--bits", "8"],
        ["keys", "add", "somebody"],
        ["disclose"],
        ["disclose", "minimax-m3/self-hosted", "--out", "OUT"],
        ["policy", "show", "product-company"],
        ["cache", "list"],
    ],
    ids=" ".join,
)
def test_commands_call_nobody(arguments: list[str], model: Path, tmp_path: Path) -> None:
    words = [{"MODEL": str(model), "OUT": str(tmp_path / "out")}.get(word, word) for word in arguments]
    done, found = watched([*COMMAND, *words], tmp_path)
    # What these two find wrong with the machine is another matter.
    assert done.returncode == 0 or (words[0] in ("doctor", "plan") and len(done.stdout) > 200), done.stderr[-2000:]
    assert found == []


@pytest.mark.model
def test_the_default_model_calls_nobody(default_model: Path, tmp_path: Path) -> None:
    words = ["generate", "--model", str(default_model), "--max-tokens", "3", "--chat", "--prompt", "Hello"]
    done, found = watched([*COMMAND, *words], tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    assert found == []


def test_every_subcommand_s_help_calls_nobody(tmp_path: Path) -> None:
    code = """
import click
from freehold.cli.main import COMMANDS, main
for name in COMMANDS:
    main.get_command(click.Context(main), name)
    main([name, "--help"], standalone_mode=False)
"""
    done, found = watched([sys.executable, "-c", code], tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    assert found == []


def test_all_modules_are_looked_at() -> None:
    assert len(sources(PACKAGE)) > 200
    assert {"torch", "uvicorn", "huggingface_hub"} <= {name.partition(".")[0] for name in third_parties()}
