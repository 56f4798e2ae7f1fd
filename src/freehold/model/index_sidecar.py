"""An index branch for a model that was trained dense, in a directory of its own: config.json and safetensors.

`layers.{i}.q_proj.weight` (num_index_heads * index_dim, hidden_size) and `layers.{i}.k_proj.weight` (index_dim,
hidden_size) for each layer that is sparse; the others stay dense. It belongs to the weights whose digest it names.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from freehold.core.errors import ConfigError
from freehold.loading.checkpoint import Checkpoint, open_checkpoint
from freehold.loading.quoting import quoted
from freehold.model.fields import Fields
from freehold.model.index_branch import IndexBranch, IndexSizes
from freehold.model.weights import Source

if TYPE_CHECKING:
    from freehold.model.llama import LlamaConfig

KIND = "freehold_index"
VERSION = 1


@dataclass(frozen=True, slots=True)
class IndexSidecar:
    """Opened and checked against the model's configuration. base_digest: `Checkpoint.digest` of the weights that it was
    trained on. sparse_layers: which layers have a branch."""

    checkpoint: Checkpoint
    sizes: IndexSizes
    hidden_size: int
    sparse_layers: frozenset[int]
    base_digest: str

    def check(self, base: Checkpoint, config: LlamaConfig) -> None:
        """Raises ConfigError if it was made for another model than `base`, whose configuration this is."""
        where = self.checkpoint.path
        if self.base_digest != base.digest():
            raise ConfigError(
                f"{where}: this index branch belongs to weights {self.base_digest[:16]}..., and {base.path} is "
                f"{base.digest()[:16]}...; convert this model (freehold convert), or leave index out"
            )
        for name, found, wanted in (
            ("num_index_heads", self.sizes.num_index_heads, config.num_kv_heads),
            ("hidden_size", self.hidden_size, config.hidden_size),
        ):
            if found != wanted:
                raise ConfigError(f"{where}: {name} is {found}; the model has {wanted}")
        if self.sizes.index_dim < config.head_dim:
            raise ConfigError(
                f"{where}: index_dim is {self.sizes.index_dim}; rotation needs at least {config.head_dim}"
            )
        last = max(self.sparse_layers)
        if last >= config.num_layers:
            raise ConfigError(f"{where}: layer {last} is sparse; the model has {config.num_layers} layers")

    def sources(self, layer: int, branch: IndexBranch) -> list[Source]:
        """Where the branch of a layer comes from."""
        s = self.sizes
        shapes = (s.num_index_heads * s.index_dim, self.hidden_size), (s.index_dim, self.hidden_size)
        return [
            Source(f"layers.{layer}.q_proj.weight", shapes[0], branch.q_proj.load, matrix=True),
            Source(f"layers.{layer}.k_proj.weight", shapes[1], branch.k_proj.load, matrix=True),
        ]


def open_index(path: str | Path) -> IndexSidecar:
    """Opens the directory. Raises what `open_checkpoint` does, and ConfigError for a configuration that is wrong."""
    checkpoint = open_checkpoint(path)
    where = f"{checkpoint.path}/config.json"
    if checkpoint.config.get("model_type") != KIND:
        raise ConfigError(
            f"{where}: model_type is {checkpoint.config.get('model_type')!r}; an index branch has {KIND!r}"
        )
    f = Fields(checkpoint.config, where)
    f.require("model_type", [KIND])
    f.require("version", [VERSION])
    sizes = IndexSizes(
        num_index_heads=f.positive("num_index_heads"),
        index_dim=f.positive("index_dim"),
        block_tokens=f.positive("block_tokens"),
        topk=f.positive("topk"),
        local_blocks=f.positive("local_blocks", 1),
        init_blocks=f.get("init_blocks", int, 0),
    )
    if sizes.block_tokens % 16 or not 0 <= sizes.init_blocks <= sizes.topk - sizes.local_blocks:
        raise ConfigError(
            f"{where}: block_tokens is {sizes.block_tokens}, topk {sizes.topk}, local_blocks {sizes.local_blocks}, "
            f"init_blocks {sizes.init_blocks}; blocks are multiples of 16 tokens, and forced ones fit into topk"
        )
    layers = f.get("sparse_layers", list)
    if not layers or any(not isinstance(i, int) or isinstance(i, bool) or i < 0 for i in layers):
        raise ConfigError(f"{where}: sparse_layers is {quoted(layers)}; it must name at least one layer by its number")
    sidecar = IndexSidecar(checkpoint, sizes, f.positive("hidden_size"), frozenset(layers), f.get("base_digest", str))
    f.done(ignored=("card",))
    return sidecar


def index_config(sizes: IndexSizes, hidden_size: int, sparse_layers: list[int], base_digest: str) -> dict[str, Any]:
    """config.json of a sidecar."""
    return {
        "model_type": KIND,
        "version": VERSION,
        "base_digest": base_digest,
        "hidden_size": hidden_size,
        "num_index_heads": sizes.num_index_heads,
        "index_dim": sizes.index_dim,
        "block_tokens": sizes.block_tokens,
        "topk": sizes.topk,
        "local_blocks": sizes.local_blocks,
        "init_blocks": sizes.init_blocks,
        "sparse_layers": sparse_layers,
    }
