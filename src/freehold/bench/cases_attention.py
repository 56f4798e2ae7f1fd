"""Kernels of attention: dense and sparse over blocks, and the selection of blocks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from freehold import kernels
from freehold.bench.case import Case, Turns, copies_for
from freehold.core.blocks import LaneSpec, LayerLanes, Span, Spans

BLOCK_TOKENS, TOPK = 128, 16


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
    short, long = (1024, 4096) if quick else (8192, 32768)
    chunk = 64 if quick else 512
    for dtype in (torch.float32, torch.bfloat16):
        yield _dense(replace(SMOLLM2, depth=short, dtype=dtype), cold_nbytes)
        yield _dense(replace(M3, depth=short, dtype=dtype), cold_nbytes)
    yield _dense(replace(SMOLLM2, rows=chunk, depth=short // 2), 0)
    yield _dense(replace(M3, rows=chunk // 4, depth=short // 2), 0)
    yield _sparse(replace(M3, depth=long), cold_nbytes)
    yield _select(1, long, cold_nbytes)
    yield _select(chunk // 4, long, 0)


class _Stored:
    """Random K and V of one layer, `copies` times: in blocks for us, and (num_kv_heads, depth, head_dim) for torch."""

    def __init__(self, shape: AttentionShape, cold_nbytes: int) -> None:
        generator = torch.Generator().manual_seed(3)
        s = shape
        self.nbytes = 2 * s.depth * s.num_kv_heads * s.head_dim * s.dtype.itemsize
        copies = copies_for(self.nbytes, cold_nbytes)
        blocks = -(-s.depth // BLOCK_TOKENS)
        k, v = (torch.randn(s.depth, s.num_kv_heads, s.head_dim, generator=generator) for _ in range(2))
        spec = LaneSpec(s.num_kv_heads, s.head_dim)
        self.lanes = LayerLanes.allocate(spec, copies * blocks, BLOCK_TOKENS, s.dtype)
        self.spans = []
        for copy in range(copies):
            slots = range(copy * blocks, (copy + 1) * blocks)
            kernels.write(self.lanes, Spans.pack([Span(0, s.depth, slots)], BLOCK_TOKENS), k, v)
            self.spans.append(Spans.pack([Span(s.depth - s.rows, s.rows, slots)], BLOCK_TOKENS))
        self.k = [k.transpose(0, 1).to(s.dtype).contiguous() for _ in range(copies)]
        self.v = [v.transpose(0, 1).to(s.dtype).contiguous() for _ in range(copies)]
        self.q = torch.randn(s.rows, s.num_q_heads, s.head_dim, generator=generator)
        self.scale = s.head_dim**-0.5
        self.copies = copies


def _dense(shape: AttentionShape, cold_nbytes: int) -> Case:
    stored, s = _Stored(shape, cold_nbytes), shape
    turns = Turns(stored.copies)

    def ours() -> Tensor:
        return kernels.attend(stored.q, stored.lanes, stored.spans[turns()], block_ids=None, scale=stored.scale)

    return Case(
        name=f"attend, dense, {s.name}",
        shape=s.text,
        dtype="float32" if s.dtype == torch.float32 else "bfloat16 K, V",
        flops=4.0 * s.num_q_heads * s.head_dim * s.visible,
        nbytes=stored.nbytes if s.rows == 1 else 0.0,
        ours=ours,
        rivals=_Torch(shape, stored).ways(),
        peak=s.dtype,
        tolerance=1e-4 if s.dtype == torch.float32 else 5e-2,
    )


class _Torch:
    """torch's scaled_dot_product_attention, in the layouts that its CPU kernel may like best."""

    def __init__(self, shape: AttentionShape, stored: _Stored) -> None:
        self.shape, self.stored, self.turns = shape, stored, Turns(stored.copies)
        s, group = shape, shape.num_q_heads // shape.num_kv_heads
        q = stored.q.to(s.dtype)
        self.q = q.transpose(0, 1)[None].contiguous()  # (1, num_q_heads, rows, head_dim)
        by_group = q.view(s.rows, s.num_kv_heads, group, s.head_dim).permute(1, 2, 0, 3)
        self.folded = by_group.reshape(1, s.num_kv_heads, group * s.rows, s.head_dim).contiguous()
        self.mask: Tensor | None = None
        if s.rows > 1:
            keys, queries = torch.arange(s.depth), torch.arange(s.depth - s.rows, s.depth)
            self.mask = keys <= queries[:, None]  # (rows, depth)
        self.folded_mask = None if self.mask is None else self.mask.repeat(group, 1)

    def ways(self) -> dict[str, Callable[[], Tensor]]:
        """Name -> what computes it. The group's queries are rows of one head, or heads share K and V."""
        return {"SDPA, group folded": self._folded, "SDPA, enable_gqa": self._grouped}

    def _folded(self) -> Tensor:
        s, copy = self.shape, self.turns()
        k, v = self.stored.k[copy][None], self.stored.v[copy][None]
        out = F.scaled_dot_product_attention(self.folded, k, v, attn_mask=self.folded_mask, scale=self.stored.scale)
        return out.view(s.num_q_heads, s.rows, s.head_dim).transpose(0, 1)

    def _grouped(self) -> Tensor:
        copy = self.turns()
        k, v = self.stored.k[copy][None], self.stored.v[copy][None]
        out = F.scaled_dot_product_attention(
            self.q, k, v, attn_mask=self.mask, scale=self.stored.scale, enable_gqa=True
        )
        return out[0].transpose(0, 1)


def _sparse(shape: AttentionShape, cold_nbytes: int) -> Case:
    """TOPK random blocks for each KV head. The rival reads the same blocks, gathered for it beforehand."""
    stored, s = _Stored(shape, cold_nbytes), shape
    generator = torch.Generator().manual_seed(4)
    blocks = s.depth // BLOCK_TOKENS
    topk = min(TOPK, blocks)
    rows = [torch.randperm(blocks - 1, generator=generator)[: topk - 1].sort().values for _ in range(s.num_kv_heads)]
    local = torch.tensor([blocks - 1])
    block_ids = torch.stack([torch.cat((row, local)) for row in rows])[None].to(torch.int32)
    tokens = (block_ids[0].long()[:, :, None] * BLOCK_TOKENS + torch.arange(BLOCK_TOKENS)).flatten(1)
    index = tokens[:, :, None].expand(-1, -1, s.head_dim)
    gathered = _Stored(replace(s, depth=BLOCK_TOKENS), 0)  # its tensors are replaced by those of the chosen blocks
    gathered.q, gathered.scale, gathered.copies = stored.q, stored.scale, stored.copies
    gathered.k = [k.gather(1, index) for k in stored.k]
    gathered.v = [v.gather(1, index) for v in stored.v]
    turns, nbytes = Turns(stored.copies), 2 * tokens.numel() * s.head_dim * s.dtype.itemsize
    return Case(
        name=f"attend, sparse, {s.name}",
        shape=f"{s.text}, {topk} blocks of {BLOCK_TOKENS}",
        dtype="float32",
        flops=4.0 * s.num_q_heads * s.head_dim * topk * BLOCK_TOKENS,
        nbytes=nbytes,
        ours=lambda: kernels.attend(
            stored.q, stored.lanes, stored.spans[turns()], block_ids=block_ids, scale=stored.scale
        ),
        rivals=_Torch(replace(s, depth=tokens.shape[1]), gathered).ways(),
    )
