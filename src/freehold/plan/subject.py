"""What is planned: a model's sizes and tensors, from its files' headers or from its configuration alone."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

from freehold.core.blocks import LaneSpec
from freehold.core.errors import ArgumentError, ConfigError, LoadError
from freehold.loading.block_config import find_blocks, is_block_config
from freehold.loading.checkpoint import INDEX_NAME, Checkpoint, TensorInfo, open_checkpoint
from freehold.loading.json_object import read_json_object
from freehold.loading.pull import resolve
from freehold.loading.quantization_config import read_quantization
from freehold.loading.quoting import quoted
from freehold.loading.safetensors import with_quantization
from freehold.loading.safetensors_header import BITS_PER_ELEMENT
from freehold.model.index_branch import IndexSizes
from freehold.model.index_branches import AUTO, NONE, index_for, second_branch
from freehold.model.index_sidecar import IndexSidecar
from freehold.model.llama import LlamaConfig
from freehold.model.minimax_m3 import index_sizes
from freehold.model.minimax_m3_config import MiniMaxM3Config
from freehold.model.registry import check_loads, family_of
from freehold.plan.part import Part, part_of
from freehold.plan.shapes import llama_tensors, m3_tensors, quantised_tensors

_SCALES = ("_scale_inv", "_scale", "_scale_2", ".input_scale")
_WORDS = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}


class Kind(NamedTuple):
    """What tensors that cost the same have in common.

    nbytes: of one in its file. parameters: weights that one stands for; scales stand for none. form: how they are
    stored: the tensor's dtype, or "MXFP8", "FP8" or "NVFP4" of codes with scales beside them, or "scales".
    """

    part: Part
    info: TensorInfo
    nbytes: int
    parameters: int
    form: str


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """One tensor of a checkpoint."""

    name: str
    kind: Kind


@dataclass(frozen=True)
class Subject:
    """origin: whether tensors were read from files' headers or derived from a configuration.

    config: the text model's sizes. tensors: all of the checkpoint, in its order, then those of an index branch beside
    it. refusals: why this version does not load the checkpoint, though its needs are known; empty if it does.
    index: how blocks are chosen in the layers of `sparse`; None if every layer reads everything. asked_index: which
    branch was asked for, so that serving it can be told the same.
    """

    path: Path
    origin: Literal["files", "configuration"]
    config: LlamaConfig | MiniMaxM3Config
    tensors: tuple[StoredTensor, ...]
    refusals: tuple[str, ...] = ()
    index: IndexSizes | None = None
    sparse: frozenset[int] = frozenset()
    asked_index: str = AUTO

    @property
    def family(self) -> Literal["llama", "m3"]:
        """Which of the architectures it is."""
        return "m3" if isinstance(self.config, MiniMaxM3Config) else "llama"

    @cached_property
    def lane_specs(self) -> tuple[LaneSpec, ...]:
        """The lanes of each layer in the block cache, as the model itself will ask for them."""
        c, index_dim = self.config, None if self.index is None else self.index.index_dim
        return tuple(
            LaneSpec(c.num_kv_heads, c.head_dim, index_dim if layer in self.sparse else None)
            for layer in range(c.num_layers)
        )

    @property
    def num_moe_layers(self) -> int:
        """Layers with routed experts."""
        return sum(self.config.moe) if isinstance(self.config, MiniMaxM3Config) else 0

    @property
    def num_experts(self) -> int:
        """Routed experts of a layer that has some."""
        return self.config.num_experts if isinstance(self.config, MiniMaxM3Config) else 0

    @property
    def active_share(self) -> float:
        """Routed experts that a token uses, as a part of all."""
        c = self.config
        return c.num_experts_per_token / c.num_experts if isinstance(c, MiniMaxM3Config) else 1.0

    @cached_property
    def kinds(self) -> Mapping[Kind, int]:
        """How many tensors there are of each kind: few, though M3 has thousands of tensors."""
        return Counter(tensor.kind for tensor in self.tensors)

    @cached_property
    def parameters(self) -> dict[Part, int]:
        """Stored parameters of each part that has some."""
        return self._sum(lambda kind: kind.parameters)

    @cached_property
    def nbytes(self) -> dict[Part, int]:
        """Stored bytes of each part that has some, without the files' headers."""
        return self._sum(lambda kind: kind.nbytes)

    @cached_property
    def active(self) -> dict[Part, int]:
        """Parameters that compute one text token. Of embeddings it is one row, or, where they are the head too, all."""
        found: dict[Part, int] = {}
        for part, count in self.parameters.items():
            if part == "embeddings":
                found[part] = count if self.config.tie_embeddings else self.config.hidden_size
            elif part == "routed experts":
                found[part] = round(count * self.active_share)
            else:
                found[part] = 0 if part in ("vision", "other") else count
        return found

    def _sum(self, amount: Callable[[Kind], int]) -> dict[Part, int]:
        found: dict[Part, int] = {}
        for kind, count in self.kinds.items():
            found[kind.part] = found.get(kind.part, 0) + count * amount(kind)
        return found


