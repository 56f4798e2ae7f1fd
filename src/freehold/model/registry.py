"""Which class runs which checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from freehold.core.errors import ConfigError
from freehold.loading.checkpoint import Checkpoint, CheckpointFormat
from freehold.loading.quoting import quoted
from freehold.model.base import Model
from freehold.model.compute import Compute, ReferenceCompute
from freehold.model.index_branches import second_branch
from freehold.model.index_sidecar import IndexSidecar
from freehold.model.llama import Llama
from freehold.model.m3_tokens import IMAGE, VIDEO, special_id
from freehold.model.minimax_m3 import MiniMaxM3
from freehold.model.minimax_m3_config import MiniMaxM3Config
from freehold.model.minimax_m3_mmproj import Mmproj
from freehold.model.tokenizer import Tokenizer
from freehold.model.vision.encoder import VisionEncoder
from freehold.model.weights import check_weights

Family = Literal["llama", "m3"]

_GGUF_KINDS: dict[str, Family] = {"llama": "llama", "minimax-m3": "m3"}
_HF_KINDS: dict[str, Family] = {
    "llama": "llama",
    "minimax_m3_vl": "m3",
    "minimax_m3_vl_text": "m3",
    "minimax_m3": "m3",
}


def load_model(
    checkpoint: Checkpoint,
    compute: Compute,
    *,
    allow_dense: bool = False,
    expert_budget: int | None = None,
    index: IndexSidecar | None = None,
) -> Model:
    """Builds the model that the checkpoint's configuration names. index: a branch for a model that was trained dense.

    Raises ConfigError for an unknown one, or options that do not fit it.
    """
    if family_of(checkpoint.config, checkpoint.format, str(checkpoint.path)) == "llama":
        if expert_budget is not None:
            raise ConfigError(f"expert_budget is {expert_budget}; {checkpoint.path} has no experts. Leave it out")
        return Llama.from_checkpoint(checkpoint, compute, index, allow_dense=allow_dense)
    if index is not None:
        raise second_branch(index.checkpoint.path, checkpoint.path)
    return MiniMaxM3.from_checkpoint(checkpoint, compute, allow_dense=allow_dense, expert_budget=expert_budget)


def check_loads(checkpoint: Checkpoint) -> None:
    """Whether `load_model` and `load_vision` would find the tensors that they need; no weight is read.

    Raises ConfigError or TensorMismatchError as they do.
    """
    model = _empty(checkpoint)
    wanted, ignored = model.sources(checkpoint)
    check_weights(checkpoint, wanted, ignored=ignored)
    vision = VisionEncoder.empty(checkpoint, ReferenceCompute()) if isinstance(model, MiniMaxM3) else None
    if vision is not None:
        wanted, ignored = vision.sources()
        check_weights(checkpoint, wanted, ignored=ignored)


def matrix_names(checkpoint: Checkpoint) -> frozenset[str]:
    """The tensors that the model takes as matrices to multiply with, which may be codes. Raises as `load_model`."""
    sources, _ = _empty(checkpoint).sources(checkpoint)
    return frozenset(source.name for source in sources if source.matrix)


def context_length(checkpoint: Checkpoint) -> int:
    """Tokens that the model was made for. Raises as `load_model`."""
    return _empty(checkpoint).config.context_length


def is_trained_sparse(checkpoint: Checkpoint) -> bool:
    """Whether some layer of the model itself chooses blocks. Raises as `load_model`."""
    model = _empty(checkpoint)
    return isinstance(model, MiniMaxM3) and any(model.config.sparse_attention)


def _empty(checkpoint: Checkpoint) -> Llama | MiniMaxM3:
    """The text model without its weights."""
    family = family_of(checkpoint.config, checkpoint.format, str(checkpoint.path))
    kind = Llama if family == "llama" else MiniMaxM3
    return kind.empty(checkpoint, ReferenceCompute())


def family_of(config: Mapping[str, Any], checkpoint_format: CheckpointFormat, where: str) -> Family:
    """Which of the models here a configuration describes. Raises ConfigError, naming `where`, for an unknown one."""
    kind = _kind(config, checkpoint_format)
    known = _GGUF_KINDS if checkpoint_format == "gguf" else _HF_KINDS
    if kind not in known:
        raise ConfigError(f"{where}: model type {quoted(kind)} is not supported; supported are {', '.join(known)}")
    return known[kind]


def load_vision(
    checkpoint: Checkpoint, compute: Compute, tokenizer: Tokenizer, mmproj: Mmproj | None = None
) -> VisionEncoder | None:
    """The part of the checkpoint that sees; None if there is none.

    mmproj: where it is in a file of its own. Raises ConfigError or TensorMismatchError.
    """
    is_m3 = family_of(checkpoint.config, checkpoint.format, str(checkpoint.path)) == "m3"
    if mmproj is None:
        return VisionEncoder.from_checkpoint(checkpoint, compute) if is_m3 else None
    if not is_m3 or checkpoint.format != "gguf":
        raise ConfigError(
            f"mmproj is {str(mmproj.path)!r}, which goes with a GGUF file of minimax-m3; {checkpoint.path} is"
            f" {model_kind(checkpoint)!r} in {checkpoint.format}. Leave mmproj out"
        )
    width = MiniMaxM3Config.from_gguf(checkpoint.config, str(checkpoint.path)).hidden_size
    return VisionEncoder.from_mmproj(mmproj, compute, _row_tokens(tokenizer, checkpoint), width)


def _row_tokens(tokenizer: Tokenizer, checkpoint: Checkpoint) -> dict[str, int]:
    """The tokens that stand for rows, as config.json of the release names them."""
    found = {}
    for kind, text in (("image", IMAGE), ("video", VIDEO)):
        token = special_id(tokenizer, text)
        if token is None:
            raise ConfigError(f"{checkpoint.path}: its vocabulary has no token {text!r}, so that it takes no images")
        found[f"{kind}_token_index"] = token
    return found


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
