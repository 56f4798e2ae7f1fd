"""MiniMax-M3 as a function of its weights, with gradients: what `freehold.model.minimax_m3` computes, over whole
documents instead of a cache, and the losses of training (paper Eq. 9 to 12)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from freehold.attention import attend_blocks, dense_attention, index_kl_loss, select_blocks
from freehold.kernels import Gate
from freehold.model.compute import Network, ReferenceCompute
from freehold.model.minimax_m3_config import MiniMaxM3Config
from freehold.model.rope import make_rope
from freehold.training.looking import looking_loss
from freehold.training.m3_weights import Weights
from freehold.training.short_documents import MOST_TOKENS, attend_together, index_kl_together

NO_TARGET = -1


@dataclass(frozen=True, slots=True)
class Batch:
    """Documents one after another. token_ids, targets int64 (tokens,): what comes next, or NO_TARGET where nothing is
    to be learnt. documents: (begin, end) of each, ascending; none sees another. sources int64 (2, tokens): where each
    should look in the first layer, and in the last, as `looking_loss` takes it; None if that is not known. shares: by
    which the means over targets, over the first sources and over the last are multiplied: more than 1 in a process that
    has more of them than others."""

    token_ids: Tensor
    targets: Tensor
    documents: tuple[tuple[int, int], ...]
    sources: Tensor | None = None
    shares: tuple[float, float, float] = (1.0, 1.0, 1.0)


@dataclass(frozen=True, slots=True)
class Losses:
    """language: mean negative log-likelihood of the targets, in nats. exits: the same if the model ended after an
    earlier layer, the sum over these; 0 if it was not asked for. looking: `looking_loss` of the first layer and the
    last, their sum; 0 if it was not asked for, or no source is known. index: KL(attention || index), the mean over
    queries and groups, summed over sparse layers. loads: tokens that each expert got, (num_experts,) for each layer
    that has some, by its number."""

    language: Tensor
    exits: Tensor
    looking: Tensor
    index: Tensor
    loads: dict[int, Tensor]


@dataclass(slots=True)
class _Pass:
    """What one pass gives. exits: what the head reads after each layer (tokens, hidden_size). attention: queries and
    keys of each layer, (tokens, heads, dim). The rest: see `Losses`."""

    exits: list[Tensor]
    attention: list[tuple[Tensor, Tensor]]
    index: Tensor
    loads: dict[int, Tensor]


Branch = tuple[Tensor, Tensor]
"""Queries and keys of an index branch."""


class _Linear:
    """A projection that `ReferenceCompute` can call."""

    def __init__(self, weight: Tensor) -> None:
        self.weight = weight

    def __call__(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight)


class M3Forward:
    """The model of a configuration. sparse=False in a call is the warm-up: attention is dense, and index branches
    learn from every key; afterwards both see the chosen blocks alone."""

    def __init__(self, config: MiniMaxM3Config) -> None:
        self.config = config
        self._compute = ReferenceCompute()
        self._rope = make_rope(config.rotary_dim, config.rope_theta, None, config.context_length)
        self._gate = Gate(clamped=True, alpha=config.swiglu_alpha, limit=config.swiglu_limit)

    def losses(
        self, weights: Weights, batch: Batch, *, sparse: bool, exits: bool = False, looking: bool = False
    ) -> Losses:
        """What training minimises, and how the experts were used."""
        done = self._layers(weights, batch, sparse)
        learnt, zero = batch.targets != NO_TARGET, done.index.new_zeros(())
        read = done.exits if exits else done.exits[-1:]
        share, *looked = batch.shares
        each = [zero] * len(read)
        if bool(learnt.any()):
            each = [F.cross_entropy(self._logits(weights, h[learnt]), batch.targets[learnt]) * share for h in read]
        looks = zero
        if looking and batch.sources is not None:
            for sources, layer, part in zip(batch.sources, (0, -1), looked, strict=True):
                looks = looks + looking_loss(*done.attention[layer], sources, batch.documents) * part
        return Losses(each[-1], sum(each[:-1], zero), looks, done.index, done.loads)

    def logits(self, weights: Weights, batch: Batch, *, sparse: bool) -> Tensor:
        """(tokens, vocab_size)."""
        return self._logits(weights, self._layers(weights, batch, sparse).exits[-1])

    def _layers(self, w: Weights, batch: Batch, sparse: bool) -> _Pass:
        c = self.config
        h = F.embedding(batch.token_ids, w["model.embed_tokens.weight"])
        positions = torch.cat([torch.arange(end - begin) for begin, end in batch.documents])
        cos, sin = self._compute.rope_table(positions, self._rope.inv_freq, self._rope.scale)
        done = _Pass([], [], h.new_zeros(()), {})
        for i in range(c.num_layers):
            root = f"model.layers.{i}."
            x = self._norm(h, w[f"{root}input_layernorm.weight"])
            attended, queries_keys, loss = self._attention(
                w, f"{root}self_attn.", i, x, cos, sin, batch.documents, sparse
            )
            done.attention.append(queries_keys)
            h, done.index = h + attended, done.index + loss
            x = self._norm(h, w[f"{root}post_attention_layernorm.weight"])
            if c.moe[i]:
                out, done.loads[i] = self._experts(w, f"{root}block_sparse_moe.", x)
            else:
                out = self._compute.gated_mlp(x, [_network(w, f"{root}mlp.")], self._gate)
            h = h + out
            done.exits.append(self._norm(h, w["model.norm.weight"]))
        return done

    def _logits(self, w: Weights, hidden: Tensor) -> Tensor:
        tied = self.config.tie_embeddings
        return F.linear(hidden, w["model.embed_tokens.weight" if tied else "lm_head.weight"])

    def _norm(self, x: Tensor, weight: Tensor) -> Tensor:
        return self._compute.rms_norm(x, 1 + weight, self.config.rms_norm_eps)

    def _heads(self, w: Weights, root: str, name: str, x: Tensor, heads: int, cos: Tensor, sin: Tensor) -> Tensor:
        """Projected, split into heads, normalised and turned: (tokens, heads, dim)."""
        y = F.linear(x, w[f"{root}{name}_proj.weight"]).view(len(x), heads, -1)
        return self._compute.rope(self._norm(y, w[f"{root}{name}_norm.weight"]), cos, sin)

    def _attention(
        self,
        w: Weights,
        root: str,
        layer: int,
        x: Tensor,
        cos: Tensor,
        sin: Tensor,
        documents: Sequence[tuple[int, int]],
        sparse: bool,
    ) -> tuple[Tensor, tuple[Tensor, Tensor], Tensor]:
        """x (tokens, hidden_size) -> the same; queries and keys; the index branch's loss (0 for a dense layer)."""
        c = self.config
        q = self._heads(w, root, "q", x, c.num_q_heads, cos, sin)
        k = self._heads(w, root, "k", x, c.num_kv_heads, cos, sin)
        v = F.linear(x, w[f"{root}v_proj.weight"]).view(len(x), c.num_kv_heads, c.head_dim)
        index: Branch | None = None
        if c.sparse_attention[layer]:
            seen = x.detach()  # the branch must not teach the model to be easy to index (paper B.3)
            index_q = self._heads(w, root, "index_q", seen, c.num_index_heads, cos, sin)
            index = index_q, self._heads(w, root, "index_k", seen, 1, cos, sin)[:, 0]
        pieces, order, loss = [], [], x.new_zeros(())
        for places in _by_length(documents):
            together = places.shape[1] <= MOST_TOKENS and (not sparse or places.shape[1] <= c.topk * c.block_tokens)
            for some in (places,) if together else places[:, None]:
                branch = None if index is None else (index[0][some], index[1][some])
                out, one = (_together if together else self._alone(sparse))(q[some], k[some], v[some], branch)
                pieces.append(out.reshape(some.numel(), -1))
                order.append(some.flatten())
                loss = loss + one * (some.numel() / len(x))
        out = torch.cat(pieces)[torch.cat(order).argsort()]
        return F.linear(out, w[f"{root}o_proj.weight"]), (q, k), loss

    def _alone(self, sparse: bool) -> Callable[..., tuple[Tensor, Tensor]]:
        """Takes one document as `_together` takes several."""

        def attend(q: Tensor, k: Tensor, v: Tensor, index: Branch | None) -> tuple[Tensor, Tensor]:
            branch = None if index is None else (index[0][0], index[1][0])
            return self._document(q[0], k[0], v[0], branch, sparse)

        return attend

    def _document(self, q: Tensor, k: Tensor, v: Tensor, index: Branch | None, sparse: bool) -> tuple[Tensor, Tensor]:
        """Attention within one document, and the index branch's loss there."""
        c = self.config
        if index is None or not sparse:
            out = dense_attention(q, k, v, query_start=0)
            return out, q.new_zeros(()) if index is None else index_kl_loss(q, k, *index)
        block_ids = select_blocks(
            index[0].detach(), index[1].detach(), query_start=0, block_tokens=c.block_tokens, topk=c.topk,
            local_blocks=c.local_blocks, init_blocks=c.init_blocks,
        )  # fmt: skip
        out = attend_blocks(q, k, v, block_ids, query_start=0, block_tokens=c.block_tokens)
        return out, index_kl_loss(q, k, *index, block_ids=block_ids, block_tokens=c.block_tokens)

    def _experts(self, w: Weights, root: str, x: Tensor) -> tuple[Tensor, Tensor]:
        c = self.config
        logits = F.linear(x, w[f"{root}gate.weight"])
        bias = w[f"{root}e_score_correction_bias"].detach()
        ids, shares = self._compute.route_sigmoid(logits, bias, c.num_experts_per_token)
        routed = [_network(w, f"{root}experts.{e}.", ("w1", "w3", "w2")) for e in range(c.num_experts)]
        shared = [_network(w, f"{root}shared_experts.")]
        scale = c.routed_scaling_factor
        out = self._compute.experts(x, ids.long(), shares, routed, shared, gate=self._gate, scale=scale)
        return out, torch.bincount(ids.flatten().long(), minlength=c.num_experts)


def _network(w: Weights, root: str, names: tuple[str, str, str] = ("gate_proj", "up_proj", "down_proj")) -> Network:
    gate, up, down = (_Linear(w[f"{root}{name}.weight"]) for name in names)
    return gate, up, down


def _by_length(documents: Sequence[tuple[int, int]]) -> Iterator[Tensor]:
    """Places of the tokens of all documents of one length (documents, tokens), for each length."""
    lengths: dict[int, list[int]] = {}
    for begin, end in documents:
        lengths.setdefault(end - begin, []).append(begin)
    for length, begins in lengths.items():
        yield torch.tensor(begins)[:, None] + torch.arange(length)


def _together(q: Tensor, k: Tensor, v: Tensor, index: Branch | None) -> tuple[Tensor, Tensor]:
    """Attention within each of several documents that see all of themselves, and the index branch's loss there."""
    out = attend_together(q, k, v)
    return out, q.new_zeros(()) if index is None else index_kl_together(q, k, *index)