def open_subject(model: str, index: str = AUTO) -> Subject:
    """Looks at a model without reading its weights.

    model: a directory, a .gguf file (any part of a split one), a pulled name, or a config.json (also a directory that
    holds nothing else): then every tensor is derived from it. index: which branch chooses blocks, as in `EngineConfig`;
    a configuration alone has none but its own.
    Raises ModelNotFoundError, LoadError or ConfigError; ArgumentError for a branch beside a configuration alone.
    """
    path = Path(os.path.abspath(os.path.expanduser(model)))
    if path.is_dir() and (path / "config.json").is_file() and not _has_weights(path):
        path /= "config.json"
    if path.is_file() and path.suffix.lower() == ".json":
        if index not in (AUTO, NONE):
            raise ArgumentError(f"index is {index!r}, but {path} has no weights that it could be for; leave index out")
        return _from_config(path)
    with open_checkpoint(resolve(model), raw=True) as checkpoint:
        subject = replace(_from_files(checkpoint), asked_index=index)
        if not isinstance(subject.config, LlamaConfig):
            if index not in (AUTO, NONE):
                raise second_branch(index, checkpoint.path)
            return subject
        if subject.refusals:
            return subject
        branch = index_for(checkpoint, index)
        if branch is None:
            return subject
        branch.check(checkpoint, subject.config)
    return _with_branch(subject, branch)


def _with_branch(subject: Subject, branch: IndexSidecar) -> Subject:
    with branch.checkpoint as beside:
        tensors = [
            StoredTensor(name, Kind("index", info, beside.extent(name).nbytes, info.numel, info.dtype))
            for name, info in beside.tensors.items()
        ]
    return replace(subject, tensors=(*subject.tensors, *tensors), index=branch.sizes, sparse=branch.sparse_layers)


def _has_weights(directory: Path) -> bool:
    return any(name == INDEX_NAME or name.lower().endswith((".safetensors", ".gguf")) for name in os.listdir(directory))


def _from_files(checkpoint: Checkpoint) -> Subject:
    where, names = str(checkpoint.path), checkpoint.tensors
    config: LlamaConfig | MiniMaxM3Config
    if checkpoint.format == "gguf":
        known = family_of(checkpoint.config, "gguf", where)
        if known == "llama":
            config = LlamaConfig.from_gguf(checkpoint.config, names, where)
        else:
            config = MiniMaxM3Config.from_gguf(checkpoint.config, where)
    else:
        config, _ = _read_config(checkpoint.config, f"{where}/config.json")
    quantization: Any = checkpoint.config.get("quantization_config")
    if checkpoint.format == "safetensors" and is_block_config(quantization):
        names = {**names, **find_blocks(quantization, names, f"{where}/config.json: quantization_config")}
    tensors = tuple(
        StoredTensor(name, _kind(name, info, checkpoint.extent(name).nbytes, names)) for name, info in names.items()
    )
    return Subject(checkpoint.path, "files", config, tensors, _refusals(checkpoint.path), *_own_index(config))


