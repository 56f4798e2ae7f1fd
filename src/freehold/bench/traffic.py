"""How many bytes a model must read from memory to compute one more token: what decoding costs at the least."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, is_dataclass

from torch import Tensor, nn

from freehold.core.errors import ArgumentError
from freehold.loading.checkpoint import Checkpoint
from freehold.model.index_branch import IndexBranch
from freehold.model.llama import Llama
from freehold.model.minimax_m3 import MiniMaxM3


def weight_nbytes(model: nn.Module) -> int:
    """Bytes of all weights as they lie in memory, each counted once."""
    return sum(tensor.nbytes for _, tensor in _weights(model))


def weight_nbytes_read(model: Llama | MiniMaxM3) -> int:
    """Bytes of the weights that one token needs: no input embedding (one row of it), and only the active experts."""
    tied = model.head is model.embedding
    total = 0.0
    for name, tensor in _weights(model):
        if name.startswith("embedding.") and not tied:
            continue
        total += tensor.nbytes * (_active_share(model) if ".experts." in f".{name}" else 1.0)
    return round(total)


def cache_elements_read(model: Llama | MiniMaxM3, depth: int) -> int:
    """Elements of K, V and index-K that one token at position `depth` reads, over all layers.

    A layer with an index branch reads all index keys, and K and V of the selected blocks only, unless it runs densely.
    """
    total = 0
    for spec, layer in zip(model.lane_specs, model.layers, strict=True):
        tokens, branch = depth, layer.attention.index
        if isinstance(branch, IndexBranch) and not model.dense:
            total += depth * branch.sizes.index_dim
            tokens = min(depth, branch.sizes.topk * branch.sizes.block_tokens)
        total += tokens * spec.num_kv_heads * spec.head_dim * 2
    return total


def file_nbytes_read(checkpoint: Checkpoint) -> int:
    """As `weight_nbytes_read`, for who computes with a GGUF file's own blocks. Raises ArgumentError for others."""
    if checkpoint.format != "gguf":
        raise ArgumentError(f"{checkpoint.path}: is no GGUF file")
    kind = str(checkpoint.config.get("general.architecture"))
    experts = int(checkpoint.config.get(f"{kind}.expert_count") or 0)
    share = int(checkpoint.config.get(f"{kind}.expert_used_count") or 0) / experts if experts else 1.0
    total = 0.0
    for name in checkpoint.tensors:
        if name == "token_embd.weight" and "output.weight" in checkpoint.tensors:
            continue
        total += checkpoint.extent(name).nbytes * (share if "_exps." in name else 1.0)
    return round(total)


def _active_share(model: Llama | MiniMaxM3) -> float:
    if isinstance(model, MiniMaxM3):
        return model.config.num_experts_per_token / model.config.num_experts
    return 1.0


def _weights(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters, and the tensors inside packed weights, which torch does not know as parameters."""
    yield from model.named_parameters()
    seen = set()
    for name, module in model.named_modules():
        packed = vars(module).get("weight")
        if is_dataclass(packed) and id(packed) not in seen:
            seen.add(id(packed))
            for field in fields(packed):
                value = getattr(packed, field.name)
                if isinstance(value, Tensor):
                    yield f"{name}.weight.{field.name}", value
