"""A directory with config.json and safetensors files."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from freehold.core.errors import CorruptFileError, LoadError
from freehold.loading.checkpoint import INDEX_NAME, Checkpoint, Extent, TensorInfo
from freehold.loading.json_object import read_json_object
from freehold.loading.mapping import MappedFile
from freehold.loading.quoting import listed, quoted
from freehold.loading.safetensors_header import read_header

MAX_INDEX_BYTES = 16 * 2**20
"""Most bytes of model.safetensors.index.json; MiniMax-M3's has 3 MiB."""

_TORCH_DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
    "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
    "U16": torch.uint16,
    "I16": torch.int16,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "U32": torch.uint32,
    "I32": torch.int32,
    "F32": torch.float32,
    "U64": torch.uint64,
    "I64": torch.int64,
    "F64": torch.float64,
    "C64": torch.complex64,
}
if hasattr(torch, "float8_e8m0fnu"):  # Newer than the oldest torch that is supported.
    _TORCH_DTYPES["F8_E8M0"] = torch.float8_e8m0fnu


class SafetensorsCheckpoint(Checkpoint):
    """`Checkpoint` over safetensors: every tensor is a view of the mapped file in its stored dtype."""

    format = "safetensors"

    def __init__(self, *, headers: list[bytes], **checkpoint: Any) -> None:
        super().__init__(**checkpoint)
        self._headers = headers

    @classmethod
    def open(cls, directory: Path, names: list[str], *, has_index: bool) -> SafetensorsCheckpoint:
        """Open `directory`, whose *.safetensors files are `names`. Raises as `open_checkpoint` does."""
        config_path = directory / "config.json"
        if not os.path.exists(config_path):
            raise LoadError(f"{directory}: has no config.json; without it the model's architecture is unknown")
        config = read_json_object(config_path)
        generation_path = directory / "generation_config.json"
        generation_config = read_json_object(generation_path) if os.path.exists(generation_path) else {}
        weight_map = _read_index(directory) if has_index else None
        shards = _shards(directory, names, weight_map)
        mapped: list[MappedFile] = []
        headers: list[bytes] = []
        tensors: dict[str, tuple[TensorInfo, Extent]] = {}
        for index, shard in enumerate(shards):
            file = MappedFile(directory / shard)
            header_nbytes, found = read_header(file, index)
            for name in found.keys() & tensors.keys():
                raise CorruptFileError(
                    f"{file.path}: holds tensor {quoted(name)}, which {shards[tensors[name][1].file]} holds too"
                )
            tensors.update(found)
            mapped.append(file)
            headers.append(file.buffer[:header_nbytes])
        if weight_map is not None:
            _check_index(directory, shards, weight_map, tensors)
        return cls(
            path=directory,
            config=config,
            generation_config=generation_config,
            tensors=tensors,
            mapped=mapped,
            headers=headers,
        )

    def tensor(self, name: str) -> torch.Tensor:
        """See `Checkpoint.tensor`. A type that torch does not have is a LoadError."""
        extent = self.extent(name)
        info = self.tensors[name]
        dtype = _TORCH_DTYPES.get(info.dtype)
        if dtype is None:
            raise LoadError(
                f"{self.path}: tensor {quoted(name)} is {info.dtype}, which PyTorch {torch.__version__} cannot hold"
            )
        return self._open_files()[extent.file].view(extent.offset, dtype, info.shape)

    def _identity(self) -> Iterable[bytes]:
        yield b"safetensors"
        yield json.dumps(self.config, sort_keys=True).encode()
        yield from self._headers


def _read_index(directory: Path) -> dict[str, str]:
    path = directory / INDEX_NAME
    weight_map = read_json_object(path, MAX_INDEX_BYTES).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CorruptFileError(f"{path}: its weight_map must map tensor names to files, and is {quoted(weight_map)}")
    for tensor, shard in weight_map.items():
        # A shard is a plain name in this directory. Separators, drive letters and '..' would lead elsewhere.
        # What the name leads to may be a link, as in the Hugging Face cache.
        plain = isinstance(shard, str) and shard.endswith(".safetensors") and not set(shard) & set("/\\:\0")
        if not plain or not shard.isprintable():
            raise CorruptFileError(
                f"{path}: tensor {quoted(tensor)} is said to be in {quoted(shard)}; it must be the name of a"
                " .safetensors file in the same directory"
            )
    return weight_map


def _shards(directory: Path, names: list[str], weight_map: dict[str, str] | None) -> list[str]:
    """Names of the files to open, in a fixed order."""
    if weight_map is None:
        if "model.safetensors" in names:
            return ["model.safetensors"]
        if len(names) == 1:
            return names
        raise LoadError(
            f"{directory}: holds {len(names)} safetensors files, but neither {INDEX_NAME} nor"
            f" model.safetensors to say which belong together:\n{listed(names)}"
        )
    shards = sorted(set(weight_map.values()))
    missing = [shard for shard in shards if not os.path.exists(directory / shard)]
    if missing:
        raise LoadError(
            f"{directory}: {len(missing)} of the {len(shards)} files that {INDEX_NAME} names are missing;"
            " fetch them:\n" + listed(missing, most=len(missing))
        )
    if "model.safetensors" in names and "model.safetensors" not in shards:
        raise LoadError(
            f"{directory}: holds model.safetensors and an {INDEX_NAME} that does not name it; remove the"
            " one that is not meant"
        )
    return shards


def _check_index(
    directory: Path,
    shards: list[str],
    weight_map: dict[str, str],
    tensors: dict[str, tuple[TensorInfo, Extent]],
) -> None:
    """Every tensor that the index names is in the file that it names.

    Tensors that the index leaves out are no fault here: whether a tensor is wanted is the model's to say.
    """
    absent = [
        name for name, shard in weight_map.items() if name not in tensors or shards[tensors[name][1].file] != shard
    ]
    if absent:
        raise CorruptFileError(
            f"{directory / INDEX_NAME}: {len(absent)} tensors are not in the file it names for them:\n{listed(absent)}"
        )
