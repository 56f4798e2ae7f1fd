"""The Llama family: Llama 2 and 3, SmolLM2. Read from the top: config, names, layer, model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from freehold.core.blocks import LaneSpec, LayerLanes, Spans
from freehold.core.errors import ConfigError
from freehold.kernels import FusedLayerParts, Gate
from freehold.loading.checkpoint import Checkpoint
from freehold.model.base import BlockObserver
from freehold.model.compute import Compute
from freehold.model.fields import MOST_CHANNELS, MOST_LAYERS, Fields
from freehold.model.fusion import Fusion, index_parts
from freehold.model.index_branch import IndexBranch, IndexSizes
from freehold.model.index_sidecar import IndexSidecar
from freehold.model.layers import Embedding, GatedMLP, Linear, RMSNorm
from freehold.model.rope import Rope, make_rope
from freehold.model.weights import Source, load_weights


@dataclass(frozen=True)
class LlamaConfig:
    """The sizes of a Llama model. `rope_scaling` is the checkpoint's mapping, or None."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_q_heads: int
    num_kv_heads: int
    head_dim: int
    context_length: int
    rms_norm_eps: float
    rope_theta: float
    rope_scaling: Mapping[str, Any] | None
    tie_embeddings: bool
    attention_bias: bool
    mlp_bias: bool

    @staticmethod
    def from_hf(values: Mapping[str, Any], where: str) -> LlamaConfig:
        """Reads config.json of model_type "llama"."""
        f = Fields(values, where)
        f.require("hidden_act", ["silu"])
        f.require("pretraining_tp", [1])
        f.require("rope_interleaved", [False])
        f.require("attention_dropout", [0, 0.0])
        hidden_size, num_q_heads = f.positive("hidden_size"), f.positive("num_attention_heads")
        rope = f.object("rope_parameters")
        given = f.object("rope_scaling").values
        scaling = given or (rope.values if rope.get("rope_type", str, "default") != "default" else None)
        config = LlamaConfig(
            vocab_size=f.positive("vocab_size"),
            hidden_size=hidden_size,
            intermediate_size=f.positive("intermediate_size"),
            num_layers=f.positive("num_hidden_layers", most=MOST_LAYERS),
            num_q_heads=num_q_heads,
            num_kv_heads=f.positive("num_key_value_heads", num_q_heads),
            head_dim=f.positive("head_dim", max(1, hidden_size // num_q_heads), most=MOST_CHANNELS),
            context_length=f.positive("max_position_embeddings", 2048),
            rms_norm_eps=f.get("rms_norm_eps", float, 1e-6),
            rope_theta=f.get("rope_theta", float, rope.get("rope_theta", float, 10000.0)),
            rope_scaling=scaling,
            tie_embeddings=f.get("tie_word_embeddings", bool, False),
            attention_bias=f.get("attention_bias", bool, False),
            mlp_bias=f.get("mlp_bias", bool, False),
        )
        f.done()
        return config._checked(where)

    @staticmethod
    def from_gguf(metadata: Mapping[str, Any], tensors: Mapping[str, Any], where: str) -> LlamaConfig:
        """Reads GGUF metadata of architecture "llama"; tied embeddings and biases show in the tensor names."""
        f = Fields({k[6:]: v for k, v in metadata.items() if k.startswith("llama.")}, where)
        hidden_size, num_q_heads = f.positive("embedding_length"), f.positive("attention.head_count")
        head_dim = f.positive("attention.key_length", max(1, hidden_size // num_q_heads), most=MOST_CHANNELS)
        f.require("attention.value_length", [head_dim])
        f.require("rope.dimension_count", [head_dim])
        f.require("rope.scaling.type", ["none", "linear"])
        f.require("expert_count", [0])
        scaling = None
        if f.optional("rope.scaling.type") == "linear":
            scaling = {"rope_type": "linear", "factor": f.get("rope.scaling.factor", float)}
        if "rope_freqs.weight" in tensors:
            raise ConfigError(f"{where}: rope_freqs.weight (Llama 3 scaling) is not supported in GGUF; use safetensors")
        config = LlamaConfig(
            vocab_size=f.positive("vocab_size", len(Fields(metadata, where).get("tokenizer.ggml.tokens", list, []))),
            hidden_size=hidden_size,
            intermediate_size=f.positive("feed_forward_length"),
            num_layers=f.positive("block_count", most=MOST_LAYERS),
            num_q_heads=num_q_heads,
            num_kv_heads=f.positive("attention.head_count_kv", num_q_heads),
            head_dim=head_dim,
            context_length=f.positive("context_length"),
            rms_norm_eps=f.get("attention.layer_norm_rms_epsilon", float),
            rope_theta=f.get("rope.freq_base", float, 10000.0),
            rope_scaling=scaling,
            tie_embeddings="output.weight" not in tensors,
            attention_bias="blk.0.attn_q.bias" in tensors,
            mlp_bias="blk.0.ffn_up.bias" in tensors,
        )
        f.done(ignored=("rope.scaling.factor", "rope.scaling.original_context_length", "rope.scaling.finetuned"))
        return config._checked(where)

    def _checked(self, where: str) -> LlamaConfig:
        if self.num_q_heads % self.num_kv_heads:
            raise ConfigError(
                f"{where}: {self.num_q_heads} query heads are no multiple of {self.num_kv_heads} KV heads"
            )
        for name in ("rope_theta", "rms_norm_eps"):
            if not 0 < getattr(self, name) < 1e12:
                raise ConfigError(f"{where}: {name} is {getattr(self, name)}; it must be a positive number")
        if self.head_dim % 2:
            raise ConfigError(f"{where}: head_dim {self.head_dim} is odd; rotary embedding needs pairs")
        return self


class LlamaAttention(nn.Module):
    """Grouped-query attention over the block cache; with an index branch, over the blocks that it picks."""

    def __init__(self, config: LlamaConfig, compute: Compute, index: IndexSizes | None) -> None:
        super().__init__()
        self.config, self.compute = config, compute
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (Linear(compute) for _ in range(4))
        self.index = None if index is None else IndexBranch(index, compute, norm_eps=None)

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, spans: Spans, lanes: LayerLanes, *, dense: bool
    ) -> tuple[Tensor, Tensor | None]:
        """x (rows, hidden_size) -> the same, and the block ids of a sparse layer."""
        c, rows, attention = self.config, x.shape[0], self.compute.attention
        projections = [self.q_proj, self.k_proj, self.v_proj]
        if self.index is not None:
            projections += [self.index.q_proj, self.index.k_proj]
        q, k, v, *index = self.compute.linears(x, projections)
        q, k = q.view(rows, c.num_q_heads, c.head_dim), k.view(rows, c.num_kv_heads, c.head_dim)
        v = v.view(rows, c.num_kv_heads, c.head_dim)
        q, k = self.compute.rope(q, cos, sin), self.compute.rope(k, cos, sin)
        scale, block_ids = c.head_dim**-0.5, None
        index_q, index_k = (None, None) if self.index is None else self.index(*index, cos, sin)
        attention.write(lanes, spans, k, v, index_k)
        if self.index is None or index_q is None or dense:
            out = attention.dense(q, lanes, spans, scale=scale)
        else:
            s = self.index.sizes
            choice = {"topk": s.topk, "local_blocks": s.local_blocks, "init_blocks": s.init_blocks}
            out, block_ids = attention.sparse(q, index_q, lanes, spans, scale=scale, **choice)
        return self.o_proj(out.view(rows, c.num_q_heads * c.head_dim)), block_ids


class LlamaLayer(nn.Module):
    """h += attention(norm(h)); h += mlp(norm(h))."""

    def __init__(self, config: LlamaConfig, compute: Compute, index: IndexSizes | None) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(compute, config.rms_norm_eps)
        self.attention = LlamaAttention(config, compute, index)
        self.mlp_norm = RMSNorm(compute, config.rms_norm_eps)
        self.mlp = GatedMLP(compute, Gate())
        self._fusion = Fusion(compute, self._parts)

    def forward(
        self, h: Tensor, cos: Tensor, sin: Tensor, spans: Spans, lanes: LayerLanes, *, dense: bool
    ) -> tuple[Tensor, Tensor | None]:
        """h (rows, hidden_size), which may be overwritten -> the same, and the block ids of a sparse layer."""
        done = self._fusion.run(h, cos, sin, spans, lanes, dense=dense)
        if done is not None:
            return done
        attended, block_ids = self.attention(self.attention_norm(h), cos, sin, spans, lanes, dense=dense)
        h = h + attended
        return h + self.mlp(self.mlp_norm(h)), block_ids

    def _parts(self) -> FusedLayerParts:
        a, m, c = self.attention, self.mlp, self.attention.config
        weights: Any = [linear.weight for linear in (a.q_proj, a.k_proj, a.v_proj, a.o_proj)]
        network: Any = [linear.weight for linear in m.parts]
        return FusedLayerParts(
            tuple(weights), tuple(network), (self.attention_norm.weight, self.mlp_norm.weight, None, None),
            c.rms_norm_eps, c.num_q_heads, c.num_kv_heads, c.head_dim, m.gate, index_parts(a.index),
        )  # fmt: skip


class Llama(nn.Module):
    """A whole Llama model; see `freehold.model.base.Model`.

    index: its layers are sparse where this has a branch. allow_dense runs them densely nevertheless.
    """

    def __init__(
        self, config: LlamaConfig, compute: Compute, index: IndexSidecar | None = None, *, allow_dense: bool = False
    ) -> None:
        super().__init__()
        self.config, self.compute, self.dense = config, compute, allow_dense
        sizes = None if index is None else index.sizes
        self.dense_layers: frozenset[int] = frozenset()
        """Sparse layers that run densely, for measurements."""
        self.block_tokens: int | None = None if sizes is None else sizes.block_tokens
        sparse = frozenset[int]() if index is None else index.sparse_layers
        self.compute_name = compute.name
        self.vocab_size, self.context_length = config.vocab_size, config.context_length
        self.lane_specs = tuple(
            LaneSpec(config.num_kv_heads, config.head_dim, sizes.index_dim if sizes and i in sparse else None)
            for i in range(config.num_layers)
        )
        self.rope: Rope = make_rope(config.head_dim, config.rope_theta, config.rope_scaling, config.context_length)
        self.embedding = Embedding(compute)
        self.layers = nn.ModuleList(
            LlamaLayer(config, compute, sizes if i in sparse else None) for i in range(config.num_layers)
        )
        self.norm = RMSNorm(compute, config.rms_norm_eps)
        self.head = self.embedding if config.tie_embeddings else Linear(compute)

    @torch.no_grad()
    def forward(
        self,
        token_ids: Tensor,
        spans: Spans,
        lanes: Sequence[LayerLanes],
        *,
        logit_rows: Tensor,
        observer: BlockObserver | None = None,
    ) -> Tensor:
        """See `Model.forward`."""
        h = self.run_layers(self.embedding.lookup(token_ids), spans, lanes, observer=observer)
        return self.logits(h[logit_rows])

    @torch.no_grad()
    def run_layers(
        self,
        h: Tensor,
        spans: Spans,
        lanes: Sequence[LayerLanes],
        *,
        layers: range | None = None,
        observer: BlockObserver | None = None,
    ) -> Tensor:
        """The residual stream, (rows, hidden_size) float32, from before `layers` to behind them. h may be overwritten.

        layers: neighbours, in order; left out, all. lanes: of every layer; only those of `layers` are read and written.
        """
        cos, sin = self.compute.rope_table(spans.positions, self.rope.inv_freq, self.rope.scale)
        each = list(zip(self.layers, lanes, strict=True))
        for i in range(len(each)) if layers is None else layers:
            layer, lane = each[i]
            h, block_ids = layer(h, cos, sin, spans, lane, dense=self.dense or i in self.dense_layers)
            if observer is not None and block_ids is not None:
                observer(i, block_ids)
        return h

    @torch.no_grad()
    def logits(self, h: Tensor) -> Tensor:
        """(rows, hidden_size), behind the last layer -> (rows, vocab_size)."""
        return self.head(self.norm(h))  # type: ignore[no-any-return]

    @staticmethod
    def from_checkpoint(
        checkpoint: Checkpoint, compute: Compute, index: IndexSidecar | None = None, *, allow_dense: bool = False
    ) -> Llama:
        """Builds and fills the model. Raises ConfigError or TensorMismatchError."""
        model = Llama.empty(checkpoint, compute, index, allow_dense=allow_dense)
        wanted, ignored = model.sources(checkpoint)
        load_weights(checkpoint, wanted, ignored=ignored)
        if index is not None:
            branches = [(i, layer.attention.index) for i, layer in enumerate(model.layers)]
            found = [index.sources(i, branch) for i, branch in branches if isinstance(branch, IndexBranch)]
            load_weights(index.checkpoint, [source for sources in found for source in sources])
        return model

    @staticmethod
    def empty(
        checkpoint: Checkpoint, compute: Compute, index: IndexSidecar | None = None, *, allow_dense: bool = False
    ) -> Llama:
        """The model without its weights. Raises ConfigError."""
        where = str(checkpoint.path)
        if checkpoint.format == "gguf":
            config = LlamaConfig.from_gguf(checkpoint.config, checkpoint.tensors, where)
        else:
            config = LlamaConfig.from_hf(checkpoint.config, f"{where}/config.json")
        if index is not None:
            index.check(checkpoint, config)
        return Llama(config, compute, index, allow_dense=allow_dense)

    def sources(self, checkpoint: Checkpoint) -> tuple[list[Source], Callable[[str], bool]]:
        """Every weight of the model and where it comes from; and which unused names are known."""
        gguf = checkpoint.format == "gguf"
        names = _GGUF_NAMES if gguf else _HF_NAMES
        tied_copy = {names["head"]} if self.config.tie_embeddings else set()
        wanted = self._sources(names, interleaved=gguf)
        return wanted, lambda name: name in tied_copy or name.endswith("rotary_emb.inv_freq")

    def _sources(self, names: Mapping[str, str], *, interleaved: bool) -> list[Source]:
        """GGUF stores q and k rows for interleaved rotation; they are put back in halves."""
        c = self.config
        hidden, ff, q, kv = c.hidden_size, c.intermediate_size, c.num_q_heads * c.head_dim, c.num_kv_heads * c.head_dim
        sources = [
            Source(names["embedding"] + ".weight", (c.vocab_size, hidden), self.embedding.load, matrix=True),
            Source(names["norm"] + ".weight", (hidden,), self.norm.load),
        ]
        if not c.tie_embeddings:
            sources.append(Source(names["head"], (c.vocab_size, hidden), self.head.load, matrix=True))

        def add(name: str, module: Linear, shape: tuple[int, int], biased: bool, heads: int | None = None) -> None:
            rows = None if heads is None or not interleaved else lambda w: _deinterleave(w, heads)
            sources.append(Source(name + ".weight", shape, module.load, rows=rows, matrix=True))
            if biased:
                sources.append(Source(name + ".bias", shape[:1], module.load_bias, rows=rows))

        for i, layer in enumerate(self.layers):
            n = {key: name.format(i) for key, name in names.items()}
            assert isinstance(layer, LlamaLayer)
            a, m = layer.attention, layer.mlp
            sources.append(Source(n["attention_norm"] + ".weight", (hidden,), layer.attention_norm.load))
            sources.append(Source(n["mlp_norm"] + ".weight", (hidden,), layer.mlp_norm.load))
            add(n["q"], a.q_proj, (q, hidden), c.attention_bias, c.num_q_heads)
            add(n["k"], a.k_proj, (kv, hidden), c.attention_bias, c.num_kv_heads)
            add(n["v"], a.v_proj, (kv, hidden), c.attention_bias)
            add(n["o"], a.o_proj, (hidden, q), c.attention_bias)
            add(n["gate"], m.gate_proj, (ff, hidden), c.mlp_bias)
            add(n["up"], m.up_proj, (ff, hidden), c.mlp_bias)
            add(n["down"], m.down_proj, (hidden, ff), c.mlp_bias)
        return sources


def _deinterleave(weight: Tensor, heads: int) -> Tensor:
    """Rows of each head from pairs (0, 1), (2, 3), ... to halves (0, 2, ...), (1, 3, ...)."""
    rows = weight.shape[0]
    return weight.view(heads, rows // heads // 2, 2, *weight.shape[1:]).transpose(1, 2).reshape(weight.shape)


_HF_NAMES = {
    "embedding": "model.embed_tokens",
    "norm": "model.norm",
    "head": "lm_head.weight",
    "attention_norm": "model.layers.{}.input_layernorm",
    "mlp_norm": "model.layers.{}.post_attention_layernorm",
    "q": "model.layers.{}.self_attn.q_proj",
    "k": "model.layers.{}.self_attn.k_proj",
    "v": "model.layers.{}.self_attn.v_proj",
    "o": "model.layers.{}.self_attn.o_proj",
    "gate": "model.layers.{}.mlp.gate_proj",
    "up": "model.layers.{}.mlp.up_proj",
    "down": "model.layers.{}.mlp.down_proj",
}

_GGUF_NAMES = {
    "embedding": "token_embd",
    "norm": "output_norm",
    "head": "output.weight",
    "attention_norm": "blk.{}.attn_norm",
    "mlp_norm": "blk.{}.ffn_norm",
    "q": "blk.{}.attn_q",
    "k": "blk.{}.attn_k",
    "v": "blk.{}.attn_v",
    "o": "blk.{}.attn_output",
    "gate": "blk.{}.ffn_gate",
    "up": "blk.{}.ffn_up",
    "down": "blk.{}.ffn_down",
}
