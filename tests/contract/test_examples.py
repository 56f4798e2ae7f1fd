"""Every example runs, as its reader would run it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.client_side import serving_script
from support.repository import ROOT
from support.running import RunningServer, running_server
from support.scripted_answers import ScriptedAnswer, ScriptedTalk, call
from support.small_m3 import write_small_m3

EXAMPLES = ROOT / "examples"


def run(name: str, *arguments: str) -> str:
    command = [sys.executable, "-W", "error", str(EXAMPLES / name), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=ROOT)
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


@pytest.fixture(scope="module")
def server(default_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    with running_server(log=tmp_path_factory.mktemp("server") / "log") as running:
        yield running


@pytest.mark.model
def test_example_openai_client(server: RunningServer) -> None:
    said = run("openai_client.py", server.base_url)
    assert len(said.split()) > 5


@pytest.mark.model
def test_example_responses_client(server: RunningServer) -> None:
    said = run("responses_client.py", server.base_url)
    counts = [line for line in said.splitlines() if line.endswith("of them known]")]
    assert len(counts) == 2
    # The second prompt is longer than the first, and what was known before is no more computed.
    assert int(counts[1].split()[2]) > int(counts[0].split()[0].removeprefix("["))


@pytest.mark.model
def test_example_anthropic_client(server: RunningServer) -> None:
    said = run("anthropic_client.py", server.base_url.removesuffix("/v1"))
    assert said.startswith("[")
    assert len(said.split()) > 5


def test_example_chat_with_tools(tmp_path: Path) -> None:
    question = "What is the project called?"
    answers = [
        ScriptedAnswer("", "I read it.", [call("read_file", path="README.md")]),
        ScriptedAnswer("It is called Freehold.", "It says so."),
    ]
    with serving_script([ScriptedTalk(question, answers)], write_small_m3(tmp_path), tmp_path / "server") as served:
        said = run("chat_with_tools.py", question, served.openai)
        served.check_prefixes(question)
        assert (
            "# Freehold" in served.answered(question)[1]["end"] or "Apache-2.0" in served.answered(question)[1]["end"]
        )
    assert said.strip() == "It is called Freehold."
