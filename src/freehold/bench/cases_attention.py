"""Kernels of attention: dense and sparse over blocks, and the selection of blocks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from freehold import kernels
from freehold.bench.case import Case, Turns, copies_for
from freehold.core.blocks import LaneSpec, LayerLanes, Span, Spans

BLOCK_TOKENS, TOPK, INDEX_DIM = 128, 16, 128

# With bfloat16 K and V, torch wants bfloat16 queries and rounds the probabilities too.
_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 5e-2}
_DTYPE_TEXT = {torch.float32: "float32", torch.bfloat16: "bfloat16 K, V"}


@dataclass(frozen=True, slots=True)
class AttentionShape:
    """`rows` queries at the end of `depth` tokens: one while decoding, a chunk while a prompt is read."""

    name: str
    num_q_heads: int
    num_kv_heads: int
    head_dim: int
    rows: int
    depth: int
    dtype: torch.dtype = torch.float32

    @property
    def visible(self) -> int:
        """Pairs of a query and a key that it may see."""
        start = self.depth - self.rows
        return sum(range(start + 1, self.depth + 1))

    @property
    def text(self) -> str:
        """For the table."""
        heads = f"{self.num_q_heads}/{self.num_kv_heads} heads of {self.head_dim}"
        return f"{self.rows} at depth {self.depth}, {heads}"


SMOLLM2 = AttentionShape("SmolLM2", 9, 3, 64, rows=1, depth=8192)
M3 = AttentionShape("M3", 64, 4, 128, rows=1, depth=8192)


def attention_cases(*, cold_nbytes: int, quick: bool) -> Iterator[Case]:
    """Dense decoding and prefill, sparse decoding, and selection. A case's tensors live until the next is asked for."""
    short, long, chunk = (1024, 4096, 64) if quick else (8192, 32768, 512)
    for dtype in (torch.float32, torch.bfloat16):
        yield _dense(replace(SMOLLM2, depth=short, dtype=dtype), cold_nbytes)
        yield _dense(replace(M3, depth=long, dtype=dtype), cold_nbytes)
        yield _sparse(replace(M3, depth=long, dtype=dtype), cold_nbytes)
    yield _dense(replace(SMOLLM2, rows=chunk, depth=short // 2), 0)
    yield _dense(replace(M3, rows=chunk // 4, depth=short // 2), 0)
    yield _select(1, long, cold_nbytes)
    yield _select(chunk // 4, long, 0)


class _Stored:
    """Random K and V of one layer, `copies` times: in blocks for us, and (num_kv_heads, depth, head_dim) for torch."""

    def __init__(self, shape: AttentionShape, cold_nbytes: int) -> None:
        generator = torch.Generator().manual_seed(3)
        s = shape
        self.nbytes = 2 * s.depth * s.num_kv_heads * s.head_dim * s.dtype.itemsize
        self.copies = copies_for(self.nbytes, cold_nbytes)
        blocks = s.depth // BLOCK_TOKENS
        k, v = (torch.randn(s.depth, s.num_kv_heads, s.head_dim, generator=generator) for _ in range(2))
        spec = LaneSpec(s.num_kv_heads, s.head_dim)
        self.lanes = LayerLanes.allocate(spec, self.copies * blocks, BLOCK_TOKENS, s.dtype)
        self.spans = []
        for copy in range(self.copies):
            slots = range(copy * blocks, (copy + 1) * blocks)
            kernels.write(self.lanes, Spans.pack([Span(0, s.depth, slots)], BLOCK_TOKENS), k, v)
            self.spans.append(Spans.pack([Span(s.depth - s.rows, s.rows, slots)], BLOCK_TOKENS))
        self.k = [k.transpose(0, 1).to(s.dtype).contiguous() for _ in range(self.copies)]
        self.v = [v.transpose(0, 1).to(s.dtype).contiguous() for _ in range(self.copies)]
        self.q = torch.randn(s.rows, s.num_q_heads, s.head_dim, generator=generator)


class _Sdpa:
    """torch's scaled_dot_product_attention, in the layouts that its CPU kernel may like best.

    keys, values: each (num_kv_heads, total_k, head_dim), taken in turn. Several queries see what is causal.
    """

    def __init__(self, q: Tensor, keys: list[Tensor], values: list[Tensor]) -> None:
        rows, num_q_heads, head_dim = q.shape
        num_kv_heads, total_k, _ = keys[0].shape
        group = num_q_heads // num_kv_heads
        self.keys, self.values, self.rows = keys, values, rows
        q = q.to(keys[0].dtype)
        self.q = q.transpose(0, 1)[None].contiguous()  # (1, num_q_heads, rows, head_dim)
        by_group = q.view(rows, num_kv_heads, group, head_dim).permute(1, 2, 0, 3)
        self.folded = by_group.reshape(1, num_kv_heads, group * rows, head_dim).contiguous()
        self.mask: Tensor | None = None
        if rows > 1:
            self.mask = torch.arange(total_k) <= torch.arange(total_k - rows, total_k)[:, None]
        self.folded_mask = None if self.mask is None else self.mask.repeat(group, 1)

    def ways(self) -> dict[str, Callable[[], Tensor]]:
        """Name -> what computes it. The group's queries are rows of one head, or heads share K and V."""
        # Each takes the copies in its own turn, from the first on.
        folded, grouped = Turns(len(self.keys)), Turns(len(self.keys))
        return {
            "SDPA, folded": lambda: self._group_folded(folded()),
            "SDPA, gqa": lambda: self._grouped(grouped()),
        }

    def _group_folded(self, copy: int) -> Tensor:
        k, v = self.keys[copy][None], self.values[copy][None]
        out = F.scaled_dot_product_attention(self.folded, k, v, attn_mask=self.folded_mask)
        return out.reshape(-1, self.rows, out.shape[-1]).transpose(0, 1)

    def _grouped(self, copy: int) -> Tensor:
        k, v = self.keys[copy][None], self.values[copy][None]
        return F.scaled_dot_product_attention(self.q, k, v, attn_mask=self.mask, enable_gqa=True)[0].transpose(0, 1)


def _dense(shape: AttentionShape, cold_nbytes: int) -> Case:
    stored, s = _Stored(shape, cold_nbytes), shape
    turns, scale = Turns(stored.copies), s.head_dim**-0.5
    return Case(
        name=f"attend dense, {s.name}",
        shape=s.text,
        dtype=_DTYPE_TEXT[s.dtype],
        flops=4.0 * s.num_q_heads * s.head_dim * s.visible,
        nbytes=stored.nbytes if s.rows == 1 else 0.0,
        ours=lambda: kernels.attend(stored.q, stored.lanes, stored.spans[turns()], block_ids=None, scale=scale),
        rivals=_Sdpa(stored.q, stored.k, stored.v).ways(),
        peak=s.dtype,
        tolerance=_TOLERANCE[s.dtype],
    )


def _sparse(shape: AttentionShape, cold_nbytes: int) -> Case:
    """One query and TOPK blocks for each KV head, others in each turn until all were read. The rival's blocks were
    gathered for it beforehand."""
    stored, s = _Stored(shape, cold_nbytes), shape
    generator = torch.Generator().manual_seed(4)
    blocks, scale = s.depth // BLOCK_TOKENS, s.head_dim**-0.5
    orders = torch.stack([torch.randperm(blocks, generator=generator) for _ in range(s.num_kv_heads)])
    choices = [part.sort(dim=1).values for part in torch.split(orders, TOPK, dim=1)]  # each (num_kv_heads, TOPK)
    block_ids = [choice[None].to(torch.int32).contiguous() for choice in choices]
    turns = Turns(stored.copies * len(choices))

    def ours() -> Tensor:
        copy, choice = divmod(turns(), len(choices))
        return kernels.attend(stored.q, stored.lanes, stored.spans[copy], block_ids=block_ids[choice], scale=scale)

    keys = [_gather(k, choice) for k in stored.k for choice in choices]
    values = [_gather(v, choice) for v in stored.v for choice in choices]
    return Case(
        name=f"attend sparse, {s.name}",
        shape=f"{s.text}, {TOPK} blocks",
        dtype=_DTYPE_TEXT[s.dtype],
        flops=4.0 * s.num_q_heads * s.head_dim * TOPK * BLOCK_TOKENS,
        nbytes=stored.nbytes * TOPK / blocks,
        ours=ours,
        rivals={f"{name}, gathered": way for name, way in _Sdpa(stored.q, keys, values).ways().items()},
        peak=s.dtype,
        tolerance=_TOLERANCE[s.dtype],
    )


def _gather(x: Tensor, choice: Tensor) -> Tensor:
    """x (num_kv_heads, depth, head_dim), choice (num_kv_heads, topk) -> the chosen blocks' tokens, like x."""
    tokens = (choice[:, :, None] * BLOCK_TOKENS + torch.arange(BLOCK_TOKENS)).flatten(1)
    return x.gather(1, tokens[:, :, None].expand(-1, -1, x.shape[2]))


def _select(rows: int, depth: int, cold_nbytes: int) -> Case:
    """Selection with M3's index branch: one head of INDEX_DIM for each KV head, all on the same index keys."""
    generator = torch.Generator().manual_seed(5)
    nbytes, blocks, heads = depth * INDEX_DIM * 4, depth // BLOCK_TOKENS, M3.num_kv_heads
    copies = copies_for(nbytes, cold_nbytes)
    index_q = torch.randn(rows, heads, INDEX_DIM, generator=generator)
    index_k = torch.randn(depth, INDEX_DIM, generator=generator)
    lanes = LayerLanes.allocate(LaneSpec(1, 16, INDEX_DIM), copies * blocks, BLOCK_TOKENS, torch.float32)
    nothing = torch.zeros(depth, 1, 16)
    spans = []
    for copy in range(copies):
        slots = range(copy * blocks, (copy + 1) * blocks)
        whole = Spans.pack([Span(0, depth, slots)], BLOCK_TOKENS)
        kernels.write(lanes, whole, nothing, nothing, index_k)
        spans.append(Spans.pack([Span(depth - rows, rows, slots)], BLOCK_TOKENS))
    plain = [index_k.clone() for _ in range(copies)]
    positions = torch.arange(depth - rows, depth)
    future = torch.arange(depth) > positions[:, None]
    local = positions // BLOCK_TOKENS
    ours, theirs = Turns(copies), Turns(copies)

    def by_torch() -> Tensor:
        scores = index_q.view(rows * heads, INDEX_DIM) @ plain[theirs()].T
        if rows > 1:
            scores = scores.view(rows, heads, depth).masked_fill_(future[:, None], -torch.inf)
        best = scores.view(rows, heads, blocks, BLOCK_TOKENS).amax(dim=-1)
        best.scatter_(2, local[:, None, None].expand(-1, heads, 1), torch.inf)
        return best.topk(TOPK, dim=-1).indices.sort(dim=-1).values.to(torch.int32)

    return Case(
        name="select, M3",
        shape=f"{rows} at depth {depth}, {heads} heads of {INDEX_DIM}",
        dtype="float32",
        flops=2.0 * heads * INDEX_DIM * float((positions + 1).sum()),
        nbytes=nbytes if rows == 1 else 0.0,
        ours=lambda: kernels.select(index_q, lanes, spans[ours()], topk=TOPK),
        rivals={"matmul, amax, topk": by_torch},
        tolerance=1e-2,  # a near tie falls otherwise in float32 sums of another order, and shifts the ids after it
    )
