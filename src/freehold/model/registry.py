"""Which class runs which checkpoint."""

from __future__ import annotations

from pathlib import Path

from freehold.core.errors import ConfigError
from freehold.loading.checkpoint import Checkpoint
from freehold.model.base import Model
from freehold.model.compute import Compute
from freehold.model.llama import Llama
from freehold.model.minimax_m3 import MiniMaxM3
from freehold.model.tokenizer import Tokenizer

_GGUF_KINDS = {"llama": "llama", "minimax-m3": "m3"}
_HF_KINDS = {"llama": "llama", **dict.fromkeys(("minimax_m3_vl", "minimax_m3_vl_text", "minimax_m3"), "m3")}


def load_model(checkpoint: Checkpoint, compute: Compute, *, allow_dense: bool = False) -> Model:
    """Builds the model that the checkpoint's configuration names. Raises ConfigError for an unknown one."""
    kind = model_kind(checkpoint)
    known = _GGUF_KINDS if checkpoint.format == "gguf" else _HF_KINDS
    if kind not in known:
        raise ConfigError(f"{checkpoint.path}: model type {kind!r} is not supported; supported are {', '.join(known)}")
    if known[kind] == "llama":
        return Llama.from_checkpoint(checkpoint, compute)
    return MiniMaxM3.from_checkpoint(checkpoint, compute, allow_dense=allow_dense)


def model_kind(checkpoint: Checkpoint) -> str:
    """The model type that the configuration names. The release's text configuration has none, but names its class."""
    if checkpoint.format == "gguf":
        return str(checkpoint.config.get("general.architecture"))
    kind = checkpoint.config.get("model_type")
    if kind is not None:
        return str(kind)
    names = checkpoint.config.get("architectures")
    is_m3 = isinstance(names, list) and any(str(name).startswith("MiniMaxM3") for name in names)
    return "minimax_m3" if is_m3 else "missing"


def load_tokenizer(checkpoint: Checkpoint) -> Tokenizer:
    """The tokenizer beside or inside the checkpoint."""
    if checkpoint.format == "gguf":
        return Tokenizer.from_gguf(checkpoint.config)
    return Tokenizer.from_directory(Path(checkpoint.path))
