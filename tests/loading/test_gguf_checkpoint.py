"""GGUF files: metadata as Python values, tensors in torch's order, parts of a split file as one."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch

from freehold.core.errors import CorruptFileError, LoadError, TensorMismatchError
from freehold.loading.checkpoint import Checkpoint, TensorInfo, open_checkpoint
from support.checkpoints_memory import mapped_file
from support.checkpoints_raw import STRING, array, gguf_bytes, key, scalar, tensor_info, text

Kind = gguf.GGMLQuantizationType


def write(path: Path, tensors: dict[str, np.ndarray[Any, Any]], **metadata: Any) -> Path:
    """A file made by gguf's own writer."""
    writer = gguf.GGUFWriter(path, "llama")
    for name, value in metadata.items():
        writer.add_key_value(name, value, gguf.GGUFValueType.get_type(value))
    for name, tensor in tensors.items():
        writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def opened(path: Path, content: bytes) -> Checkpoint:
    path.write_bytes(content)
    return open_checkpoint(path)


def test_tensors_have_torch_order(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    tensors = {
        "vector": rng.standard_normal(5).astype(np.float32),
        "matrix": rng.standard_normal((7, 33)).astype(np.float32),
        "experts": rng.standard_normal((3, 5, 2)).astype(np.float16),
        "wide": rng.standard_normal((2, 3, 4, 5)),
        "ids": rng.integers(-9, 9, (2, 3)).astype(np.int32),
    }
    with open_checkpoint(write(tmp_path / "m.gguf", tensors)) as checkpoint:
        assert list(checkpoint.tensors) == list(tensors)
        assert checkpoint.tensors["experts"] == TensorInfo((3, 5, 2), "F16")
        for name, tensor in tensors.items():
            assert torch.equal(checkpoint.tensor(name), torch.from_numpy(tensor)), name
            assert checkpoint.tensor(name).dtype == torch.from_numpy(tensor).dtype


def test_reading_stored_types_makes_no_copy(tmp_path: Path) -> None:
    tensors = {"a": np.ones((7, 33), np.float32), "b": np.ones((3, 5), np.float16)}
    path = write(tmp_path / "m.gguf", tensors)
    with open_checkpoint(path) as checkpoint:
        for name in tensors:
            assert mapped_file(checkpoint.tensor(name)) == path
            checkpoint.tensor(name).zero_()
    with open_checkpoint(path) as checkpoint:
        assert all(checkpoint.tensor(name).min() == 1 for name in tensors)


def test_bfloat16_is_a_view(tmp_path: Path) -> None:
    values = torch.randn(3, 8, generator=torch.Generator().manual_seed(0)).bfloat16()
    data = values.view(torch.uint8).numpy().tobytes()
    with opened(tmp_path / "m.gguf", gguf_bytes((), [tensor_info("x", [8, 3], Kind.BF16, 0)], data)) as checkpoint:
        assert torch.equal(checkpoint.tensor("x"), values)
        assert mapped_file(checkpoint.tensor("x")) == tmp_path / "m.gguf"


def test_scalar_tensor(tmp_path: Path) -> None:
    content = gguf_bytes((), [tensor_info("x", [], Kind.F32, 0)], struct.pack("<f", 2.5))
    with opened(tmp_path / "m.gguf", content) as checkpoint:
        assert checkpoint.tensor("x").shape == ()
        assert checkpoint.tensor("x").item() == 2.5


def test_metadata_of_every_type(tmp_path: Path) -> None:
    numbers = {0: 255, 1: -128, 2: 65535, 3: -32768, 4: 2**32 - 1, 5: -(2**31), 10: 2**64 - 1, 11: -(2**63)}
    floats = {6: 0.5, 12: 1e300}
    keys = [key(f"k{kind}", kind, scalar(kind, value)) for kind, value in {**numbers, **floats}.items()]
    keys += [
        key("yes", 7, b"\1"),
        key("no", 7, b"\0"),
        key("text", STRING, text("größe\n")),
        key("empty", STRING, text("")),
    ]
    with opened(tmp_path / "m.gguf", gguf_bytes(keys)) as checkpoint:
        expected = {f"k{kind}": value for kind, value in {**numbers, **floats}.items()}
        assert checkpoint.config == {**expected, "yes": True, "no": False, "text": "größe\n", "empty": ""}
        assert checkpoint.generation_config == {}


def test_arrays_become_lists(tmp_path: Path) -> None:
    tokens = ["<s>", "", "ä", "x" * 1000]
    keys = [
        key("tokens", 9, array(STRING, b"".join(map(text, tokens)), 4)),
        key("scores", 9, array(6, struct.pack("<3f", 1, -2, 0.5), 3)),
        key("flags", 9, array(7, b"\1\0", 2)),
        key("types", 9, array(5, struct.pack("<2i", -1, 7), 2)),
        key("nothing", 9, array(STRING, b"", 0)),
    ]
    with opened(tmp_path / "m.gguf", gguf_bytes(keys)) as checkpoint:
        assert checkpoint.config == {
            "tokens": tokens,
            "scores": [1.0, -2.0, 0.5],
            "flags": [True, False],
            "types": [-1, 7],
            "nothing": [],
        }
        assert type(checkpoint.config["flags"][0]) is bool


@pytest.mark.parametrize("alignment", [8, 32, 64, 4096])
def test_alignment_is_the_files_own(tmp_path: Path, alignment: int) -> None:
    data = b"".join(bytes([n] * 8).ljust(alignment, b"\xff") for n in (1, 2))
    infos = [tensor_info("a", [8], Kind.I8, 0), tensor_info("b", [8], Kind.I8, alignment)]
    keys = [key("general.alignment", 4, scalar(4, alignment))]
    with opened(tmp_path / "m.gguf", gguf_bytes(keys, infos, data, alignment=alignment)) as checkpoint:
        assert checkpoint.tensor("a").tolist() == [1] * 8
        assert checkpoint.tensor("b").tolist() == [2] * 8


def test_version_2_is_read(tmp_path: Path) -> None:
    with opened(tmp_path / "m.gguf", gguf_bytes([key("a", 4, scalar(4, 7))], version=2)) as checkpoint:
        assert checkpoint.config == {"a": 7}


@pytest.mark.model
def test_agrees_with_gguf_reader_on_the_default_model(default_model: Path) -> None:
    reader = gguf.GGUFReader(default_model)
    with open_checkpoint(default_model) as checkpoint:
        fields = {name: field.contents() for name, field in reader.fields.items() if not name.startswith("GGUF.")}
        assert checkpoint.config == fields
        stored = {t.name: (tuple(reversed(t.shape.tolist())), t.tensor_type.name) for t in reader.tensors}
        assert {name: (info.shape, info.dtype) for name, info in checkpoint.tensors.items()} == stored
        for tensor in reader.tensors[:8]:
            expected = torch.tensor(gguf.dequantize(tensor.data, tensor.tensor_type))
            assert torch.equal(checkpoint.tensor(tensor.name), expected), tensor.name


def test_closed_checkpoint(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(write(tmp_path / "m.gguf", {"x": np.ones(4, np.float32)}))
    tensor = checkpoint.tensor("x")
    checkpoint.close()
    with pytest.raises(LoadError, match="is closed"):
        checkpoint.tensor("x")
    assert tensor.tolist() == [1.0] * 4


def test_unknown_tensor_is_named(tmp_path: Path) -> None:
    with (
        open_checkpoint(write(tmp_path / "m.gguf", {})) as checkpoint,
        pytest.raises(TensorMismatchError, match=r"output\.weight"),
    ):
        checkpoint.tensor("output.weight")


def test_digest_tells_metadata_and_weights_apart(tmp_path: Path) -> None:
    tensors = {"x": np.zeros(4, np.float32)}
    paths = [
        write(tmp_path / "a.gguf", tensors, theta=1.0),
        write(tmp_path / "copy.gguf", tensors, theta=1.0),
        write(tmp_path / "b.gguf", tensors, theta=2.0),
        write(tmp_path / "c.gguf", {"x": np.ones(4, np.float32)}, theta=1.0),
    ]
    first, copy, *others = [open_checkpoint(path).digest() for path in paths]
    assert first == copy
    assert len({first, *others}) == 3


class TestSplit:
    def part(self, number: int, count: int, names: str, total: int | None = None) -> bytes:
        keys = [key("split.no", 2, scalar(2, number)), key("split.count", 2, scalar(2, count))]
        keys += [key("general.name", STRING, text("m"))] if number == 0 else []
        keys += [] if total is None else [key("split.tensors.count", 5, scalar(5, total))]
        infos = [tensor_info(name, [4], Kind.I8, 32 * place) for place, name in enumerate(names)]
        return gguf_bytes(keys, infos, b"".join(bytes([ord(name)] * 4).ljust(32, b"\0") for name in names))

    def write(self, directory: Path, *parts: str, total: int | None = None) -> list[Path]:
        paths = [directory / f"m-{i + 1:05d}-of-{len(parts):05d}.gguf" for i in range(len(parts))]
        for number, (path, names) in enumerate(zip(paths, parts, strict=True)):
            path.write_bytes(self.part(number, len(parts), names, total))
        return paths

    @pytest.mark.parametrize("which", [0, 1, 2, None])
    def test_any_part_and_the_directory_open_all(self, tmp_path: Path, which: int | None) -> None:
        paths = self.write(tmp_path, "ab", "", "c", total=3)
        with open_checkpoint(tmp_path if which is None else paths[which]) as checkpoint:
            assert {name: checkpoint.tensor(name)[0].item() for name in checkpoint.tensors} == {
                "a": 97,
                "b": 98,
                "c": 99,
            }
            assert checkpoint.files == paths
            assert checkpoint.config["general.name"] == "m"

    def test_missing_parts_are_all_named(self, tmp_path: Path) -> None:
        paths = self.write(tmp_path, "a", "b", "c")
        for path in (paths[0], paths[2]):
            path.unlink()
        with pytest.raises(LoadError, match=r"(?s)2 of its 3 parts.*m-00001-of-00003.*m-00003-of-00003"):
            open_checkpoint(paths[1])

    def test_renamed_part(self, tmp_path: Path) -> None:
        path = self.write(tmp_path, "a", "b")[0].rename(tmp_path / "model.gguf")
        with pytest.raises(LoadError, match="must be named like name-00001-of-00002"):
            open_checkpoint(path)

    def test_swapped_parts(self, tmp_path: Path) -> None:
        first, second = self.write(tmp_path, "a", "b")
        second.write_bytes(first.read_bytes())
        with pytest.raises(CorruptFileError, match=r"split\.no is 0; from the file's name it should be 1"):
            open_checkpoint(first)

    def test_part_of_another_split(self, tmp_path: Path) -> None:
        first, second = self.write(tmp_path, "a", "b")
        second.write_bytes(self.part(1, 3, "b"))
        with pytest.raises(CorruptFileError, match=r"split\.count is 3; from the file's name it should be 2"):
            open_checkpoint(first)

    def test_tensor_in_two_parts(self, tmp_path: Path) -> None:
        with pytest.raises(CorruptFileError, match="'a', which another part holds too"):
            open_checkpoint(self.write(tmp_path, "a", "ba")[0])

    def test_lost_tensor(self, tmp_path: Path) -> None:
        with pytest.raises(CorruptFileError, match=r"split\.tensors\.count is 3, and its parts hold 2"):
            open_checkpoint(self.write(tmp_path, "a", "b", total=3)[0])

    @pytest.mark.parametrize("count", [2000, 65535])
    def test_absurd_count(self, tmp_path: Path, count: int) -> None:
        with pytest.raises(CorruptFileError, match=f"split.count is {count}"):
            opened(tmp_path / "m.gguf", self.part(0, count, "a"))
