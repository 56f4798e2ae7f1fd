"""A million rows: the kernels choose what the reference chooses, on plain, structured and hostile keys."""

from __future__ import annotations

import pytest
import torch

from freehold import kernels
from freehold.attention.impl import reference
from freehold.core.blocks import LaneSpec, LayerLanes, Span, Spans

ROWS, HEADS, INDEX_DIM = 512, 4, 64
KINDS = ("plain", "structured", "shifted", "clusters", "ties", "near ties")


def keys_and_queries(kind: str, total_k: int) -> tuple[torch.Tensor, torch.Tensor]:
    q, k = torch.randn(ROWS, HEADS, INDEX_DIM), torch.randn(total_k, INDEX_DIM)
    if kind == "structured":
        k = (
            0.7 * k
            + 0.7 * torch.randn(-(-total_k // 128), 1, INDEX_DIM).expand(-1, 128, -1).reshape(-1, INDEX_DIM)[:total_k]
        )
        q = 0.3 * q + torch.randn(1, HEADS, INDEX_DIM)
    elif kind == "shifted":
        k = k + 30 * torch.randn(1, INDEX_DIM)
    elif kind == "clusters":
        k = torch.where(torch.rand(total_k, 1) < 0.5, 50.0, -50.0) * torch.randn(1, INDEX_DIM) + 1e-3 * k
    elif kind == "ties":
        q, k = q.round(), k.round()
    elif kind == "near ties":  # keys within one bfloat16 step of each other
        k = torch.randn(1, INDEX_DIM) * (1 + 2**-8 * torch.randint(0, 2, (total_k, 1)))
    return q, k


@pytest.mark.slow
def test_a_million_rows_choose_what_the_reference_chooses():
    torch.manual_seed(0)
    compared = 0
    for number in range(-(-1_000_000 // (ROWS * HEADS))):
        kind = KINDS[number % len(KINDS)]
        block_tokens = (64, 128)[number % 2]
        total_k = int(torch.randint(ROWS, 6000, ()))
        topk = int(torch.randint(2, 17, ()))
        dtype = (torch.float32, torch.bfloat16)[number // 2 % 2]
        q, k = keys_and_queries(kind, total_k)
        num_blocks = -(-total_k // block_tokens)
        lanes = LayerLanes.allocate(LaneSpec(1, 2, INDEX_DIM), num_blocks, block_tokens, dtype)
        slots = torch.randperm(num_blocks).tolist()
        nothing = torch.zeros(total_k, 1, 2)
        kernels.write(lanes, Spans.pack([Span(0, total_k, slots)], block_tokens), nothing, nothing, k)
        spans = Spans.pack([Span(total_k - ROWS, ROWS, slots)], block_tokens)
        got = kernels.select(q, lanes, spans, topk=topk)
        wanted = reference.select_blocks(
            q, k.to(dtype), query_start=total_k - ROWS, block_tokens=block_tokens, topk=topk,
            local_blocks=1, init_blocks=0,
        )  # fmt: skip
        assert torch.equal(got, wanted), (number, kind, total_k, block_tokens, topk, dtype)
        compared += ROWS * HEADS
    assert compared >= 1_000_000


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_rows_alone_over_many_blocks_choose_what_the_reference_chooses(kind):
    """Few queries over a long context take another way: half codes first."""
    torch.manual_seed(1)
    total_k, block_tokens, topk = 110_000, 128, 16
    q, k = keys_and_queries(kind, total_k)
    num_blocks = -(-total_k // block_tokens)
    lanes = LayerLanes.allocate(LaneSpec(1, 2, INDEX_DIM), num_blocks, block_tokens, torch.bfloat16)
    slots = torch.randperm(num_blocks).tolist()
    nothing = torch.zeros(total_k, 1, 2)
    kernels.write(lanes, Spans.pack([Span(0, total_k, slots)], block_tokens), nothing, nothing, k)
    for start in range(total_k - ROWS, total_k, 32):
        rows = q[start - total_k + ROWS :][:32]
        wanted = reference.select_blocks(
            rows, k.bfloat16()[: start + 32], query_start=start, block_tokens=block_tokens, topk=topk,
            local_blocks=1, init_blocks=0,
        )  # fmt: skip
        for i in range(32):
            spans = Spans.pack([Span(start + i, 1, slots)], block_tokens)
            assert torch.equal(kernels.select(rows[i : i + 1], lanes, spans, topk=topk)[0], wanted[i]), (
                kind,
                start + i,
            )
