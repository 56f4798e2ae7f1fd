"""The text part of MiniMax-M3: sparse attention chosen by an index branch, and a mixture of experts.

Read from the top: attention, feed-forward, layer, model, names. The configuration stands in
`minimax_m3_config.py`, the operators in `freehold.attention`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from freehold.core.blocks import LaneSpec, LayerLanes, Spans
from freehold.core.errors import ConfigError
from freehold.core.visuals import Overlay
from freehold.kernels import FusedLayerParts, Gate
from freehold.loading.checkpoint import Checkpoint
from freehold.model.base import BlockObserver
from freehold.model.compute import Compute
from freehold.model.fusion import Fusion, index_parts
from freehold.model.index_branch import IndexBranch, IndexSizes
from freehold.model.layers import Embedding, GatedMLP, Linear, RMSNorm
from freehold.model.minimax_m3_config import MiniMaxM3Config
from freehold.model.minimax_m3_names import sources
from freehold.model.rope import make_rope
from freehold.model.streamed_experts import ExpertCache, ExpertLoading, StreamedExperts
from freehold.model.weights import Source, load_weights


class Attention(nn.Module):
    """Grouped-query attention with per-head norms; sparse layers read only the blocks their index branch picks."""

    def __init__(self, config: MiniMaxM3Config, compute: Compute, *, sparse: bool) -> None:
        super().__init__()
        self.config, self.compute = config, compute
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (Linear(compute) for _ in range(4))
        self.q_norm, self.k_norm = RMSNorm(compute, config.rms_norm_eps), RMSNorm(compute, config.rms_norm_eps)
        self.index = IndexBranch(index_sizes(config), compute, norm_eps=config.rms_norm_eps) if sparse else None

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, spans: Spans, lanes: LayerLanes, *, dense: bool
    ) -> tuple[Tensor, Tensor | None]:
        """x (rows, hidden_size) -> the same, and the block ids of a sparse layer."""
        c, rows, attention = self.config, x.shape[0], self.compute.attention
        projections = [self.q_proj, self.k_proj, self.v_proj]
        if self.index is not None:
            projections += [self.index.q_proj, self.index.k_proj]
        q, k, v, *index = self.compute.linears(x, projections)
        q = self.q_norm(q.view(rows, c.num_q_heads, c.head_dim))
        k = self.k_norm(k.view(rows, c.num_kv_heads, c.head_dim))
        v = v.view(rows, c.num_kv_heads, c.head_dim)
        q, k = self.compute.rope(q, cos, sin), self.compute.rope(k, cos, sin)

        scale, block_ids = c.head_dim**-0.5, None
        index_q, index_k = (None, None) if self.index is None else self.index(*index, cos, sin)
        attention.write(lanes, spans, k, v, index_k)
        if index_q is None or dense:
            out = attention.dense(q, lanes, spans, scale=scale)
        else:
            out, block_ids = attention.sparse(
                q, index_q, lanes, spans,
                topk=c.topk, local_blocks=c.local_blocks, init_blocks=c.init_blocks, scale=scale,
            )  # fmt: skip
        return self.o_proj(out.view(rows, c.num_q_heads * c.head_dim)), block_ids


class MixtureOfExperts(nn.Module):
    """Routed experts, weighted and scaled, plus one shared expert."""

    bias: Tensor

    def __init__(self, config: MiniMaxM3Config, compute: Compute) -> None:
        super().__init__()
        self.config, self.compute = config, compute
        self.router = Linear(compute)
        self.gate = _gate(config)
        self.experts = nn.ModuleList(GatedMLP(compute, self.gate) for _ in range(config.num_experts))
        self.shared = GatedMLP(compute, self.gate)
        self.streamed: StreamedExperts | None = None
        """The routed experts where they stay on the disk; `experts` then have no weights."""
        self._networks: Any = None

    def load_bias(self, bias: Tensor) -> None:
        """Takes the correction bias (num_experts,), which selects experts and does not weigh them."""
        self.bias = nn.Parameter(bias.float().clone(), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """x (rows, hidden_size) -> the same. Experts add in ascending order, whatever rows came together."""
        c = self.config
        if self._networks is None:  # the weights are there by now
            networks = self.compute.networks
            routed = self.streamed or networks([cast(GatedMLP, expert).parts for expert in self.experts])
            self._networks = routed, networks([self.shared.parts])
        ids, weights = self.compute.route_sigmoid(self.router(x), self.bias, c.num_experts_per_token)
        return self.compute.experts(x, ids, weights, *self._networks, gate=self.gate, scale=c.routed_scaling_factor)


def index_sizes(c: MiniMaxM3Config) -> IndexSizes:
    """How sparse layers choose blocks."""
    return IndexSizes(c.num_index_heads, c.index_dim, c.block_tokens, c.topk, c.local_blocks, c.init_blocks)


def _gate(config: MiniMaxM3Config) -> Gate:
    return Gate(clamped=True, alpha=config.swiglu_alpha, limit=config.swiglu_limit)


class Layer(nn.Module):
    """h += attention(norm(h)); h += feed_forward(norm(h))."""

    def __init__(self, config: MiniMaxM3Config, compute: Compute, index: int) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(compute, config.rms_norm_eps)
        self.attention = Attention(config, compute, sparse=config.sparse_attention[index])
        self.feed_forward_norm = RMSNorm(compute, config.rms_norm_eps)
        self.feed_forward = MixtureOfExperts(config, compute) if config.moe[index] else GatedMLP(compute, _gate(config))
        self._fusion = Fusion(compute, None if config.moe[index] else self._parts)

    def forward(
        self, h: Tensor, cos: Tensor, sin: Tensor, spans: Spans, lanes: LayerLanes, *, dense: bool
    ) -> tuple[Tensor, Tensor | None]:
        """h (rows, hidden_size), which may be overwritten -> the same, and the block ids of a sparse layer."""
        done = self._fusion.run(h, cos, sin, spans, lanes, dense=dense)
        if done is not None:
            return done
        attended, block_ids = self.attention(self.attention_norm(h), cos, sin, spans, lanes, dense=dense)
        h = h + attended
        return h + self.feed_forward(self.feed_forward_norm(h)), block_ids

    def _parts(self) -> FusedLayerParts:
        a, c = self.attention, self.attention.config
        mlp = cast(GatedMLP, self.feed_forward)
        weights: Any = [linear.weight for linear in (a.q_proj, a.k_proj, a.v_proj, a.o_proj)]
        network: Any = [linear.weight for linear in mlp.parts]
        norms = (self.attention_norm.weight, self.feed_forward_norm.weight, a.q_norm.weight, a.k_norm.weight)
        return FusedLayerParts(
            tuple(weights), tuple(network), norms, c.rms_norm_eps, c.num_q_heads, c.num_kv_heads, c.head_dim, mlp.gate,
            index_parts(a.index),
        )  # fmt: skip


class MiniMaxM3(nn.Module):
    """The whole text model; see `freehold.model.base.Model`.

    allow_dense runs sparse layers densely: another model than the one that was trained, for comparisons only.
    """

    def __init__(self, config: MiniMaxM3Config, compute: Compute, *, allow_dense: bool = False) -> None:
        super().__init__()
        self.config, self.compute, self.dense = config, compute, allow_dense
        self.compute_name = compute.name
        self.vocab_size, self.context_length = config.vocab_size, config.context_length
        self.block_tokens: int | None = config.block_tokens
        self.lane_specs = tuple(
            LaneSpec(config.num_kv_heads, config.head_dim, config.index_dim if sparse else None)
            for sparse in config.sparse_attention
        )
        self.rope = make_rope(config.rotary_dim, config.rope_theta, None, config.context_length)
        self.embedding = Embedding(compute)
        self.layers = nn.ModuleList(Layer(config, compute, i) for i in range(config.num_layers))
        self.norm = RMSNorm(compute, config.rms_norm_eps)
        self.head = self.embedding if config.tie_embeddings else Linear(compute)
        self.expert_cache: ExpertCache | None = None

    @torch.no_grad()
    def forward(
        self,
        token_ids: Tensor,
        spans: Spans,
        lanes: Sequence[LayerLanes],
        *,
        logit_rows: Tensor,
        observer: BlockObserver | None = None,
        overlay: Overlay | None = None,
    ) -> Tensor:
        """See `SeeingModel.forward`."""
        h = self.embedding.lookup(token_ids)
        if overlay is not None:
            h[overlay.rows] = overlay.features
        cos, sin = self.compute.rope_table(spans.positions, self.rope.inv_freq, self.rope.scale)
        for i, (layer, layer_lanes) in enumerate(zip(self.layers, lanes, strict=True)):
            h, block_ids = layer(h, cos, sin, spans, layer_lanes, dense=self.dense)
            if observer is not None and block_ids is not None:
                observer(i, block_ids)
        return self.head(self.norm(h[logit_rows]))  # type: ignore[no-any-return]

    @staticmethod
    def from_checkpoint(
        checkpoint: Checkpoint, compute: Compute, *, allow_dense: bool = False, expert_budget: int | None = None
    ) -> MiniMaxM3:
        """Builds and fills the model. expert_budget: bytes of memory for routed experts, which then stay on the disk;
        None: all are in memory. Raises ConfigError or TensorMismatchError."""
        model = MiniMaxM3.empty(checkpoint, compute, allow_dense=allow_dense)
        wanted, ignored = model.sources(checkpoint)
        if expert_budget is None:
            load_weights(checkpoint, wanted, ignored=ignored)
        elif not any(model.config.moe):
            raise ConfigError(f"expert_budget is {expert_budget}; {checkpoint.path} has no experts. Leave it out")
        else:
            with ExpertLoading(checkpoint, compute, model.config.num_experts, expert_budget) as loading:
                load_weights(checkpoint, loading.divert(wanted), ignored=ignored)
                model._stream(loading.cache())
        return model

    def _stream(self, cache: ExpertCache) -> None:
        self.expert_cache = cache
        for i, layer in enumerate(self.layers):
            if self.config.moe[i]:
                layer.feed_forward.streamed = StreamedExperts(cache, i, self.config.hidden_size)  # type: ignore[union-attr]

    @staticmethod
    def empty(checkpoint: Checkpoint, compute: Compute, *, allow_dense: bool = False) -> MiniMaxM3:
        """The model without its weights. Raises ConfigError."""
        where = str(checkpoint.path)
        if checkpoint.format == "gguf":
            config = MiniMaxM3Config.from_gguf(checkpoint.config, where)
        else:
            config = MiniMaxM3Config.from_hf(checkpoint.config, f"{where}/config.json")
        return MiniMaxM3(config, compute, allow_dense=allow_dense)

    def sources(self, checkpoint: Checkpoint) -> tuple[list[Source], Callable[[str], bool]]:
        """Every weight of the model and where it comes from; and which unused names are known."""
        return sources(self, checkpoint)
