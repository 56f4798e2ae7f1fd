"""The names of MiniMax-M3's weights on disk: the release's safetensors, and GGUF."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from torch import Tensor

from freehold.loading.checkpoint import Checkpoint
from freehold.model.weights import ExpertMatrix, Source

if TYPE_CHECKING:
    from freehold.model.layers import GatedMLP
    from freehold.model.minimax_m3 import Attention, MiniMaxM3, MixtureOfExperts

# The vision encoder reads its own part, and multi-token prediction is not part of the text model.
_OTHER_PARTS = ("vision_tower.", "multi_modal_projector.", "patch_merge_mlp.", "v.", "mm.")


def sources(model: MiniMaxM3, checkpoint: Checkpoint) -> tuple[list[Source], Callable[[str], bool]]:
    """Every weight of the model and where it comes from; and which unused names are known."""
    names = _Gguf() if checkpoint.format == "gguf" else _Release(checkpoint)
    c = model.config
    found = [
        Source(names.embedding, (c.vocab_size, c.hidden_size), model.embedding.load, matrix=True),
        Source(names.norm, (c.hidden_size,), model.norm.load, names.norm_factor),
    ]
    if not c.tie_embeddings:
        found.append(Source(names.head, (c.vocab_size, c.hidden_size), model.head.load, matrix=True))
    for i, layer in enumerate(model.layers):
        before, after = names.layer_norms(i)
        found.append(Source(before, (c.hidden_size,), layer.attention_norm.load, names.norm_factor))  # type: ignore[union-attr, arg-type]
        found.append(Source(after, (c.hidden_size,), layer.feed_forward_norm.load, names.norm_factor))  # type: ignore[union-attr, arg-type]
        found += _attention(names, model, layer.attention, i)  # type: ignore[arg-type]
        found += _moe(names, model, layer.feed_forward, i) if c.moe[i] else _dense(names, model, layer.feed_forward, i)  # type: ignore[arg-type]
    return found, names.ignored


def _attention(names: _Release | _Gguf, model: MiniMaxM3, attention: Attention, i: int) -> list[Source]:
    c = model.config
    q, kv = c.num_q_heads * c.head_dim, c.num_kv_heads * c.head_dim
    found = [
        Source(names.attention(i, "q"), (q, c.hidden_size), attention.q_proj.load, matrix=True),
        Source(names.attention(i, "k"), (kv, c.hidden_size), attention.k_proj.load, matrix=True),
        Source(names.attention(i, "v"), (kv, c.hidden_size), attention.v_proj.load, matrix=True),
        Source(names.attention(i, "o"), (c.hidden_size, q), attention.o_proj.load, matrix=True),
        Source(names.attention(i, "q_norm"), (c.head_dim,), attention.q_norm.load, names.norm_factor),
        Source(names.attention(i, "k_norm"), (c.head_dim,), attention.k_norm.load, names.norm_factor),
    ]
    index = attention.index
    if index is not None:
        heads = c.num_index_heads * c.index_dim
        found += [
            Source(names.attention(i, "index_q"), (heads, c.hidden_size), index.q_proj.load, matrix=True),
            Source(names.attention(i, "index_k"), (c.index_dim, c.hidden_size), index.k_proj.load, matrix=True),
            Source(names.attention(i, "index_q_norm"), (c.index_dim,), index.q_norm.load, names.norm_factor),
            Source(names.attention(i, "index_k_norm"), (c.index_dim,), index.k_norm.load, names.norm_factor),
        ]
    return found


def _mlp(mlp: GatedMLP, gate: str, up: str, down: str, width: int, hidden: int) -> list[Source]:
    return [
        Source(gate, (width, hidden), mlp.gate_proj.load, matrix=True),
        Source(up, (width, hidden), mlp.up_proj.load, matrix=True),
        Source(down, (hidden, width), mlp.down_proj.load, matrix=True),
    ]


def _dense(names: _Release | _Gguf, model: MiniMaxM3, mlp: GatedMLP, i: int) -> list[Source]:
    c = model.config
    return _mlp(mlp, *names.dense(i), c.dense_intermediate_size, c.hidden_size)


def _moe(names: _Release | _Gguf, model: MiniMaxM3, moe: MixtureOfExperts, i: int) -> list[Source]:
    c = model.config
    router, bias = names.router(i)
    found = [
        Source(router, (c.num_experts, c.hidden_size), moe.router.load, lambda w: w.float()),
        Source(bias, (c.num_experts,), moe.load_bias),
        *_mlp(moe.shared, *names.shared(i), c.shared_intermediate_size, c.hidden_size),
    ]
    return found + names.experts(i, model, moe)


class _Release:
    """safetensors as MiniMax publishes them; also without the outer `language_model.` of the full model."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        outer = "language_model." if any(n.startswith("language_model.") for n in checkpoint.tensors) else ""
        self._root = f"{outer}model."
        self.embedding = f"{self._root}embed_tokens.weight"
        self.norm = f"{self._root}norm.weight"
        self.head = f"{outer}lm_head.weight"

    @staticmethod
    def norm_factor(weight: Tensor) -> Tensor:
        """Stored norms are offsets from 1."""
        return weight.float() + 1.0

    def ignored(self, name: str) -> bool:
        """Vision and multi-token prediction."""
        return name.startswith((*_OTHER_PARTS, f"{self._root}mtp.", "mtp."))

    def layer_norms(self, i: int) -> tuple[str, str]:
        """Before attention, before the feed-forward part."""
        layer = f"{self._root}layers.{i}."
        return f"{layer}input_layernorm.weight", f"{layer}post_attention_layernorm.weight"

    def attention(self, i: int, part: str) -> str:
        """q, k, v, o, index_q, index_k are projections; the rest are norms."""
        suffix = part if part.endswith("_norm") else f"{part}_proj"
        return f"{self._root}layers.{i}.self_attn.{suffix}.weight"

    def dense(self, i: int) -> tuple[str, str, str]:
        """gate, up, down."""
        mlp = f"{self._root}layers.{i}.mlp."
        return f"{mlp}gate_proj.weight", f"{mlp}up_proj.weight", f"{mlp}down_proj.weight"

    def shared(self, i: int) -> tuple[str, str, str]:
        """gate, up, down."""
        mlp = f"{self._root}layers.{i}.block_sparse_moe.shared_experts."
        return f"{mlp}gate_proj.weight", f"{mlp}up_proj.weight", f"{mlp}down_proj.weight"

    def router(self, i: int) -> tuple[str, str]:
        """Weight and correction bias."""
        moe = f"{self._root}layers.{i}.block_sparse_moe."
        return f"{moe}gate.weight", f"{moe}e_score_correction_bias"

    def experts(self, i: int, model: MiniMaxM3, moe: MixtureOfExperts) -> list[Source]:
        """One tensor for each expert and matrix: w1 gate, w3 up, w2 down."""
        c, found = model.config, []
        for e, expert in enumerate(moe.experts):
            root = f"{self._root}layers.{i}.block_sparse_moe.experts.{e}."
            names = (f"{root}w1.weight", f"{root}w3.weight", f"{root}w2.weight")
            matrices = _mlp(expert, *names, c.expert_intermediate_size, c.hidden_size)  # type: ignore[arg-type]
            found += [
                replace(source, expert=ExpertMatrix(i, e, part))
                for source, part in zip(matrices, ("gate", "up", "down"), strict=True)
            ]
        return found


