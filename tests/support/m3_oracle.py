"""What transformers says about a tiny MiniMax-M3: logits, selected blocks, and how close any decision was.

Two implementations that are both right differ by rounding. Where a decision (which block, which expert, which
token) hangs on less than that, they may part ways, and everything after that position differs for good reason.
So the oracle measures, in float64, by how much the closest decision was won, and the tests use prompts whose
decisions all clear the margins below.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

import torch
from packaging.version import Version

SELECTION_MARGIN = 1e-4
"""Least distance between the last block taken and the first one left out, relative to the boundary score.

At position 5000 a rotary angle has been rounded by up to 3e-4 in fp32, so that two correct implementations
(angles formed in fp32 or in fp64) have scores that differ by about 3e-5 of the largest; this is three times that.
"""
ROUTER_MARGIN = 5e-5
"""Least distance between the last expert taken and the first one left out; scores are near 0 to 1."""
TOKEN_MARGIN = 1e-3
"""Least distance between the two largest logits where a token is chosen greedily."""
_CACHE = "cache" if Version(version("transformers")) >= Version("5.24") else "past_key_values"
"""What `generate` calls its cache."""
_QUERY_ROWS = 512  # queries scored at once; bounds the memory of the float64 scores


@dataclass(slots=True)
class LayerTrace:
    """What the indexer of one sparse layer did. All tensors grow with the tokens seen.

    index_keys: float64 (len, index_dim). block_ids: int32 (len, num_index_heads, topk), ascending, -1 tail.
    margins: float64 (len,), the closest call of any head at that position; +inf where nothing was left out.
    """

    index_keys: torch.Tensor
    block_ids: torch.Tensor
    margins: torch.Tensor


@dataclass(slots=True)
class Trace:
    """The decisions of one run, by layer index. router_margins: float64 (len,), by how much an expert won."""

    layers: dict[int, LayerTrace] = field(default_factory=dict)
    router_margins: dict[int, torch.Tensor] = field(default_factory=dict)

    def tight_positions(self, start: int = 0) -> list[int]:
        """Positions from `start` on where some block or expert was chosen by less than its margin."""
        tight = [trace.margins < SELECTION_MARGIN for trace in self.layers.values()]
        tight += [margins < ROUTER_MARGIN for margins in self.router_margins.values()]
        any_tight = torch.stack(tight).any(dim=0)
        return [int(position) for position in any_tight.nonzero()[:, 0] if position >= start]

    def block_ids(self) -> dict[int, torch.Tensor]:
        return {layer: trace.block_ids for layer, trace in self.layers.items()}


@contextmanager
def traced(model: Any, before: Trace | None = None) -> Iterator[Trace]:
    """Within it, every forward pass of `model` (a MiniMaxM3SparseForConditionalGeneration) adds to the trace.

    Passes over a cache append positions; a trace covers one sequence, batch size 1.
    before: the trace of what the cache holds already; it is left as it is.
    """
    trace = Trace() if before is None else Trace(dict(before.layers), dict(before.router_margins))
    with ExitStack() as hooks:
        for layer_index, layer in enumerate(model.model.language_model.layers):
            indexer = layer.self_attn.indexer
            if indexer is not None:
                hook = _selection_hook(trace, layer_index)
                hooks.callback(indexer.register_forward_hook(hook).remove)
            if hasattr(layer.mlp, "gate"):
                hooks.callback(layer.mlp.gate.register_forward_hook(_router_hook(trace, layer_index)).remove)
        yield trace


def _selection_hook(trace: Trace, layer_index: int) -> Any:
    def hook(indexer: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
        hidden, (cos, sin) = inputs[0], inputs[1]
        index_q, index_k = _index_vectors(indexer, hidden[0].double(), cos[0].double(), sin[0].double())
        before = trace.layers.get(layer_index)
        keys = index_k if before is None else torch.cat([before.index_keys, index_k])
        margins = _selection_margins(indexer, index_q, keys)
        block_ids = _ascending(output[0], indexer.topk_blocks)
        if before is not None:
            margins = torch.cat([before.margins, margins])
            block_ids = torch.cat([before.block_ids, block_ids])
        trace.layers[layer_index] = LayerTrace(keys, block_ids, margins)

    return hook


def _index_vectors(
    indexer: Any, hidden: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """index_q (len, num_index_heads, index_dim), index_k (len, index_dim), float64, from the layer's input."""
    length = hidden.shape[0]
    index_q = (hidden @ indexer.q_proj.weight.double().T).view(length, indexer.num_heads, indexer.head_dim)
    index_k = (hidden @ indexer.k_proj.weight.double().T).view(length, 1, indexer.head_dim)
    index_q = _rotate(_norm(index_q, indexer.q_norm), cos[:, None], sin[:, None])
    index_k = _rotate(_norm(index_k, indexer.k_norm), cos[:, None], sin[:, None])
    return index_q, index_k[:, 0]


def _norm(x: torch.Tensor, norm: Any) -> torch.Tensor:
    weight: torch.Tensor = norm.weight.double()
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + norm.eps) * (1.0 + weight)


