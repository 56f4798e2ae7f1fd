"""GGUF files, whole or split into parts."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from freehold.core.errors import CorruptFileError, LoadError
from freehold.loading.checkpoint import Checkpoint, Extent, TensorInfo
from freehold.loading.gguf_header import GgufHeader, read_header
from freehold.loading.mapping import MappedFile
from freehold.loading.quantized import GgmlTensor
from freehold.loading.quoting import listed, quoted

MAX_PARTS = 1024
"""Most parts of a split file."""

_PART_NAME = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf", re.IGNORECASE)

_TORCH_DTYPES = {
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F64": torch.float64,
    "I8": torch.int8,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
}


class GgufCheckpoint(Checkpoint):
    """`Checkpoint` over a GGUF file, or over all parts of a split one."""

    format = "gguf"

    def __init__(self, *, headers: list[GgufHeader], **checkpoint: Any) -> None:
        super().__init__(**checkpoint)
        self._headers = headers

    @classmethod
    def open(cls, path: Path) -> GgufCheckpoint:
        """Open `path`; if it is a part of a split file, all its parts. Raises as `open_checkpoint` does."""
        file = MappedFile(path)
        header = read_header(file, 0)
        paths = _part_paths(path, header.metadata)
        mapped = [file] if paths == [path] else [MappedFile(part) for part in paths]
        headers = [header] if paths == [path] else [read_header(part, i) for i, part in enumerate(mapped)]
        if len(paths) > 1:
            _check_parts(mapped, headers)
        tensors: dict[str, tuple[TensorInfo, Extent]] = {}
        for part, found in zip(mapped, headers, strict=True):
            for name in found.tensors.keys() & tensors.keys():
                raise CorruptFileError(f"{part.path}: holds tensor {quoted(name)}, which another part holds too")
            tensors.update(found.tensors)
        return cls(
            path=path,
            config=headers[0].metadata,
            generation_config={},
            tensors=tensors,
            mapped=mapped,
            headers=headers,
        )

    def tensor(self, name: str) -> torch.Tensor:
        """See `Checkpoint.tensor`. Dequantisation is the gguf package's, bit for bit."""
        info = self._seen(name)
        dtype = _TORCH_DTYPES.get(info.dtype)
        if dtype is None:
            return self._packed(name, info).dequantize()
        extent = self.extent(name)
        return self._open_files()[extent.file].view(extent.offset, dtype, info.shape)

    def quantized(self, name: str) -> GgmlTensor | None:
        """See `Checkpoint.quantized`."""
        info = self._seen(name)
        return None if info.dtype in _TORCH_DTYPES else self._packed(name, info)

    def blocks(self, name: str) -> torch.Tensor:
        """The tensor's stored bytes, uint8, as a view: its shape with the last axis counting bytes.

        For quantised types a row is a whole number of blocks in ggml's layout.
        """
        extent = self.extent(name)
        rows = self.tensors[name].shape[:-1]
        num_rows = 1
        for size in rows:
            num_rows *= size
        return self._open_files()[extent.file].view(extent.offset, torch.uint8, (*rows, extent.nbytes // num_rows))

    def raw_metadata(self) -> dict[str, bytes]:
        """Key -> the value as the first file holds it, its type before it. Raises LoadError after `close`."""
        buffer = self._open_files()[0].buffer
        return {key: buffer[begin:end] for key, (begin, end) in self._headers[0].places.items()}

    @property
    def alignment(self) -> int:
        """Tensors of the first file begin at multiples of so many bytes."""
        return self._headers[0].alignment

    def _packed(self, name: str, info: TensorInfo) -> GgmlTensor:
        return GgmlTensor(str(self.path), name, info.dtype, info.shape, self.blocks(name))

    def _identity(self) -> Iterable[bytes]:
        yield b"gguf"
        for header, file in zip(self._headers, self._open_files(), strict=True):
            yield file.buffer[: header.nbytes]


def split_of(path: Path) -> tuple[str, int] | None:
    """(stem, number of parts) of a file named like a part of a split one, such as
    `name-00001-of-00003.gguf`; None for any other name."""
    match = _PART_NAME.fullmatch(path.name)
    return (match["stem"], int(match["count"])) if match else None


def part_names(stem: str, count: int) -> list[str]:
    """Names of all parts of a split file, in order."""
    return [f"{stem}-{number:05d}-of-{count:05d}.gguf" for number in range(1, count + 1)]


def _part_paths(path: Path, metadata: dict[str, Any]) -> list[Path]:
    """All files of the checkpoint that `path` belongs to, in order; only itself unless it is split."""
    count = metadata.get("split.count", 1)
    if type(count) is not int or not 0 <= count <= MAX_PARTS:
        raise CorruptFileError(f"{path}: split.count is {quoted(count)}; it must be a number up to {MAX_PARTS}")
    if count <= 1:
        return [path]
    split = split_of(path)
    if split is None or split[1] != count:
        raise LoadError(
            f"{path}: is one of {count} parts, and must be named like {part_names('name', count)[0]} so that"
            " the others can be found beside it"
        )
    paths = [path.parent / name for name in part_names(split[0], count)]
    missing = [part.name for part in paths if not os.path.exists(part)]
    if missing:
        raise LoadError(
            f"{path}: {len(missing)} of its {count} parts are missing beside it; fetch them:\n"
            + listed(missing, most=len(missing))
        )
    return paths


def _check_parts(mapped: list[MappedFile], headers: list[GgufHeader]) -> None:
    """The parts belong to one split and stand in their places."""
    for number, (file, header) in enumerate(zip(mapped, headers, strict=True)):
        for key, wanted in (("split.no", number), ("split.count", len(headers))):
            value = header.metadata.get(key)
            if value != wanted:
                raise CorruptFileError(
                    f"{file.path}: {key} is {quoted(value)}; from the file's name it should be {wanted}"
                )
    total = headers[0].metadata.get("split.tensors.count")
    found = sum(len(header.tensors) for header in headers)
    if total is not None and total != found:
        raise CorruptFileError(
            f"{mapped[0].path}: split.tensors.count is {quoted(total)}, and its parts hold {found} tensors"
        )