class _Gguf:
    """GGUF of architecture "minimax-m3": norms already hold 1 + w, experts are stacked."""

    embedding, norm, head = "token_embd.weight", "output_norm.weight", "output.weight"
    norm_factor = None

    @staticmethod
    def ignored(name: str) -> bool:
        """Vision."""
        return name.startswith(_OTHER_PARTS)

    def layer_norms(self, i: int) -> tuple[str, str]:
        """Before attention, before the feed-forward part."""
        return f"blk.{i}.attn_norm.weight", f"blk.{i}.ffn_norm.weight"

    def attention(self, i: int, part: str) -> str:
        """Main projections and norms, and those of the index branch."""
        if part.startswith("index_"):
            inner = part.removeprefix("index_")
            return f"blk.{i}.indexer.{inner if inner.endswith('_norm') else inner + '_proj'}.weight"
        return f"blk.{i}.attn_{'output' if part == 'o' else part}.weight"

    def dense(self, i: int) -> tuple[str, str, str]:
        """gate, up, down."""
        return f"blk.{i}.ffn_gate.weight", f"blk.{i}.ffn_up.weight", f"blk.{i}.ffn_down.weight"

    def shared(self, i: int) -> tuple[str, str, str]:
        """gate, up, down."""
        return f"blk.{i}.ffn_gate_shexp.weight", f"blk.{i}.ffn_up_shexp.weight", f"blk.{i}.ffn_down_shexp.weight"

    def router(self, i: int) -> tuple[str, str]:
        """Weight and correction bias."""
        return f"blk.{i}.ffn_gate_inp.weight", f"blk.{i}.exp_probs_b.bias"

    def experts(self, i: int, model: MiniMaxM3, moe: MixtureOfExperts) -> list[Source]:
        """Three stacks (num_experts, out, in); sorted by stack, so that each is read once."""
        c = model.config
        e, inner, hidden = c.num_experts, c.expert_intermediate_size, c.hidden_size
        stacks = (("gate", (e, inner, hidden)), ("up", (e, inner, hidden)), ("down", (e, hidden, inner)))
        return [
            Source(
                f"blk.{i}.ffn_{part}_exps.weight",
                shape,
                getattr(expert, f"{part}_proj").load,
                select=n,
                matrix=True,
                expert=ExpertMatrix(i, n, part),
            )
            for part, shape in stacks
            for n, expert in enumerate(moe.experts)
        ]
