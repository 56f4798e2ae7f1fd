"""The files of a new checkpoint: what stands before their tensors, and what stands beside them."""

from __future__ import annotations

import json
import shutil
import struct
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf

from freehold.core.axes import ceil_div
from freehold.core.errors import ArgumentError
from freehold.loading.block_config import block_config
from freehold.loading.checkpoint import INDEX_NAME, JOURNAL_NAME, Checkpoint
from freehold.loading.gguf import GgufCheckpoint
from freehold.quantize.recipe import Bits, Item

_GGUF_VERSION = 3
SHARD_BYTES = 4 * 2**30
_COPIED = (".json", ".jinja", ".txt", ".model", ".md")
_LEFT = ("config.json", INDEX_NAME, "hf_quant_config.json")
_LICENCES = ("LICENSE", "LICENCE", "NOTICE")


@dataclass(frozen=True)
class File:
    """One file: its header, then its items, each at the next multiple of `alignment`."""

    path: Path
    header: bytes
    items: tuple[Item, ...]
    alignment: int

    def offsets(self) -> list[int]:
        """Where each item begins, and where the file ends."""
        found, at = [], len(self.header)
        for item in self.items:
            found.append(at)
            at += ceil_div(item.nbytes, self.alignment) * self.alignment
        return [*found, at]


class Target(ABC):
    """Where a checkpoint is written. path: what `freehold serve` is given afterwards."""

    path: Path
    journal: Path
    """Exists while the checkpoint is not whole."""

    @abstractmethod
    def files(self) -> list[File]:
        """The files with tensors, in order."""

    @abstractmethod
    def finish(self) -> None:
        """Writes what makes it a checkpoint; all files are in place."""


class DirectoryTarget(Target):
    """A directory with safetensors. Codes are stored as bytes, (rows, bytes of a row)."""

    def __init__(self, source: Checkpoint, items: Sequence[Item], bits: Bits, path: Path) -> None:
        if source.path.resolve() == path.resolve():
            raise ArgumentError(f"{path}: is the model itself; name another directory")
        if path.suffix.lower() in (".gguf", ".safetensors"):
            raise ArgumentError(f"{path}: the model is a directory, and so will this be; leave out {path.suffix}")
        self.source, self.items, self.bits, self.path = source, items, bits, path
        self.journal = path / JOURNAL_NAME

    def _shards(self) -> dict[str, list[Item]]:
        shards: list[list[Item]] = [[]]
        for item in self.items:
            if shards[-1] and sum(i.nbytes for i in shards[-1]) + item.nbytes > SHARD_BYTES:
                shards.append([])
            shards[-1].append(item)
        if len(shards) == 1:
            return {"model.safetensors": shards[0]}
        return {f"model-{n + 1:05d}-of-{len(shards):05d}.safetensors": items for n, items in enumerate(shards)}

    def files(self) -> list[File]:
        """See `Target.files`."""
        return [
            File(self.path / name, _safetensors_header(items), tuple(items), 1)
            for name, items in self._shards().items()
        ]

    def finish(self) -> None:
        """See `Target.finish`."""
        for file in sorted(self.source.path.iterdir()):
            wanted = file.suffix in _COPIED or file.stem.upper() in _LICENCES
            if file.is_file() and wanted and file.name not in _LEFT:
                shutil.copyfile(file, self.path / file.name)
        shards = self._shards()
        if len(shards) > 1:
            weight_map = {item.name: name for name, items in shards.items() for item in items}
            total = sum(item.nbytes for item in self.items)
            _write_json(self.path / INDEX_NAME, {"metadata": {"total_size": total}, "weight_map": weight_map})
        _write_json(self.path / "config.json", self._config())

    def _config(self) -> dict[str, Any]:
        config = {key: value for key, value in self.source.config.items() if key != "quantization_config"}
        if isinstance(config.get("text_config"), dict):
            config["text_config"] = {k: v for k, v in config["text_config"].items() if k != "quantization_config"}
        return {**config, "quantization_config": block_config({i.name: i.kind for i in self.items if i.is_encoded})}


class GgufTarget(Target):
    """A .gguf file with the metadata of the one that is read, and its alignment."""

    def __init__(self, source: GgufCheckpoint, items: Sequence[Item], bits: Bits, path: Path) -> None:
        if path.suffix.lower() != ".gguf":
            raise ArgumentError(f"{path}: the model is a GGUF file, and so will this be; end its name in .gguf")
        if any(path.resolve() == file.resolve() for file in source.files):
            raise ArgumentError(f"{path}: is the model itself; name another file")
        if path.is_dir():
            raise ArgumentError(f"{path}: is a directory; name another file, or remove it")
        self.source, self.items, self.bits, self.path = source, items, bits, path
        self.journal = path.with_name(f"{path.name}.journal")

    def files(self) -> list[File]:
        """See `Target.files`."""
        # Metadata is copied byte for byte: gguf.GGUFWriter refuses empty lists.
        entries = {key: raw for key, raw in self.source.raw_metadata().items() if not key.startswith("split.")}
        if gguf.Keys.General.FILE_TYPE in entries:
            file_type = gguf.LlamaFileType.MOSTLY_Q8_0 if self.bits == 8 else gguf.LlamaFileType.MOSTLY_Q4_1
            entries[gguf.Keys.General.FILE_TYPE] = struct.pack("<II", gguf.GGUFValueType.UINT32, file_type)
        if gguf.Keys.General.QUANTIZATION_VERSION not in entries:  # the format demands it beside quantised tensors
            version = struct.pack("<II", gguf.GGUFValueType.UINT32, gguf.GGML_QUANT_VERSION)
            entries[gguf.Keys.General.QUANTIZATION_VERSION] = version
        parts = [struct.pack("<4sIQQ", b"GGUF", _GGUF_VERSION, len(self.items), len(entries))]
        parts += [_gguf_text(key) + raw for key, raw in entries.items()]
        offset, alignment = 0, self.source.alignment
        for item in self.items:
            sizes, kind = item.shape[::-1], gguf.GGMLQuantizationType[item.kind]
            info = struct.pack(f"<I{len(sizes)}QIQ", len(sizes), *sizes, kind, offset)
            parts.append(_gguf_text(item.name) + info)
            offset += ceil_div(item.nbytes, alignment) * alignment
        packed = b"".join(parts)
        packed += bytes(-len(packed) % alignment)
        return [File(self.path, packed, tuple(self.items), alignment)]

    def finish(self) -> None:
        """See `Target.finish`: the file is all there is."""


def _gguf_text(text: str) -> bytes:
    raw = text.encode()
    return struct.pack("<Q", len(raw)) + raw


def _safetensors_header(items: Sequence[Item]) -> bytes:
    entries: dict[str, Any] = {}
    begin = 0
    for item in items:
        shape = [*item.shape[:-1], item.row_nbytes] if item.is_encoded else list(item.shape)
        entries[item.name] = {
            "dtype": "U8" if item.is_encoded else item.kind,
            "shape": shape,
            "data_offsets": [begin, begin + item.nbytes],
        }
        begin += item.nbytes
    header = json.dumps({"__metadata__": {"format": "pt"}, **entries}, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)  # so that tensors begin at multiples of 8
    return len(header).to_bytes(8, "little") + header


def _write_json(path: Path, values: Any) -> None:
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    partial.replace(path)
