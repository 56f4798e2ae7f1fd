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
from freehold.kernels import DenseLayer, DenseLayerParts, Experts, Gate, pack_weight

BLOCK = 32


def parts_of(seed: int, q_heads: int, kv_heads: int, dim: int, hidden: int, norms: bool, clamped: bool) -> Any:
    generator = torch.Generator().manual_seed(seed)

    def weight(rows: int, columns: int) -> Any:
        return pack_weight(torch.randn(rows, columns, generator=generator) / columns**0.5)

    def norm(size: int) -> torch.Tensor:
        return 1 + 0.1 * torch.randn(size, generator=generator)

    wide, narrow, width = q_heads * dim, kv_heads * dim, 72
    return DenseLayerParts(
        (weight(wide, hidden), weight(narrow, hidden), weight(narrow, hidden), weight(hidden, wide)),
        (weight(width, hidden), weight(width, hidden), weight(hidden, width)),
        (norm(hidden), norm(hidden), norm(dim) if norms else None, norm(dim) if norms else None),
        1e-6, q_heads, kv_heads, dim, Gate(clamped=True, alpha=1.702, limit=7.0) if clamped else Gate(),
    )  # fmt: skip


def one_by_one(p: Any, h: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, spans: Spans, lanes: LayerLanes) -> Any:
    rows = h.shape[0]
    x = kernels.rms_norm(h, p.norms[0], p.eps)
    q, k, v = kernels.linears(x, p.attention[:3])
    q, k = q.view(rows, p.num_q_heads, p.head_dim), k.view(rows, p.num_kv_heads, p.head_dim)
    if p.norms[2] is not None:
        q, k = kernels.rms_norm(q, p.norms[2], p.eps), kernels.rms_norm(k, p.norms[3], p.eps)
    q, k = kernels.rope_(q, cos, sin), kernels.rope_(k, cos, sin)
    kernels.write(lanes, spans, k, v.view(rows, p.num_kv_heads, p.head_dim), None)
    out = kernels.attend(q, lanes, spans, block_ids=None, scale=p.head_dim**-0.5)
    h = h + kernels.linear(out.view(rows, -1), p.attention[3])
    return h + kernels.gated_mlp(kernels.rms_norm(h, p.norms[1], p.eps), Experts([p.network]), p.gate)


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 2**31),
    lengths=st.lists(st.tuples(st.integers(0, 70), st.integers(1, 9)), min_size=1, max_size=3),
    heads=st.sampled_from([(4, 2, 32), (3, 3, 16), (8, 1, 64)]),
    hidden=st.sampled_from([40, 64, 130]),
    norms=st.booleans(),
    clamped=st.booleans(),
    bf16=st.booleans(),
)
def test_the_same_bits(
    seed: int, lengths: Any, heads: Any, hidden: int, norms: bool, clamped: bool, bf16: bool
) -> None:
    q_heads, kv_heads, dim = heads
    p = parts_of(seed, q_heads, kv_heads, dim, hidden, norms, clamped)
    slots, pieces = 0, []
    for start, rows in lengths:
        blocks = -(-(start + rows) // BLOCK)
        pieces.append(Span(start, rows, list(range(slots, slots + blocks))))
        slots += blocks
    spans, dtype = Spans.pack(pieces, BLOCK), torch.bfloat16 if bf16 else torch.float32
    one, other = (LayerLanes.allocate(LaneSpec(kv_heads, dim), slots, BLOCK, dtype) for _ in range(2))
    rows = spans.rows
    h = torch.randn(rows, hidden, generator=torch.Generator().manual_seed(seed + 1))
    angles = torch.rand(rows, dim // 4)
    expected = one_by_one(p, h.clone(), angles.cos(), angles.sin(), spans, one)
    got = DenseLayer(p).run(h.clone(), angles.cos(), angles.sin(), spans, other)
    assert torch.equal(got, expected)
    assert torch.equal(one.k, other.k)
    assert torch.equal(one.v, other.v)


def test_refusals() -> None:
    p = parts_of(1, 4, 2, 32, 64, True, False)
    with pytest.raises(ArgumentError, match="the weights of a layer are"):
        DenseLayer(replace(p, network=(p.network[0], p.network[1], p.network[1])))
    layer, cos = DenseLayer(p), torch.ones(1, 8)
    spans = Spans.pack([Span(0, 1, [0])], BLOCK)
    h = torch.zeros(1, 64)
    with pytest.raises(ArgumentError, match="the layer is sparse"):
        layer.run(h, cos, cos, spans, LayerLanes.allocate(LaneSpec(2, 32, 16), 1, BLOCK, torch.float32))
    with pytest.raises(ArgumentError, match="the lanes hold 1 heads of 32; the layer has 2 of 32"):
        layer.run(h, cos, cos, spans, LayerLanes.allocate(LaneSpec(1, 32), 1, BLOCK, torch.float32))
    with pytest.raises(ArgumentError, match="h has shape"):
        layer.run(torch.zeros(1, 63), cos, cos, spans, LayerLanes.allocate(LaneSpec(2, 32), 1, BLOCK, torch.float32))
