"""One sparse layer of MiniMax-M3's shape with random contents, in our blocks and flat for the rivals."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial

import torch
import torch.nn.functional as F
from torch import Tensor

from freehold import kernels
from freehold.bench.case import Turns
from freehold.core.blocks import LaneSpec, LayerLanes, Span, Spans
from freehold.core.memory import large_empty

NUM_KV_HEADS, GROUP, HEAD_DIM, INDEX_DIM, BLOCK_TOKENS, TOPK = 4, 16, 128, 128, 128, 16
NUM_Q_HEADS = NUM_KV_HEADS * GROUP
_STEP = 1 << 15


@dataclass(frozen=True, slots=True)
class Reading:
    """What one selection read, and how many of the rows that were compared chose what the reference chooses."""

    stats: kernels.SelectStats
    rows_checked: int
    rows_equal: int


class MsaLayer:
    """`total` tokens of bfloat16 K, V and index keys. A context of n tokens is taken from total // n places in turn,
    so that a short context does not stay in the processor's caches from call to call.

    keys "structured": a block's keys scatter around a centre of the block, and queries of one chunk resemble each
    other, as trained ones do; "random": independent.
    """

    def __init__(self, total: int, *, keys: str, seed: int = 0) -> None:
        self.total, self.keys = total, keys
        self._generator = torch.Generator().manual_seed(seed)
        spec = LaneSpec(NUM_KV_HEADS, HEAD_DIM, INDEX_DIM)
        self.lanes = LayerLanes.allocate(spec, total // BLOCK_TOKENS, BLOCK_TOKENS, torch.bfloat16)
        self.k, self.v = (large_empty(NUM_KV_HEADS, total, HEAD_DIM, dtype=torch.bfloat16) for _ in range(2))
        slots = range(total // BLOCK_TOKENS)
        for start in range(0, total, _STEP):
            count = min(_STEP, total - start)
            k, v = (self._random(count, NUM_KV_HEADS, HEAD_DIM) for _ in range(2))
            index_k = self._random(count, INDEX_DIM)
            if keys == "structured":
                centres = self._random(count // BLOCK_TOKENS, 1, INDEX_DIM).expand(-1, BLOCK_TOKENS, -1)
                index_k = 0.7 * index_k + 0.7 * centres.reshape(count, INDEX_DIM)
            kernels.write(self.lanes, Spans.pack([Span(start, count, slots)], BLOCK_TOKENS), k, v, index_k)
            self.k[:, start : start + count] = k.transpose(0, 1)
            self.v[:, start : start + count] = v.transpose(0, 1)

    @cached_property
    def _flat(self) -> dict[torch.dtype, tuple[Tensor, Tensor]]:
        """K and V for the rivals, in the types that torch may be fastest with: processors without instructions for
        bfloat16 multiply float32 faster, though it is twice the bytes."""
        return {torch.bfloat16: (self.k, self.v), torch.float32: (self.k.float(), self.v.float())}

    def _random(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self._generator)

    def queries(self, rows: int) -> tuple[Tensor, Tensor]:
        """q (rows, NUM_Q_HEADS, HEAD_DIM) in bfloat16 values, index_q (rows, NUM_KV_HEADS, INDEX_DIM); float32."""
        q = self._random(rows, NUM_Q_HEADS, HEAD_DIM).bfloat16().float()
        index_q = self._random(rows, NUM_KV_HEADS, INDEX_DIM)
        if self.keys == "structured":
            index_q = 0.3 * index_q + self._random(1, NUM_KV_HEADS, INDEX_DIM)
        return q, index_q

    def places(self, context: int) -> list[int]:
        """First tokens of the places where a context of that many tokens lies."""
        return [place * context for place in range(self.total // context)]

    def spans(self, context: int, rows: int) -> list[Spans]:
        """The last `rows` positions of the context, at each place."""
        return [
            Spans.pack(
                [Span(context - rows, rows, range(at // BLOCK_TOKENS, (at + context) // BLOCK_TOKENS))], BLOCK_TOKENS
            )
            for at in self.places(context)
        ]

    def sparse(self, context: int, rows: int) -> Callable[[], Tensor]:
        """Selection and attention of `rows` queries at the end of the context: what a sparse layer does."""
        (q, index_q), spans = self.queries(rows), self.spans(context, rows)
        turn = Turns(len(spans))

        def run() -> Tensor:
            where = spans[turn()]
            return kernels.sparse(q, index_q, self.lanes, where, topk=TOPK, scale=HEAD_DIM**-0.5)[0]

        return run

    def dense(self, context: int, rows: int) -> Callable[[], Tensor]:
        """Our own dense attention of the same queries."""
        (q, _), spans = self.queries(rows), self.spans(context, rows)
        turn = Turns(len(spans))
        return lambda: kernels.attend(q, self.lanes, spans[turn()], block_ids=None, scale=HEAD_DIM**-0.5)

    def sparse_whole(self, context: int, chunk: int) -> Callable[[], Tensor]:
        """A whole prompt of `context` tokens, in chunks: what a sparse layer does from the first token on."""
        q, index_q = self.queries(context)
        slots = range(context // BLOCK_TOKENS)
        chunks = [
            (first, Spans.pack([Span(first, chunk, slots[: (first + chunk) // BLOCK_TOKENS])], BLOCK_TOKENS))
            for first in range(0, context, chunk)
        ]

        def run() -> Tensor:
            for first, where in chunks:
                part = slice(first, first + chunk)
                out, _ = kernels.sparse(q[part], index_q[part], self.lanes, where, topk=TOPK, scale=HEAD_DIM**-0.5)
            return out

        return run

    def torch_whole(self, context: int) -> dict[str, Callable[[], object]]:
        """torch's ways over a whole prompt: dense causal attention; up to 4,096 tokens also the dense product under
        a block mask, which is how transformers runs sparse layers on a CPU."""
        q, _ = self.queries(context)
        ways: dict[str, Callable[[], object]] = {}
        for dtype, flat in self._flat.items():
            queries = q.to(dtype).transpose(0, 1)[None].contiguous()
            k, v = (t[None, :, :context].repeat_interleave(GROUP, dim=1) for t in flat)
            ways[f"SDPA, causal, {_short(dtype)}"] = partial(_sdpa, queries, k, v, is_causal=True)
            if context <= 4096:
                mask = torch.zeros(1, NUM_Q_HEADS, context, context, dtype=dtype)
                mask.masked_fill_(torch.ones(context, context, dtype=torch.bool).triu(1), torch.finfo(dtype).min)
                ways[f"block mask, {_short(dtype)}"] = partial(_sdpa, queries, k, v, attn_mask=mask)
        return ways

    def torch_dense(self, context: int, rows: int) -> dict[str, Callable[[], object]]:
        """torch's ways to dense attention of the same queries. The group's queries are rows of one head.

        Where there are several queries they are spared the causal mask inside the last rows: it would only slow
        them, and the few pairs it would save do not count here.
        """
        q, _ = self.queries(rows)
        by_group = q.view(rows, NUM_KV_HEADS, GROUP, HEAD_DIM).permute(1, 2, 0, 3)
        places = self.places(context)
        ways: dict[str, Callable[[], object]] = {}
        for dtype, flat in self._flat.items():
            folded = by_group.reshape(NUM_KV_HEADS, GROUP * rows, HEAD_DIM).to(dtype)
            pieces = [tuple(t[:, at : at + context] for t in flat) for at in places]
            ways[f"SDPA, folded, {_short(dtype)}"] = _in_turn(_folded_sdpa, folded, pieces)
            if rows == 1:
                ways[f"plain products, {_short(dtype)}"] = _in_turn(_products, folded, pieces)
        return ways

    def read(self, context: int, rows: int, check_rows: int) -> Reading:
        """One selection: what it read, and whether `check_rows` of its rows agree with the reference."""
        from freehold.attention.impl import reference

        _, index_q = self.queries(rows)
        where = self.spans(context, rows)[0]
        block_ids, stats = kernels.select_with_stats(index_q, self.lanes, where, topk=TOPK)
        index = self.lanes.index
        assert index is not None
        flat = index.keys[: context // BLOCK_TOKENS].flatten(0, 1)
        checked = min(check_rows, rows)
        wanted = reference.select_blocks(
            index_q[rows - checked :],
            flat,
            query_start=context - checked,
            block_tokens=BLOCK_TOKENS,
            topk=TOPK,
            local_blocks=1,
            init_blocks=0,
        )
        same = (wanted == block_ids[rows - checked :]).all(dim=-1)
        return Reading(stats, same.numel(), int(same.sum()))


_sdpa = F.scaled_dot_product_attention


def _folded_sdpa(folded: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return _sdpa(folded[None], k[None], v[None])


def _products(folded: Tensor, k: Tensor, v: Tensor) -> Tensor:
    weights: Tensor = (folded @ k.transpose(1, 2) * HEAD_DIM**-0.5).softmax(dim=-1)
    return weights @ v


def _in_turn(
    way: Callable[[Tensor, Tensor, Tensor], Tensor], folded: Tensor, pieces: list[tuple[Tensor, ...]]
) -> Callable[[], object]:
    turn = Turns(len(pieces))

    def run() -> object:
        k, v = pieces[turn()]
        return way(folded, k, v)

    return run


def _short(dtype: torch.dtype) -> str:
    return "bf16" if dtype == torch.bfloat16 else "fp32"
