"""Which class runs which checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from freehold.core.errors import ConfigError
from freehold.loading.checkpoint import Checkpoint, CheckpointFormat
from freehold.model.base import Model
from freehold.model.compute import Compute
from freehold.model.llama import Llama
from freehold.model.minimax_m3 import MiniMaxM3
from freehold.model.tokenizer import Tokenizer
from freehold.model.vision.encoder import VisionEncoder

Family = Literal["llama", "m3"]

_GGUF_KINDS: dict[str, Family] = {"llama": "llama", "minimax-m3": "m3"}
_HF_KINDS: dict[str, Family] = {
    "llama": "llama",
    "minimax_m3_vl": "m3",
    "minimax_m3_vl_text": "m3",
    "minimax_m3": "m3",
}


def load_model(checkpoint: Checkpoint, compute: Compute, *, allow_dense: bool = False) -> Model:
    """Builds the model that the checkpoint's configuration names. Raises ConfigError for an unknown one."""
    if family_of(checkpoint.config, checkpoint.format, str(checkpoint.path)) == "llama":
        return Llama.from_checkpoint(checkpoint, compute)
    return MiniMaxM3.from_checkpoint(checkpoint, compute, allow_dense=allow_dense)


def family_of(config: Mapping[str, Any], checkpoint_format: CheckpointFormat, where: str) -> Family:
    """Which of the models here a configuration describes. Raises ConfigError, naming `where`, for an unknown one."""
    kind = _kind(config, checkpoint_format)
    known = _GGUF_KINDS if checkpoint_format == "gguf" else _HF_KINDS
    if kind not in known:
        raise ConfigError(f"{where}: model type {kind!r} is not supported; supported are {', '.join(known)}")
    return known[kind]


def load_vision(checkpoint: Checkpoint, compute: Compute) -> VisionEncoder | None:
    """The part of the checkpoint that sees; None if there is none. Raises ConfigError or TensorMismatchError."""
    is_m3 = checkpoint.format == "safetensors" and _HF_KINDS.get(model_kind(checkpoint)) == "m3"
    return VisionEncoder.from_checkpoint(checkpoint, compute) if is_m3 else None


def model_kind(checkpoint: Checkpoint) -> str:
    """The model type that the configuration names. The release's text configuration has none, but names its class."""
    return _kind(checkpoint.config, checkpoint.format)


def _kind(config: Mapping[str, Any], checkpoint_format: CheckpointFormat) -> str:
    if checkpoint_format == "gguf":
        return str(config.get("general.architecture"))
    kind = config.get("model_type")
    if kind is not None:
        return str(kind)
    names = config.get("architectures")
    is_m3 = isinstance(names, list) and any(str(name).startswith("MiniMaxM3") for name in names)
    return "minimax_m3" if is_m3 else "missing"


def load_tokenizer(checkpoint: Checkpoint) -> Tokenizer:
    """The tokenizer beside or inside the checkpoint."""
    if checkpoint.format == "gguf":
        return Tokenizer.from_gguf(checkpoint.config)
    return Tokenizer.from_directory(Path(checkpoint.path))
