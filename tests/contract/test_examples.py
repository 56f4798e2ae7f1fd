"""Every example runs, as its reader would run it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from support.repository import ROOT
from support.running import running_server

EXAMPLES = ROOT / "examples"


def run(name: str, *arguments: str) -> str:
    command = [sys.executable, "-W", "error", str(EXAMPLES / name), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_example_has_its_test_here() -> None:
    names = {path.stem for path in EXAMPLES.glob("*.py")}
    tests = {name.removeprefix("test_example_") for name in globals() if name.startswith("test_example_")}
    assert names == tests


@pytest.mark.model
def test_example_generate(default_model: Path) -> None:
    said = run("generate.py", "The capital of France is")
    assert said.startswith("The capital of France is Paris")


@pytest.mark.model
def test_example_openai_client(default_model: Path, tmp_path: Path) -> None:
    with running_server(log=tmp_path / "server.log") as server:
        said = run("openai_client.py", server.base_url)
    assert len(said.split()) > 5
