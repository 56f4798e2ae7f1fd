"""A whole layer in one call has the bits of its operators one by one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from freehold import kernels
from freehold.core.blocks import LaneSpec, LayerLanes, Span, Spans
from freehold.core.errors import ArgumentError
from freehold.kernels import Experts, FusedLayer, FusedLayerParts, Gate, IndexParts, pack_weight

BLOCK = 32


def parts_of(
    seed: int, q_heads: int, kv_heads: int, dim: int, hidden: int, norms: bool, clamped: bool, index_dim: int = 0
) -> Any:
    generator = torch.Generator().manual_seed(seed)

    def weight(rows: int, columns: int) -> Any:
        return pack_weight(torch.randn(rows, columns, generator=generator) / columns**0.5)

    def norm(size: int) -> torch.Tensor:
        return 1 + 0.1 * torch.randn(size, generator=generator)

    wide, narrow, width = q_heads * dim, kv_heads * dim, 72
    index = None
    if index_dim:
        projections = weight(kv_heads * index_dim, hidden), weight(index_dim, hidden)
        index_norms = (norm(index_dim), norm(index_dim)) if norms else (None, None)
        index = IndexParts(projections, index_norms, topk=3, local_blocks=1, init_blocks=seed % 2)
    return FusedLayerParts(
        (weight(wide, hidden), weight(narrow, hidden), weight(narrow, hidden), weight(hidden, wide)),
        (weight(width, hidden), weight(width, hidden), weight(hidden, width)),
        (norm(hidden), norm(hidden), norm(dim) if norms else None, norm(dim) if norms else None),
        1e-6, q_heads, kv_heads, dim, Gate(clamped=True, alpha=1.702, limit=7.0) if clamped else Gate(), index,
    )  # fmt: skip


def store_noise(spans: Spans, *lanes: LayerLanes) -> None:
    generator, heads, dim = torch.Generator().manual_seed(5), lanes[0].num_kv_heads, lanes[0].head_dim
    k, v = (torch.randn(spans.rows, heads, dim, generator=generator) for _ in range(2))
    for each in lanes:
        index_k = None if each.index is None else k[:, 0].repeat(1, 4)[:, : each.index.index_dim].contiguous()
        kernels.write(each, spans, k, v, index_k)


def one_by_one(
    p: Any, h: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, spans: Spans, lanes: LayerLanes, dense: bool
) -> Any:
    rows = h.shape[0]
    x = kernels.rms_norm(h, p.norms[0], p.eps)
    q, k, v = kernels.linears(x, p.attention[:3])
    index_q, index_k = None, None
    if p.index is not None:
        index_q, index_k = kernels.linears(x, p.index.projections)
        index_q, index_k = index_q.view(rows, p.num_kv_heads, -1), index_k.view(rows, 1, -1)
        if p.index.norms[0] is not None:
            index_q = kernels.rms_norm(index_q, p.index.norms[0], p.eps)
            index_k = kernels.rms_norm(index_k, p.index.norms[1], p.eps)
        index_q, index_k = kernels.rope_(index_q, cos, sin), kernels.rope_(index_k, cos, sin)[:, 0]
    q, k = q.view(rows, p.num_q_heads, p.head_dim), k.view(rows, p.num_kv_heads, p.head_dim)
    if p.norms[2] is not None:
        q, k = kernels.rms_norm(q, p.norms[2], p.eps), kernels.rms_norm(k, p.norms[3], p.eps)
    q, k = kernels.rope_(q, cos, sin), kernels.rope_(k, cos, sin)
    kernels.write(lanes, spans, k, v.view(rows, p.num_kv_heads, p.head_dim), index_k)
    ids = None
    if index_q is not None and not dense:
        choice = {"topk": p.index.topk, "local_blocks": p.index.local_blocks, "init_blocks": p.index.init_blocks}
        ids = kernels.select(index_q, lanes, spans, **choice)
    out = kernels.attend(q, lanes, spans, block_ids=ids, scale=p.head_dim**-0.5)
    h = h + kernels.linear(out.view(rows, -1), p.attention[3])
    return h + kernels.gated_mlp(kernels.rms_norm(h, p.norms[1], p.eps), Experts([p.network]), p.gate), ids


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 2**31),
    lengths=st.lists(st.tuples(st.integers(0, 200), st.integers(1, 40)), min_size=1, max_size=3),
    heads=st.sampled_from([(4, 2, 32), (3, 3, 16), (8, 1, 64)]),
    hidden=st.sampled_from([40, 64, 130]),
    norms=st.booleans(),
    clamped=st.booleans(),
    bf16=st.booleans(),
    index_dim=st.sampled_from([0, 16, 64]),
    dense=st.booleans(),
)
def test_the_same_bits(
    seed: int,
    lengths: Any,
    heads: Any,
    hidden: int,
    norms: bool,
    clamped: bool,
    bf16: bool,
    index_dim: int,
    dense: bool,
) -> None:
    q_heads, kv_heads, dim = heads
    p = parts_of(seed, q_heads, kv_heads, dim, hidden, norms, clamped, index_dim)
    slots, pieces = 0, []
    for start, rows in lengths:
        blocks = -(-(start + rows) // BLOCK)
        pieces.append(Span(start, rows, list(range(slots, slots + blocks))))
        slots += blocks
    spans, dtype = Spans.pack(pieces, BLOCK), torch.bfloat16 if bf16 else torch.float32
    one, other = (
        LayerLanes.allocate(LaneSpec(kv_heads, dim, index_dim or None), slots, BLOCK, dtype) for _ in range(2)
    )
    rows = spans.rows
    h = torch.randn(rows, hidden, generator=torch.Generator().manual_seed(seed + 1))
    angles = torch.rand(rows, min(dim // 4, index_dim // 2 or dim))
    before = [Span(0, span.start, span.slots) for span in pieces if span.start]
    if before:
        store_noise(Spans.pack(before, BLOCK), one, other)
    expected, ids = one_by_one(p, h.clone(), angles.cos(), angles.sin(), spans, one, dense)
    got, chosen = FusedLayer(p).run(h.clone(), angles.cos(), angles.sin(), spans, other, dense=dense)
    assert torch.equal(got, expected)
    assert (ids is None and chosen is None) or torch.equal(ids, chosen)
    assert all(torch.equal(a, b) for a, b in zip(one.tensors(), other.tensors(), strict=True))


def test_refusals() -> None:
    p = parts_of(1, 4, 2, 32, 64, True, False)
    with pytest.raises(ArgumentError, match="the weights of a layer are"):
        FusedLayer(replace(p, network=(p.network[0], p.network[1], p.network[1])))
    layer, cos = FusedLayer(p), torch.ones(1, 8)
    spans = Spans.pack([Span(0, 1, [0])], BLOCK)
    h = torch.zeros(1, 64)
    with pytest.raises(ArgumentError, match="index keys of 16 dimensions; the layer's have 0"):
        layer.run(h, cos, cos, spans, LayerLanes.allocate(LaneSpec(2, 32, 16), 1, BLOCK, torch.float32))
    with pytest.raises(ArgumentError, match="the lanes hold 1 heads of 32; the layer has 2 of 32"):
        layer.run(h, cos, cos, spans, LayerLanes.allocate(LaneSpec(1, 32), 1, BLOCK, torch.float32))
    wide = torch.ones(1, 17)
    with pytest.raises(ArgumentError, match="cos turns 34 channels; a head has 32"):
        layer.run(h, wide, wide, spans, LayerLanes.allocate(LaneSpec(2, 32), 1, BLOCK, torch.float32))
    index = parts_of(1, 4, 2, 32, 64, True, False, 16).index
    with pytest.raises(ArgumentError, match="the weights of an index branch are"):
        FusedLayer(replace(p, index=replace(index, projections=index.projections[::-1])))
    with pytest.raises(ArgumentError, match="topk is 0"):
        FusedLayer(replace(p, index=replace(index, topk=0)))
    with pytest.raises(ArgumentError, match="h has shape"):
        layer.run(torch.zeros(1, 63), cos, cos, spans, LayerLanes.allocate(LaneSpec(2, 32), 1, BLOCK, torch.float32))
