"""A directory with config.json and safetensors files, whose matrices may be quantised."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from freehold.core.errors import ConfigError, CorruptFileError, LoadError
from freehold.loading.block_config import find_blocks, is_block_config
from freehold.loading.checkpoint import INDEX_NAME, Checkpoint, Extent, TensorInfo
from freehold.loading.json_object import read_json_object
from freehold.loading.mapping import MappedFile
from freehold.loading.quantization_config import read_quantization
from freehold.loading.quantized import GgmlTensor, QuantizedTensor, ScaledTensor
from freehold.loading.quoting import listed, quoted
from freehold.loading.safetensors_header import read_header
from freehold.loading.scaled_layout import ScaledLayout, find_scaled

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
    """`Checkpoint` over safetensors: tensors are views of the mapped file in their stored dtype.

    With a quantization_config, codes and scales of a quantised matrix make one tensor; see `scaled_layout` and
    `block_config`.
    """

    format = "safetensors"

    def __init__(self, *, headers: list[bytes], layouts: Mapping[str, ScaledLayout | TensorInfo], **rest: Any) -> None:
        super().__init__(**rest)
        self._headers = headers
        self._layouts = layouts

    @classmethod
    def open(cls, directory: Path, names: list[str], *, has_index: bool, raw: bool = False) -> SafetensorsCheckpoint:
        """Open `directory`, whose *.safetensors files are `names`. Raises as `open_checkpoint` does."""
        config_path = directory / "config.json"
        if not os.path.exists(config_path):
            raise LoadError(f"{directory}: has no config.json; without it the model's architecture is unknown")
        config = with_quantization(directory, read_json_object(config_path))
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
        seen, layouts = _find_quantized(directory, None if raw else config.get("quantization_config"), tensors)
        return cls(
            path=directory,
            config=config,
            generation_config=generation_config,
            tensors=tensors,
            mapped=mapped,
            seen=seen,
            headers=headers,
            layouts=layouts,
        )

    def tensor(self, name: str) -> torch.Tensor:
        """See `Checkpoint.tensor`. A type that torch does not have is a LoadError."""
        stored = self.quantized(name)
        return self._stored_tensor(name) if stored is None else stored.dequantize()

    def quantized(self, name: str) -> QuantizedTensor | None:
        """See `Checkpoint.quantized`."""
        self._seen(name)
        layout = self._layouts.get(name)
        if isinstance(layout, TensorInfo):
            return GgmlTensor(str(self.path), name, layout.dtype, layout.shape, self._bytes(name))
        return None if layout is None else self._scaled(name, layout)

    def _scaled(self, name: str, layout: ScaledLayout) -> ScaledTensor:
        # Exponents are handed out as bytes: not every torch that is supported has E8M0.
        exponents = layout.format.kind == "MXFP8"
        scales = self._bytes(layout.scales) if exponents else self._stored_tensor(layout.scales)
        return ScaledTensor(
            where=str(self.path),
            name=name,
            kind=layout.format.kind,
            shape=layout.shape,
            data=self._bytes(name),
            scales=scales if scales.ndim == 2 else scales.view(1, 1),
            block=layout.block,
            tensor_scale=1.0 if layout.tensor_scale is None else self._stored_tensor(layout.tensor_scale).item(),
        )

    def _bytes(self, name: str) -> torch.Tensor:
        """A stored tensor of one byte an element, as uint8."""
        extent = self.extent(name)
        return self._open_files()[extent.file].view(extent.offset, torch.uint8, self._stored[name].shape)

    def _stored_tensor(self, name: str) -> torch.Tensor:
        extent = self.extent(name)
        info = self._stored[name]
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


def with_quantization(directory: Path, config: dict[str, Any]) -> dict[str, Any]:
    """The configuration, with its quantization_config at the top.

    It may also stand in text_config, or alone in hf_quant_config.json, where ModelOpt puts it first.
    """
    inner = config.get("text_config")
    nested = inner.get("quantization_config") if isinstance(inner, dict) else None
    beside = directory / "hf_quant_config.json"
    if config.get("quantization_config") is not None:
        if nested not in (None, config["quantization_config"]):
            raise ConfigError(f"{directory / 'config.json'}: text_config has another quantization_config than the top")
        return config
    if nested is None and os.path.exists(beside):
        nested = read_json_object(beside)
    return config if nested is None else {**config, "quantization_config": nested}


def _find_quantized(
    directory: Path, values: Any, tensors: dict[str, tuple[TensorInfo, Extent]]
) -> tuple[Mapping[str, TensorInfo], Mapping[str, ScaledLayout | TensorInfo]]:
    """The tensors as a model sees them, and how the quantised ones are stored: as codes with scales, or as blocks."""
    stored = {name: info for name, (info, _) in tensors.items()}
    if values is None:
        return stored, {}
    where = f"{directory / 'config.json'}: quantization_config"
    if is_block_config(values):
        blocks = find_blocks(values, stored, where)
        return {**stored, **blocks}, blocks
    return find_scaled(stored, read_quantization(values, where), str(directory))


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