def _own_index(config: LlamaConfig | MiniMaxM3Config) -> tuple[IndexSizes | None, frozenset[int]]:
    """How a model chooses blocks that was trained to, and in which layers."""
    if isinstance(config, LlamaConfig):
        return None, frozenset()
    return index_sizes(config), frozenset(i for i, sparse in enumerate(config.sparse_attention) if sparse)


def _refusals(path: Path) -> tuple[str, ...]:
    """Why the files do not load, by what loading asks of them before it reads a weight; empty if they do."""
    try:
        with open_checkpoint(path) as checkpoint:  # again, as loading does: blocks' scales are then part of the tensors
            check_loads(checkpoint)
    except (LoadError, ConfigError) as error:
        return (str(error),)
    return ()


def _from_config(path: Path) -> Subject:
    values, where = with_quantization(path.parent, read_json_object(path)), str(path)
    config, refusals = _read_config(values, where)
    if isinstance(config, LlamaConfig):
        infos = llama_tensors(config, _dtype(values, where))
    else:
        infos = m3_tensors(config, values, _dtype(values, where), where)
    if values.get("quantization_config"):
        infos = quantised_tensors(infos, values["quantization_config"], where)
    tensors = tuple(StoredTensor(name, _kind(name, info, _nbytes(info), infos)) for name, info in infos.items())
    return Subject(path, "configuration", config, tensors, refusals, *_own_index(config))


def _read_config(values: Mapping[str, Any], where: str) -> tuple[LlamaConfig | MiniMaxM3Config, tuple[str, ...]]:
    """The sizes, and why this version would not load them: a quantisation is no reason not to plan."""
    is_llama = family_of(values, "safetensors", where) == "llama"
    config = LlamaConfig.from_hf(values, where) if is_llama else MiniMaxM3Config.from_hf(values, where)
    if values.get("quantization_config") is None or is_block_config(values["quantization_config"]):
        return config, ()
    try:
        read_quantization(values["quantization_config"], f"{where}: quantization_config")
    except ConfigError as error:
        return config, (str(error),)
    return config, ()


def _dtype(values: Mapping[str, Any], where: str) -> str:
    """The stored type that a configuration names; bfloat16 where it names none, as models are published in."""
    text = values.get("text_config") or {}
    named = next(
        (v for v in (values.get("torch_dtype"), values.get("dtype"), text.get("torch_dtype")) if v), "bfloat16"
    )
    word = _WORDS.get(str(named).removeprefix("torch."))
    if word is None:
        raise ConfigError(f"{where}: 'torch_dtype' is {quoted(named)}; known are {', '.join(_WORDS)}")
    return word


def _nbytes(info: TensorInfo) -> int:
    return info.numel * BITS_PER_ELEMENT[info.dtype] // 8


def _kind(name: str, info: TensorInfo, nbytes: int, infos: Mapping[str, TensorInfo]) -> Kind:
    form = _form(name, info, infos)
    parameters = {"scales": 0, "NVFP4": 2 * info.numel}.get(form, info.numel)  # NVFP4 has two weights in a byte
    return Kind(part_of(name), info, nbytes, parameters, form)


def _form(name: str, info: TensorInfo, infos: Mapping[str, TensorInfo]) -> str:
    if name.endswith(_SCALES):
        return "scales"
    scales = infos.get(f"{name}_scale_inv") or infos.get(f"{name}_scale")
    if scales is None or not info.dtype.startswith(("F8_", "U8")):
        return info.dtype
    if info.dtype == "U8":
        return "NVFP4"
    return "MXFP8" if scales.dtype in ("U8", "F8_E8M0") else "FP8"