def _rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    width = cos.shape[-1]
    first, second = x[..., : width // 2], x[..., width // 2 : width]
    turned = x[..., :width] * cos + torch.cat([-second, first], dim=-1) * sin
    return torch.cat([turned, x[..., width:]], dim=-1)


def _selection_margins(indexer: Any, index_q: torch.Tensor, index_k: torch.Tensor) -> torch.Tensor:
    """For each query the smallest relative gap, over the heads, between the last block taken and the next."""
    total_k, block = index_k.shape[0], indexer.block_size
    start = total_k - index_q.shape[0]
    num_blocks = -(-total_k // block)
    key_position = torch.arange(num_blocks * block)
    keys = torch.nn.functional.pad(index_k, (0, 0, 0, num_blocks * block - total_k))
    margins = torch.full((index_q.shape[0],), float("inf"), dtype=torch.float64)
    for row in range(0, index_q.shape[0], _QUERY_ROWS):
        queries = index_q[row : row + _QUERY_ROWS]
        position = start + row + torch.arange(queries.shape[0])
        hidden = key_position[None] > position[:, None]
        scores = torch.einsum("qhd,kd->qhk", queries, keys).masked_fill(hidden[:, None], float("-inf"))
        pooled = scores.view(*scores.shape[:2], num_blocks, block).amax(-1)
        for back in range(indexer.local_blocks):
            local = (position // block - back).clamp(min=0)
            pooled.scatter_(-1, local[:, None, None].expand(-1, pooled.shape[1], 1), float("inf"))
        if num_blocks <= indexer.topk_blocks:
            continue
        ranked = pooled.topk(indexer.topk_blocks + 1, dim=-1).values
        taken, left = ranked[..., -2], ranked[..., -1]
        gap = (taken - left) / taken.abs().clamp(min=1.0)
        # Nothing was left out where the next score is -inf, and nothing was at stake where the last taken is.
        gap = gap.masked_fill(left == float("-inf"), float("inf"))
        margins[row : row + _QUERY_ROWS] = gap.amin(dim=-1)
    return margins


def _ascending(chosen: torch.Tensor, topk: int) -> torch.Tensor:
    """(num_index_heads, len, slots) by score -> int32 (len, num_index_heads, topk), ascending, -1 tail."""
    after_all = torch.iinfo(torch.int32).max
    ids = chosen.permute(1, 0, 2).to(torch.int64)
    ids = ids.masked_fill(ids < 0, after_all).sort(dim=-1).values
    ids = torch.nn.functional.pad(ids, (0, topk - ids.shape[-1]), value=after_all)
    return ids.masked_fill(ids == after_all, -1).to(torch.int32)


def _router_hook(trace: Trace, layer_index: int) -> Any:
    def hook(router: Any, inputs: tuple[torch.Tensor, ...], output: Any) -> None:
        logits = inputs[0].reshape(-1, router.hidden_dim).double() @ router.weight.double().T
        if router.top_k >= router.num_experts:
            margins = torch.full((logits.shape[0],), float("inf"), dtype=torch.float64)
        else:
            scores = logits.sigmoid() + router.e_score_correction_bias.double()
            ranked = scores.topk(router.top_k + 1, dim=-1).values
            margins = ranked[:, -2] - ranked[:, -1]
        before = trace.router_margins.get(layer_index)
        trace.router_margins[layer_index] = margins if before is None else torch.cat([before, margins])

    return hook


@dataclass(frozen=True, slots=True)
class Reference:
    """transformers' answer for one prompt. logits: fp32 (len, vocab); block_ids: by layer, as in `LayerTrace`."""

    tokens: list[int]
    logits: torch.Tensor
    block_ids: dict[int, torch.Tensor]
    tight_positions: list[int]


def run(model: Any, tokens: list[int]) -> Reference:
    """One whole pass over `tokens`, nothing cached."""
    with torch.no_grad(), traced(model) as trace:
        logits = model(input_ids=torch.tensor([tokens]), use_cache=False).logits[0].float()
    return Reference(tokens, logits, trace.block_ids(), trace.tight_positions())


@dataclass(frozen=True, slots=True)
class Continuation:
    """A greedy continuation by transformers' own `generate`, and where a decision was close.

    tight_positions: positions with a close block or expert.
    tight_tokens: steps at which two tokens were close.
    """

    tokens: list[int]
    tight_positions: list[int]
    tight_tokens: list[int]

    @property
    def is_close(self) -> bool:
        return bool(self.tight_positions or self.tight_tokens)


def continue_greedily(
    model: Any, tokens: list[int], count: int, *, known: tuple[Any, Trace] | None = None
) -> Continuation:
    """`count` greedy tokens after `tokens`; end-of-sequence tokens do not end it.

    known: transformers' cache of the first tokens, which is added to, and its trace.
    """
    cache, before = (None, None) if known is None else known
    with torch.no_grad(), traced(model, before) as trace:
        out = model.generate(
            input_ids=torch.tensor([tokens]),
            attention_mask=torch.ones(1, len(tokens), dtype=torch.long),
            **{_CACHE: cache},
            max_new_tokens=count,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
            return_dict_in_generate=True,
            output_logits=True,
        )
    best = torch.stack(out.logits)[:, 0].float().topk(2, dim=-1).values
    close = (best[:, 0] - best[:, 1] < TOKEN_MARGIN).nonzero()[:, 0].tolist()
    return Continuation(out.sequences[0, len(tokens) :].tolist(), trace.tight_positions(), close)
