"""The digest of a checkpoint's every byte."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from freehold.loading import content_digest as module
from freehold.loading.checkpoint import open_checkpoint
from freehold.loading.content_digest import content_digest, file_digests


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FREEHOLD_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    path = tmp_path / "model"
    path.mkdir()
    (path / "config.json").write_text('{"model_type": "llama"}')
    save_file({"x": torch.zeros(100_000)}, path / "model.safetensors")
    return path


def digest_of(directory: Path) -> str:
    with open_checkpoint(directory) as checkpoint:
        return content_digest(checkpoint)


def test_one_changed_weight_gives_another_digest(directory: Path) -> None:
    before = digest_of(directory)
    weights = torch.zeros(100_000)
    weights[99_000] = 1  # far from what the quick digest looks at
    save_file({"x": weights}, directory / "model.safetensors")
    assert digest_of(directory) != before


def test_digests_of_files_are_those_that_other_tools_compute(directory: Path) -> None:
    with open_checkpoint(directory) as checkpoint:
        assert file_digests(checkpoint) == [hashlib.sha256(path.read_bytes()).hexdigest() for path in checkpoint.files]


def test_a_change_of_the_configuration_gives_another_digest(directory: Path) -> None:
    before = digest_of(directory)
    (directory / "config.json").write_text('{"model_type": "llama", "rope_theta": 3.0}')
    assert digest_of(directory) != before


def test_a_file_is_read_again_only_if_it_changed(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[Path] = []
    original = module._digest_of
    monkeypatch.setattr(module, "_digest_of", lambda path: (read.append(path), original(path))[1])
    first = digest_of(directory)
    assert digest_of(directory) == first
    assert len(read) == 1
    file = directory / "model.safetensors"
    content, stat = bytearray(file.read_bytes()), file.stat()
    content[-4] ^= 1
    file.write_bytes(content)
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # as if nothing had happened
    assert digest_of(directory) != first
    assert len(read) == 2


@pytest.mark.parametrize("garbage", ["", "[]", "{", '{"a": 1}', '{"a": ["b"]}'])
def test_a_damaged_note_is_made_anew(directory: Path, home: Path, garbage: str) -> None:
    first = digest_of(directory)
    (home / "digests.json").write_text(garbage)
    assert digest_of(directory) == first


def test_without_a_place_for_the_note_the_files_are_read(
    directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = digest_of(directory)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FREEHOLD_HOME", str(tmp_path / "file"))
    assert digest_of(directory) == first
