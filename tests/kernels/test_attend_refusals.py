"""What attention over blocks refuses, because it would read or write beyond what it was given."""

from __future__ import annotations

import pytest
import torch

from freehold import kernels
from freehold.core.blocks import LaneSpec, LayerLanes, Span, Spans
from freehold.core.errors import ArgumentError

BLOCK_TOKENS = 16


@pytest.fixture
def lanes() -> LayerLanes:
    torch.manual_seed(0)
    lanes = LayerLanes.allocate(LaneSpec(2, 16), 3, BLOCK_TOKENS, torch.float32)
    spans = Spans.pack([Span(0, 40, range(3))], BLOCK_TOKENS)
    kernels.write(lanes, spans, torch.randn(40, 2, 16), torch.randn(40, 2, 16))
    return lanes


def attend(lanes: LayerLanes, block_ids: torch.Tensor | None, **options) -> torch.Tensor:
    """One query at position 37, in block 2."""
    spans = Spans.pack([Span(37, 1, range(3))], BLOCK_TOKENS)
    return kernels.attend(torch.ones(1, 4, 16), lanes, spans, block_ids=block_ids, scale=0.25, **options)


def test_block_ids_without_a_place_are_refused(lanes):
    with pytest.raises(ArgumentError, match=r"block_ids has shape \(1, 2, 0\)"):
        attend(lanes, torch.zeros(1, 2, 0, dtype=torch.int32))


@pytest.mark.parametrize(
    "ids", [(0, 3), (0, 1_000_000), (1, 1), (2, 0), (-1, 0), (-1, -1), (-7, -7), (0, -2), (-1_000_000, 0)]
)
def test_block_ids_that_are_not_in_the_table_or_in_order_are_refused(lanes, ids):
    with pytest.raises(ArgumentError, match="block_ids must ascend"):
        attend(lanes, torch.tensor([[(0, 2), ids]], dtype=torch.int32))


def test_a_block_after_the_end_of_a_row_is_refused(lanes):
    with pytest.raises(ArgumentError, match="then be -1 alone"):
        attend(lanes, torch.tensor([[(0, 2, -1), (0, -1, 2)]], dtype=torch.int32))


def test_block_ids_in_order_are_taken(lanes):
    every, chosen = attend(lanes, None), attend(lanes, torch.tensor([[(0, 1, 2, -1)] * 2], dtype=torch.int32))
    assert torch.equal(every, chosen)


def test_memory_of_a_stage_that_is_too_small_is_refused(lanes):
    q = torch.ones(1, 4, 16)
    for carried in (torch.zeros(1, 4, 1), kernels.Stage.room(q)[..., :-1].contiguous()):
        with pytest.raises(ArgumentError, match="carried has shape"):
            attend(lanes, None, stage=kernels.Stage(0, 2, carried, first=True, last=False))


def test_a_query_without_heads_is_refused(lanes):
    spans = Spans.pack([Span(37, 1, range(3))], BLOCK_TOKENS)
    with pytest.raises(ArgumentError, match="num_q_heads is 0"):
        kernels.attend(torch.ones(1, 0, 16), lanes, spans, block_ids=None, scale=0.25)
