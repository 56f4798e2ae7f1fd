"""Models by name: local paths are noted, names resolve, and what cannot be resolved says why."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from freehold.core.errors import ArgumentError, CorruptFileError, LoadError, ModelNotFoundError
from freehold.loading import registry
from freehold.loading.checkpoint import open_checkpoint
from freehold.loading.pull import list_models, pull, resolve
from support.checkpoints_raw import entry, gguf_bytes, safetensors_bytes, write_directory


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FREEHOLD_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "home"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "Tiny.Q8_0.gguf"
    path.write_bytes(gguf_bytes())
    return path


def test_a_file_is_noted_and_not_copied(model: Path, home: Path) -> None:
    assert pull(str(model)) == model
    assert resolve("Tiny.Q8_0") == model
    (known,) = list_models()
    assert (known.name, known.source, known.path, known.size) == (
        "Tiny.Q8_0",
        str(model),
        model,
        model.stat().st_size,
    )
    assert known.date.endswith("+00:00")
    assert sorted(path.name for path in home.rglob("*") if path.is_file()) == [".lock", "source.json"]


def test_a_relative_path_becomes_absolute(model: Path) -> None:
    assert pull(model.name, name="tiny") == model
    assert resolve("tiny") == model


def test_a_directory_is_noted(tmp_path: Path) -> None:
    content = safetensors_bytes({"x": entry("U8", [9], 0, 9)}, bytes(9))
    directory = write_directory(tmp_path / "m3", {"model.safetensors": content})
    pull(str(directory))
    assert resolve("m3") == directory
    assert list_models()[0].size == len(content)


def test_the_same_source_twice_is_one_model(model: Path) -> None:
    pull(str(model))
    pull(str(model))
    assert len(list_models()) == 1


def test_what_is_no_checkpoint_is_not_noted(tmp_path: Path) -> None:
    (tmp_path / "bad.gguf").write_bytes(b"no")
    with pytest.raises(LoadError):
        pull("bad.gguf")
    assert list_models() == []


def test_a_name_is_not_taken_from_another_model(model: Path, tmp_path: Path) -> None:
    pull(str(model), name="tiny")
    other = tmp_path / "other.gguf"
    other.write_bytes(gguf_bytes())
    with pytest.raises(ArgumentError, match=r"'tiny' is taken by the model from .*Tiny"):
        pull(str(other), name="tiny")
    with pytest.raises(ArgumentError, match="is taken"):
        pull("smollm2-135m", name="tiny")
    assert resolve("tiny") == model


@pytest.mark.parametrize("name", ["", ".hidden", "../up", "a/b", "a b", "ä", "-x", "x" * 97, "a\n", "."])
def test_names_that_are_none(model: Path, name: str) -> None:
    with pytest.raises(ArgumentError, match="name is "):
        pull(str(model), name=name)
    assert list_models() == []


def test_a_path_whose_stem_is_no_name(tmp_path: Path) -> None:
    (tmp_path / "my model.gguf").write_bytes(gguf_bytes())
    with pytest.raises(ArgumentError, match="'my model'"):
        pull("my model.gguf")
    assert pull("my model.gguf", name="mine") == tmp_path / "my model.gguf"


def test_a_path_means_itself(model: Path, tmp_path: Path) -> None:
    assert resolve(str(model)) == model
    assert resolve(model.name) == model
    (tmp_path / "tiny").mkdir()
    pull(str(model), name="tiny")
    assert resolve("tiny") == tmp_path / "tiny"


def test_the_source_is_a_name_too(model: Path) -> None:
    record = registry.PulledModel("m", "org/name", model, model.stat().st_size, registry.now())
    with registry.pulling():
        registry.record_model(record)
    assert resolve("org/name") == model
    assert list_models() == [record]


def test_unknown_name_says_what_is_here_and_what_to_do(model: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="No model is here yet") as caught:
        resolve("smollm2-135")
    assert "Did you mean smollm2-135m?" in str(caught.value)
    assert "freehold pull smollm2-135m" in str(caught.value)
    pull(str(model), name="minimax-m3")
    with pytest.raises(ModelNotFoundError, match=r"Did you mean minimax-m3\? Here: minimax-m3\."):
        resolve("minimax-m2")


@pytest.mark.parametrize("name", ["", "../../etc", "/nowhere/m.gguf", "a\0b", "a b", ".lock", "~nobody/m", "x" * 5000])
def test_names_that_cannot_be(name: str) -> None:
    with pytest.raises(ModelNotFoundError):
        resolve(name)
    with pytest.raises(ModelNotFoundError):
        pull(name)
    with pytest.raises((ModelNotFoundError, LoadError)):  # of "", which is the current directory here
        open_checkpoint(name)


def test_a_model_that_moved_away(model: Path) -> None:
    pull(str(model), name="tiny")
    model.write_bytes(gguf_bytes() + b"more")
    with pytest.raises(
        ModelNotFoundError, match=r"no longer there as it was; pull it again: freehold pull .* --name tiny"
    ):
        resolve("tiny")
    model.unlink()
    with pytest.raises(ModelNotFoundError, match="no longer there"):
        resolve("tiny")


@pytest.mark.parametrize("record", ["", "[]", "{}", '{"name": 1}', '{"name": "tiny", "path": "x", "extra": 1}'])
def test_a_damaged_record_is_named(model: Path, home: Path, record: str) -> None:
    pull(str(model), name="tiny")
    (home / "models" / "tiny" / "source.json").write_text(record)
    for ask in (lambda: resolve("tiny"), list_models):
        with pytest.raises(CorruptFileError, match=r"tiny/source\.json.*pull"):
            ask()


def test_a_copied_record_is_refused(model: Path, home: Path) -> None:
    pull(str(model), name="tiny")
    shutil.copytree(home / "models" / "tiny", home / "models" / "other")
    with pytest.raises(CorruptFileError, match="not a record of 'other'"):
        resolve("other")


def test_the_record_is_readable_by_others(model: Path, home: Path) -> None:
    pull(str(model), name="tiny")
    record = json.loads((home / "models" / "tiny" / "source.json").read_text())
    assert list(record) == ["name", "source", "path", "size", "date", "sha256", "licence", "revision"]
    assert record["path"] == str(model)
