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

_M3_TYPES = ("minimax_m3_vl", "minimax_m3_vl_text", "minimax_m3")


def load_model(checkpoint: Checkpoint, compute: Compute, *, allow_dense: bool = False) -> Model:
    """Builds the model that the checkpoint's configuration names. Raises ConfigError for an unknown one."""
    if checkpoint.format == "gguf":
        kind = str(checkpoint.config.get("general.architecture"))
        known = {"llama": "llama", "minimax-m3": "m3"}
    else:
        kind = str(checkpoint.config.get("model_type") or _from_architectures(checkpoint))
        known = {"llama": "llama", **dict.fromkeys(_M3_TYPES, "m3")}
    if kind not in known:
        raise ConfigError(f"{checkpoint.path}: model type {kind!r} is not supported; supported are {', '.join(known)}")
    if known[kind] == "llama":
        return Llama.from_checkpoint(checkpoint, compute)
    return MiniMaxM3.from_checkpoint(checkpoint, compute, allow_dense=allow_dense)


def _from_architectures(checkpoint: Checkpoint) -> str:
    """The release's text configuration has no model_type, but names its class."""
    names = checkpoint.config.get("architectures") or []
    return "minimax_m3" if any(str(n).startswith("MiniMaxM3") for n in names) else "missing"


def load_tokenizer(checkpoint: Checkpoint) -> Tokenizer:
    """The tokenizer beside or inside the checkpoint."""
    if checkpoint.format == "gguf":
        return Tokenizer.from_gguf(checkpoint.config)
    return Tokenizer.from_directory(Path(checkpoint.path))
