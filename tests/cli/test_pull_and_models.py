"""`freehold pull` and `freehold models`, and when a command fetches the default model by itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from safetensors.numpy import save_file

import freehold.loading.pull
from freehold.cli.main import main
from freehold.cli.model import obtain
from freehold.core.errors import DownloadError, ModelNotFoundError
from freehold.loading.pull import DEFAULT_MODEL


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty FREEHOLD_HOME."""
    monkeypatch.setenv("FREEHOLD_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    folder = tmp_path / "tiny"
    folder.mkdir()
    save_file({"weight": np.zeros((3, 5), np.float32)}, folder / "model.safetensors")
    (folder / "config.json").write_text('{"model_type": "llama"}')
    return folder


def test_pull_gives_a_checkpoint_a_name_that_models_lists(checkpoint: Path) -> None:
    pulled = CliRunner().invoke(main, ["pull", str(checkpoint), "--name", "mine"])
    assert pulled.exit_code == 0, pulled.output
    assert pulled.stdout == f"mine is ready: {checkpoint}\n"
    listed = CliRunner().invoke(main, ["models"])
    assert listed.stdout.split()[0] == "mine"
    assert listed.stdout.split()[-1] == str(checkpoint)


def test_json_stands_on_the_last_line(checkpoint: Path) -> None:
    pulled = CliRunner().invoke(main, ["pull", str(checkpoint), "--json"])
    said = json.loads(pulled.stdout.splitlines()[-1])
    size = (checkpoint / "model.safetensors").stat().st_size
    assert said == {"name": "tiny", "path": str(checkpoint), "source": str(checkpoint), "size": size}
    listed = CliRunner().invoke(main, ["models", "--json"])
    assert [model["name"] for model in json.loads(listed.stdout.splitlines()[-1])["models"]] == ["tiny"]


def test_pull_reports_the_name_that_was_given(checkpoint: Path) -> None:
    for name in ("first", "second", "first"):
        pulled = CliRunner().invoke(main, ["pull", str(checkpoint), "--name", name, "--json"])
        assert json.loads(pulled.stdout)["name"] == name


def test_no_models_is_no_error() -> None:
    listed = CliRunner().invoke(main, ["models"])
    assert (listed.exit_code, listed.stdout) == (0, "")
    assert "freehold pull" in listed.stderr


def test_what_is_not_there_is_an_error_without_traceback() -> None:
    pulled = CliRunner().invoke(main, ["pull", "./nowhere.gguf"])
    assert pulled.exit_code == 1
    assert pulled.stderr.startswith("error: ")
    assert "nowhere.gguf" in pulled.stderr
    assert "Traceback" not in pulled.output


def test_progress_of_a_pull_is_shown_once_a_stage(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = freehold.loading.pull.pull

    def slow(source: str, *, name: str | None, progress: Any) -> Path:
        for stage in ("downloading", "unpacking"):
            for done in (0, 5_000_000, 98_000_000):
                progress(stage, done, 98_000_000)
        return real(source, name=name)

    monkeypatch.setattr(freehold.loading.pull, "pull", slow)
    pulled = CliRunner().invoke(main, ["pull", str(checkpoint)])
    assert pulled.stderr.splitlines() == [
        f"downloading {checkpoint} (98 MB)",
        f"unpacking {checkpoint} (98 MB)",
    ]


def test_default_model_is_fetched_only_if_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    fetched: list[str] = []
    monkeypatch.setattr(freehold.loading.pull, "pull", lambda source, **_: fetched.append(source))
    assert obtain(None) == DEFAULT_MODEL
    assert obtain(DEFAULT_MODEL) == DEFAULT_MODEL
    assert fetched == [DEFAULT_MODEL, DEFAULT_MODEL]
    monkeypatch.setattr(freehold.loading.pull, "resolve", lambda model: Path("here.gguf"))
    assert obtain(None) == DEFAULT_MODEL
    assert len(fetched) == 2


def test_no_other_model_is_fetched_unasked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(freehold.loading.pull, "pull", lambda *_, **__: pytest.fail("fetched unasked"))
    assert obtain("org/other") == "org/other"


@pytest.mark.parametrize("error", [DownloadError("the disk is full; free some"), ModelNotFoundError("no model 'x'")])
def test_errors_end_with_status_1_and_debug_shows_where(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fail(*_: Any, **__: Any) -> Path:
        raise error

    monkeypatch.setattr(freehold.loading.pull, "pull", fail)
    done = CliRunner().invoke(main, ["pull"])
    assert (done.exit_code, done.stderr) == (1, f"error: {error}\n")
    monkeypatch.setenv("FREEHOLD_DEBUG", "1")
    assert CliRunner().invoke(main, ["pull"]).exception is error


@pytest.mark.parametrize("arguments", [["fly"], ["pull", "--wings", "2"], ["models", "extra"]])
def test_unknown_words_are_wrong_usage(arguments: list[str]) -> None:
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 2
    assert arguments[-1] in done.output or "--wings" in done.output
