"""What `open_checkpoint` makes of a path."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from freehold.core.errors import CorruptFileError, LoadError, ModelNotFoundError, TensorMismatchError
from freehold.loading.checkpoint import open_checkpoint
from support.checkpoints_raw import gguf_bytes, safetensors_bytes, write_directory

EMPTY = safetensors_bytes({}, b"")


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="no such file or directory"):
        open_checkpoint(tmp_path / "absent.gguf")


def test_path_is_made_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "m.gguf").write_bytes(gguf_bytes())
    monkeypatch.chdir(tmp_path)
    with open_checkpoint("m.gguf") as checkpoint:
        assert checkpoint.path == tmp_path / "m.gguf"


def test_directory_with_one_gguf(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(gguf_bytes())
    with open_checkpoint(tmp_path) as checkpoint:
        assert checkpoint.format == "gguf"
        assert checkpoint.path == tmp_path / "m.gguf"


def test_directory_with_several_ggufs(tmp_path: Path) -> None:
    for name in ("model-q4.gguf", "model-q8.gguf"):
        (tmp_path / name).write_bytes(gguf_bytes())
    with pytest.raises(LoadError, match=r"(?s)2 GGUF files.*model-q4\.gguf.*model-q8\.gguf"):
        open_checkpoint(tmp_path)


def test_safetensors_win_over_a_gguf_beside_them(tmp_path: Path) -> None:
    write_directory(tmp_path, {"model.safetensors": EMPTY, "m.gguf": gguf_bytes()})
    with open_checkpoint(tmp_path) as checkpoint:
        assert checkpoint.format == "safetensors"


def test_one_file_of_another_name(tmp_path: Path) -> None:
    with open_checkpoint(write_directory(tmp_path, {"weights.safetensors": EMPTY})) as checkpoint:
        assert [file.name for file in checkpoint.files] == ["weights.safetensors"]


def test_several_files_without_an_index(tmp_path: Path) -> None:
    write_directory(tmp_path, {"a.safetensors": EMPTY, "b.safetensors": EMPTY})
    with pytest.raises(LoadError, match=r"(?s)2 safetensors files.*a\.safetensors.*b\.safetensors"):
        open_checkpoint(tmp_path)


def test_a_whole_file_and_an_index_of_others(tmp_path: Path) -> None:
    index = b'{"weight_map": {"x": "a.safetensors"}}'
    write_directory(
        tmp_path, {"a.safetensors": EMPTY, "model.safetensors": EMPTY, "model.safetensors.index.json": index}
    )
    with pytest.raises(LoadError, match="remove the one"):
        open_checkpoint(tmp_path)


def test_without_config(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(EMPTY)
    with pytest.raises(LoadError, match=r"no config\.json"):
        open_checkpoint(tmp_path)


def test_pickles_are_refused_by_name(tmp_path: Path) -> None:
    write_directory(tmp_path, {"pytorch_model.bin": b"cos\nsystem\n"})
    with pytest.raises(LoadError, match=r"'pytorch_model\.bin'.*run code"):
        open_checkpoint(tmp_path)


def test_empty_directory(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match=r"holds no \*\.safetensors and no \*\.gguf"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize(("name", "match"), [("model.safetensors", "name its directory"), ("model.onnx", "neither")])
def test_file_of_another_kind(tmp_path: Path, name: str, match: str) -> None:
    (tmp_path / name).write_bytes(EMPTY)
    with pytest.raises(LoadError, match=match):
        open_checkpoint(tmp_path / name)


def test_empty_file(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").touch()
    with pytest.raises(CorruptFileError, match="empty"):
        open_checkpoint(tmp_path / "m.gguf")


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "m.gguf"])
def test_pipes_are_refused_without_waiting(tmp_path: Path, name: str) -> None:
    if name != "m.gguf":
        write_directory(tmp_path, {"model.safetensors": EMPTY})
        (tmp_path / name).unlink()
    os.mkfifo(tmp_path / name)
    with pytest.raises(LoadError, match="not a regular file"):
        open_checkpoint(tmp_path)


def test_dangling_link(tmp_path: Path) -> None:
    write_directory(tmp_path, {})
    (tmp_path / "model.safetensors").symlink_to(tmp_path / "gone")
    with pytest.raises(LoadError, match="cannot be opened"):
        open_checkpoint(tmp_path)


def test_closing_leaves_no_descriptor_open(tmp_path: Path) -> None:
    write_directory(tmp_path, {"model.safetensors": EMPTY})
    before = len(os.listdir("/proc/self/fd"))
    with open_checkpoint(tmp_path):
        pass
    for _ in range(3):
        with pytest.raises(LoadError):
            open_checkpoint(tmp_path / "model.safetensors")
    assert len(os.listdir("/proc/self/fd")) == before


def test_released_pages_are_read_again(tmp_path: Path) -> None:
    """Their memory is the system's until they are touched."""
    weight = torch.randn(1024, 1024)
    save_file({"w": weight, "v": weight + 1}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text("{}")
    with open_checkpoint(tmp_path) as checkpoint:
        view = checkpoint.tensor("w")
        assert torch.equal(view, weight)
        before = _resident()
        checkpoint.release("w")
        assert before - _resident() > 3 * 2**20
        assert torch.equal(view, weight)
        assert torch.equal(checkpoint.tensor("v"), weight + 1)
        with pytest.raises(TensorMismatchError, match="other"):
            checkpoint.release("other")


def _resident() -> int:
    """Bytes of this process's file pages in memory."""
    text = Path("/proc/self/status").read_text()
    return int(text.split("RssFile:")[1].split()[0]) * 1024
