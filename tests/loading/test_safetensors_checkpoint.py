"""Safetensors directories: what is read is what safetensors wrote, in place, whole or in shards."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import safetensors
import safetensors.torch
import torch

from freehold.core.errors import CorruptFileError, LoadError, TensorMismatchError
from freehold.loading.checkpoint import TensorInfo, open_checkpoint
from support.checkpoints_memory import mapped_file
from support.checkpoints_raw import entry, safetensors_bytes, write_directory

INDEX = "model.safetensors.index.json"
DTYPES = [
    torch.float64, torch.float32, torch.float16, torch.bfloat16,
    torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e8m0fnu,
    torch.int64, torch.int32, torch.int16, torch.int8,
    torch.uint64, torch.uint32, torch.uint16, torch.uint8, torch.bool,
]  # fmt: skip


def some_tensors(seed: int = 0) -> dict[str, torch.Tensor]:
    """Every dtype, ragged shapes, a scalar, an empty tensor."""
    generator = torch.Generator().manual_seed(seed)
    made: dict[str, torch.Tensor] = {"scalar": torch.tensor(2.5), "empty": torch.empty(0, 5)}
    for number, dtype in enumerate(DTYPES):
        raw = torch.randint(0, 2 if dtype == torch.bool else 120, (17, 1 + number, 3), generator=generator)
        nbytes = raw.to(torch.uint8)
        made[f"t{number}"] = nbytes.bool() if dtype == torch.bool else raw.to(torch.float32).to(dtype)
    made["matrix"] = torch.randn(33, 100, generator=generator)
    return made


def write_sharded(directory: Path, shards: dict[str, dict[str, torch.Tensor]]) -> Path:
    weight_map: dict[str, str] = {}
    for shard, tensors in shards.items():
        directory.mkdir(exist_ok=True)
        safetensors.torch.save_file(tensors, directory / shard)
        weight_map.update(dict.fromkeys(tensors, shard))
    return write_directory(directory, {INDEX: json.dumps({"metadata": {}, "weight_map": weight_map}).encode()})


def same(left: torch.Tensor, right: torch.Tensor) -> bool:
    """Equal shape, dtype and bits."""
    if left.dtype != right.dtype or left.shape != right.shape:
        return False
    return torch.equal(left.reshape(-1).view(torch.uint8), right.reshape(-1).view(torch.uint8))


def test_every_dtype_reads_as_safetensors_reads_it(tmp_path: Path) -> None:
    safetensors.torch.save_file(some_tensors(), write_directory(tmp_path, {}) / "model.safetensors")
    expected = safetensors.torch.load_file(tmp_path / "model.safetensors")
    with open_checkpoint(tmp_path) as checkpoint:
        assert checkpoint.format == "safetensors"
        assert set(checkpoint.tensors) == set(expected)
        for name, tensor in expected.items():
            assert same(checkpoint.tensor(name), tensor), name
            assert checkpoint.tensors[name].shape == tuple(tensor.shape)
            assert checkpoint.tensors[name].numel == tensor.numel()


def test_shards_read_as_one(tmp_path: Path) -> None:
    tensors = some_tensors()
    names = list(tensors)
    shards = {f"model-{i + 1:05d}-of-00003.safetensors": {n: tensors[n] for n in names[i::3]} for i in range(3)}
    with open_checkpoint(write_sharded(tmp_path, shards)) as checkpoint:
        assert set(checkpoint.tensors) == set(tensors)
        assert [file.name for file in checkpoint.files] == sorted(shards)
        for name, tensor in tensors.items():
            assert same(checkpoint.tensor(name), tensor), name
            assert checkpoint.files[checkpoint.extent(name).file].name == next(s for s in shards if name in shards[s])


def test_linked_files_are_read(tmp_path: Path) -> None:
    """The layout of the Hugging Face cache: every file is a link into a directory of blobs."""
    real = write_sharded(
        tmp_path / "blobs", {"a.safetensors": {"x": torch.ones(3)}, "b.safetensors": {"y": torch.ones(2)}}
    )
    snapshot = tmp_path / "snapshot"
    snapshot.mkdir()
    for path in real.iterdir():
        (snapshot / path.name).symlink_to(Path("..") / "blobs" / path.name)
    with open_checkpoint(snapshot) as checkpoint:
        assert checkpoint.tensor("y").tolist() == [1.0, 1.0]


def test_reading_makes_no_copy(tmp_path: Path) -> None:
    safetensors.torch.save_file(some_tensors(), write_directory(tmp_path, {}) / "model.safetensors")
    with open_checkpoint(tmp_path) as checkpoint:
        for name, info in checkpoint.tensors.items():
            tensor = checkpoint.tensor(name)
            if info.numel:
                assert mapped_file(tensor) == tmp_path / "model.safetensors", name
                assert tensor.data_ptr() == checkpoint.tensor(name).data_ptr()
        assert mapped_file(torch.ones(5)) is None


def test_a_file_larger_than_memory_can_be_mapped(tmp_path: Path) -> None:
    """A hole of four times the machine's RAM on a sparse file."""
    nbytes = 4 * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    header = safetensors_bytes({"x": entry("BF16", [nbytes // 2], 0, nbytes)}, b"")
    write_directory(tmp_path, {"model.safetensors": header})
    os.truncate(tmp_path / "model.safetensors", len(header) + nbytes)
    with open_checkpoint(tmp_path) as checkpoint:
        assert checkpoint.tensor("x")[-3:].tolist() == [0.0, 0.0, 0.0]


def test_a_misaligned_tensor_is_moved_into_place(tmp_path: Path) -> None:
    values = torch.arange(5, dtype=torch.float32)
    data = b"\x07" + values.numpy().tobytes()
    entries = {"one": entry("U8", [1], 0, 1), "x": entry("F32", [5], 1, 21)}
    with open_checkpoint(
        write_directory(tmp_path, {"model.safetensors": safetensors_bytes(entries, data)})
    ) as checkpoint:
        tensor = checkpoint.tensor("x")
        assert tensor.data_ptr() % 4 == 0
        assert same(tensor, values)


def test_writing_to_a_tensor_leaves_the_file_alone(tmp_path: Path) -> None:
    safetensors.torch.save_file({"x": torch.zeros(64)}, write_directory(tmp_path, {}) / "model.safetensors")
    before = (tmp_path / "model.safetensors").read_bytes()
    with open_checkpoint(tmp_path) as checkpoint:
        checkpoint.tensor("x").fill_(3.0)
    assert (tmp_path / "model.safetensors").read_bytes() == before


def test_tensors_outlive_the_checkpoint_and_release_the_file(tmp_path: Path) -> None:
    safetensors.torch.save_file({"x": torch.arange(9.0)}, write_directory(tmp_path, {}) / "model.safetensors")
    checkpoint = open_checkpoint(tmp_path)
    tensor = checkpoint.tensor("x")
    checkpoint.close()
    checkpoint.close()
    assert tensor.sum().item() == 36.0
    with pytest.raises(LoadError, match="is closed"):
        checkpoint.tensor("x")
    assert str(tmp_path) in Path("/proc/self/maps").read_text()
    del tensor
    assert str(tmp_path) not in Path("/proc/self/maps").read_text()


def test_config_and_generation_config(tmp_path: Path) -> None:
    files = {
        "model.safetensors": safetensors_bytes({}, b""),
        "generation_config.json": b'{"eos_token_id": [1, 2]}',
    }
    with open_checkpoint(write_directory(tmp_path, files, b'{"rope": {"theta": 5e6}}')) as checkpoint:
        assert checkpoint.config == {"rope": {"theta": 5e6}}
        assert checkpoint.generation_config == {"eos_token_id": [1, 2]}
    (tmp_path / "generation_config.json").unlink()
    with open_checkpoint(tmp_path) as checkpoint:
        assert checkpoint.generation_config == {}


def test_unknown_tensor_is_named(tmp_path: Path) -> None:
    write_directory(tmp_path, {"model.safetensors": safetensors_bytes({}, b"")})
    with (
        open_checkpoint(tmp_path) as checkpoint,
        pytest.raises(TensorMismatchError, match=r"lm_head\.weight"),
    ):
        checkpoint.tensor("lm_head.weight")


def test_a_type_that_torch_lacks_is_refused_when_read(tmp_path: Path) -> None:
    content = safetensors_bytes({"x": entry("F6_E2M3", [4, 4], 0, 12)}, bytes(12))
    with open_checkpoint(write_directory(tmp_path, {"model.safetensors": content})) as checkpoint:
        assert checkpoint.tensors["x"] == TensorInfo((4, 4), "F6_E2M3")
        with pytest.raises(LoadError, match="F6_E2M3"):
            checkpoint.tensor("x")


class TestDigest:
    def write(self, directory: Path, tensors: dict[str, torch.Tensor], config: bytes = b"{}") -> str:
        write_directory(directory, {}, config)
        safetensors.torch.save_file(tensors, directory / "model.safetensors")
        with open_checkpoint(directory) as checkpoint:
            return checkpoint.digest()

    def test_same_content_elsewhere_is_the_same(self, tmp_path: Path) -> None:
        assert self.write(tmp_path / "a", some_tensors()) == self.write(tmp_path / "b", some_tensors())

    @pytest.mark.parametrize(
        "change",
        [
            {"x": torch.zeros(4, 3)},
            {"x": torch.zeros(3, 4, dtype=torch.int32)},
            {"y": torch.zeros(3, 4)},
            {"x": torch.ones(3, 4)},
        ],
        ids=["shape", "dtype", "name", "weights"],
    )
    def test_another_tensor_is_another(self, tmp_path: Path, change: dict[str, torch.Tensor]) -> None:
        assert self.write(tmp_path / "a", {"x": torch.zeros(3, 4)}) != self.write(tmp_path / "b", change)

    def test_another_config_is_another(self, tmp_path: Path) -> None:
        tensors = {"x": torch.zeros(3)}
        assert self.write(tmp_path / "a", tensors) != self.write(tmp_path / "b", tensors, b'{"rope_theta": 1}')


def index_of(weight_map: Any) -> bytes:
    return json.dumps({"weight_map": weight_map}).encode()


@pytest.mark.parametrize(
    "shard",
    ["../other.safetensors", "/etc/x.safetensors", "a/b.safetensors", "a\\b.safetensors", "C:x.safetensors",
     "model.bin", "", "..", "a\0.safetensors", "a\n.safetensors", 7, None, ["a.safetensors"]],
)  # fmt: skip
def test_index_cannot_lead_out_of_the_directory(tmp_path: Path, shard: Any) -> None:
    (tmp_path / "other.safetensors").write_bytes(safetensors_bytes({"x": entry("U8", [1], 0, 1)}, b"1"))
    directory = write_directory(tmp_path / "model", {INDEX: index_of({"x": shard})})
    with pytest.raises(CorruptFileError, match=r"model\.safetensors\.index\.json.*'x'"):
        open_checkpoint(directory)


def test_all_missing_shards_are_listed(tmp_path: Path) -> None:
    names = [f"model-{i:05d}-of-00030.safetensors" for i in range(1, 31)]
    directory = write_directory(tmp_path, {INDEX: index_of({f"t{i}": name for i, name in enumerate(names)})})
    (directory / names[4]).write_bytes(safetensors_bytes({"t4": entry("U8", [1], 0, 1)}, b"1"))
    with pytest.raises(LoadError, match="29 of the 30 files") as caught:
        open_checkpoint(directory)
    assert [name for name in names if name not in str(caught.value)] == [names[4]]


def test_tensor_that_is_not_in_its_shard(tmp_path: Path) -> None:
    one = safetensors_bytes({"x": entry("U8", [1], 0, 1)}, b"1")
    other = safetensors_bytes({"y": entry("U8", [1], 0, 1)}, b"1")
    files = {"a.safetensors": one, "b.safetensors": other}
    for weight_map in (
        {"x": "a.safetensors", "z": "b.safetensors"},
        {"x": "b.safetensors", "y": "a.safetensors"},
    ):
        directory = write_directory(tmp_path, {**files, INDEX: index_of(weight_map)})
        with pytest.raises(CorruptFileError, match="not in the file it names"):
            open_checkpoint(directory)


def test_tensor_in_two_shards(tmp_path: Path) -> None:
    one = safetensors_bytes({"x": entry("U8", [1], 0, 1)}, b"1")
    two = safetensors_bytes({"x": entry("U8", [1], 0, 1), "y": entry("U8", [1], 1, 2)}, b"12")
    index = index_of({"x": "a.safetensors", "y": "b.safetensors"})
    directory = write_directory(tmp_path, {"a.safetensors": one, "b.safetensors": two, INDEX: index})
    with pytest.raises(CorruptFileError, match=r"b\.safetensors.*'x', which a\.safetensors holds too"):
        open_checkpoint(directory)


@pytest.mark.parametrize("index", [b"[]", b"{}", b'{"weight_map": []}', b'{"weight_map": {}}', b"{", b"\xff"])
def test_index_of_another_form(tmp_path: Path, index: bytes) -> None:
    with pytest.raises(CorruptFileError, match="index"):
        open_checkpoint(write_directory(tmp_path, {INDEX: index}))
