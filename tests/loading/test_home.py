"""Where data is kept."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from freehold.loading.home import freehold_home, models_dir


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FREEHOLD_HOME", raising=False)
    monkeypatch.delenv("XDG_DATA_HOME", raising=False)
    monkeypatch.setenv("HOME", "/home/ada")
    monkeypatch.setattr(sys, "platform", "linux")


def test_the_variable_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", "/data")
    monkeypatch.setenv("FREEHOLD_HOME", "/srv/freehold")
    assert freehold_home() == Path("/srv/freehold")
    assert models_dir() == Path("/srv/freehold/models")


def test_the_variable_may_be_relative_or_begin_with_a_tilde(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FREEHOLD_HOME", "here")
    assert freehold_home() == tmp_path / "here"
    monkeypatch.setenv("FREEHOLD_HOME", "~/there")
    assert freehold_home() == Path("/home/ada/there")


def test_an_empty_variable_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FREEHOLD_HOME", "")
    assert freehold_home() == Path("/home/ada/.local/share/freehold")


@pytest.mark.parametrize(("data", "home"), [("/data", "/data/freehold"), ("data", "/home/ada/.local/share/freehold")])
def test_xdg(monkeypatch: pytest.MonkeyPatch, data: str, home: str) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", data)
    assert freehold_home() == Path(home)


def test_macos(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert freehold_home() == Path("/home/ada/Library/Application Support/freehold")


def test_pull_imports_nothing_heavy() -> None:
    code = (
        "import sys, freehold.loading.home, freehold.loading.pull;"
        "print({'torch', 'numpy', 'gguf', 'huggingface_hub', 'safetensors'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
