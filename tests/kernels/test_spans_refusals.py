"""What the kernels refuse of lanes, spans and sizes, because they would read or write beyond what they were given."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from freehold import kernels
from freehold.core.blocks import LaneSpec, LayerLanes, Span, Spans
from freehold.core.errors import ArgumentError

BLOCK_TOKENS, FAR = 16, 1_000_000
CHOICE = {"topk": 2, "local_blocks": 1, "init_blocks": 0}


@pytest.fixture
def lanes() -> LayerLanes:
    """Four slots, of which a sequence of 60 tokens fills the last three."""
    torch.manual_seed(0)
    lanes = LayerLanes.allocate(LaneSpec(2, 16, 8), 4, BLOCK_TOKENS, torch.float32)
    kernels.write(lanes, pack(Span(0, 60, (3, 1, 2, 0))), *torch.randn(2, 60, 2, 16), torch.randn(60, 8))
    return lanes


def pack(*spans: Span) -> Spans:
    return Spans.pack(spans, BLOCK_TOKENS)


def attend(lanes: LayerLanes, spans: Spans) -> torch.Tensor:
    return kernels.attend(torch.ones(spans.rows, 4, 16), lanes, spans, block_ids=None, scale=0.25)


def attend_chosen(lanes: LayerLanes, spans: Spans) -> torch.Tensor:
    ids = torch.tensor([[[0, 3]] * 2] * spans.rows, dtype=torch.int32)
    return kernels.attend(torch.ones(spans.rows, 4, 16), lanes, spans, block_ids=ids, scale=0.25)


def select(lanes: LayerLanes, spans: Spans) -> torch.Tensor:
    return kernels.select(torch.ones(spans.rows, 2, 8), lanes, spans, **CHOICE)


def sparse(lanes: LayerLanes, spans: Spans) -> torch.Tensor:
    q, index_q = torch.ones(spans.rows, 4, 16), torch.ones(spans.rows, 2, 8)
    return kernels.sparse(q, index_q, lanes, spans, scale=0.25, **CHOICE)[0]


READERS = [attend, attend_chosen, select, sparse]
Reader = Callable[[LayerLanes, Spans], torch.Tensor]


@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize("slot", [4, FAR, -1, -FAR])
@pytest.mark.parametrize("block", [0, 3])
def test_a_slot_that_the_lanes_do_not_have_is_not_read(lanes, read: Reader, slot, block):
    slots = [3, 1, 2, 0]
    read(lanes, pack(Span(59, 1, slots)))
    slots[block] = slot
    with pytest.raises(ArgumentError, match="places that the lanes do not have"):
        read(lanes, pack(Span(58, 1, (3, 1, 2, 0)), Span(59, 1, slots)))


@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize(
    "change",
    [
        {"start": torch.tensor([-5])},
        {"start": torch.tensor([64])},
        {"start": torch.tensor([2**62])},
        {"table_begin": torch.tensor([1])},
        {"table_begin": torch.tensor([-1])},
        {"table_begin": torch.tensor([2**62])},
        {"table": torch.tensor([3, 1, 2], dtype=torch.int32)},
        {"table": torch.empty(0, dtype=torch.int32)},
        {"row_begin": torch.tensor([0, 2], dtype=torch.int32)},
        {"row_begin": torch.tensor([-1, 1], dtype=torch.int32)},
        {"row_begin": torch.tensor([1, 1], dtype=torch.int32)},
    ],
)
def test_spans_that_contradict_themselves_are_refused(lanes, read: Reader, change):
    with pytest.raises(ArgumentError, match="do not name a place for each block and row"):
        read(lanes, replace(pack(Span(59, 1, (3, 1, 2, 0))), **change))


def test_rows_that_go_back_are_refused(lanes):
    spans = pack(Span(10, 1, (3,)), Span(59, 1, (3, 1, 2, 0)))
    for rows in ([0, 3, 2], [0, -1, 2]):
        with pytest.raises(ArgumentError, match="do not name a place for each block and row"):
            attend(lanes, replace(spans, row_begin=torch.tensor(rows, dtype=torch.int32)))


@pytest.mark.parametrize("name", ["slot", "offset", "frames"])
@pytest.mark.parametrize("place", [-1, FAR, -FAR, 16])
def test_nothing_is_written_beyond_the_lanes(lanes, name, place):
    before = [t.clone() for t in lanes.tensors()]
    spans = pack(Span(0, 20, (3, 1)))
    places = getattr(spans, name, spans.slot).clone()
    places[7] = place
    frames = places if name == "frames" else None
    spans = spans if name == "frames" else replace(spans, **{name: places})
    with pytest.raises(ArgumentError, match="places that the lanes do not have"):
        kernels.write(lanes, spans, *torch.randn(2, 20, 2, 16), torch.randn(20, 8), frames=frames)
    for tensor, kept in zip(lanes.tensors(), before, strict=True):
        assert torch.equal(tensor.view(torch.uint8), kept.view(torch.uint8))


@pytest.mark.parametrize(("begin", "end"), [(-3, 2), (-(10**8), 2), (5, 2), (0, 2**31), (0.5, 2)])
def test_a_stage_that_does_not_ascend_from_zero_is_refused(begin, end):
    with pytest.raises(ArgumentError, match="of a stage is"):
        kernels.Stage(begin, end, torch.empty(1, 4, 36), first=True, last=True)


def test_a_stage_reads_none_but_its_own_blocks(lanes):
    """The others need no place in memory."""
    spans, q = pack(Span(59, 1, (3, 1, -1, -1))), torch.ones(1, 4, 16)
    stage = kernels.Stage(0, 2, kernels.Stage.room(q), first=True, last=False)
    kernels.attend(q, lanes, spans, block_ids=None, scale=0.25, stage=stage)
    with pytest.raises(ArgumentError, match="places that the lanes do not have"):
        kernels.attend(q, lanes, spans, block_ids=None, scale=0.25, stage=replace(stage, end=3))


@pytest.mark.parametrize(
    "change",
    [
        lambda lanes: {"k": lanes.k.transpose(1, 2).contiguous().transpose(1, 2)},
        lambda lanes: {"v": lanes.v.bfloat16()},
        lambda lanes: {"v": lanes.v[:2]},
        lambda lanes: {"head_dim": 1600},
        lambda lanes: {"block_tokens": 32},
        lambda lanes: {"index": replace(lanes.index, bounds=lanes.index.bounds[:1])},
        lambda lanes: {"index": replace(lanes.index, keys=lanes.index.keys.bfloat16())},
    ],
)
def test_lanes_that_do_not_lie_as_they_say_are_refused(lanes, change):
    with pytest.raises(ArgumentError):
        replace(lanes, **change(lanes))


def test_spans_of_other_types_are_refused(lanes):
    spans = pack(Span(59, 1, (3, 1, 2, 0)))
    for name in ("row_begin", "table", "slot", "offset"):
        with pytest.raises(ArgumentError, match=f"{name} has type torch.int64"):
            replace(spans, **{name: getattr(spans, name).long()})


def test_lanes_of_float16_are_refused_by_their_type():
    lanes = LayerLanes.allocate(LaneSpec(2, 16, 8), 4, BLOCK_TOKENS, torch.float16)
    for read in READERS:
        with pytest.raises(ArgumentError, match="float16"):
            read(lanes, pack(Span(59, 1, (3, 1, 2, 0))))


def test_tensors_with_too_few_axes_are_refused_by_name(lanes):
    spans, flat = pack(Span(59, 1, (3, 1, 2, 0))), torch.ones(1, 16)
    with pytest.raises(ArgumentError, match=r"index_q has shape \(1, 16\)"):
        kernels.select(flat, lanes, spans, **CHOICE)
    with pytest.raises(ArgumentError, match=r"q has shape \(1, 16\)"):
        kernels.attend(flat, lanes, spans, block_ids=None, scale=0.25)
    with pytest.raises(ArgumentError, match=r"q has shape \(1, 16\)"):
        kernels.sparse(flat, flat, lanes, spans, scale=0.25, **CHOICE)
    with pytest.raises(ArgumentError, match=r"k has shape \(1, 16\)"):
        kernels.write(lanes, spans, flat, flat, flat)


@pytest.mark.parametrize(
    ("name", "value"), [("topk", 2**31), ("topk", 2.0), ("local_blocks", None), ("init_blocks", -1)]
)
def test_a_choice_that_is_no_small_whole_number_is_refused_by_name(lanes, name, value):
    with pytest.raises(ArgumentError, match=f"{name} is {value}"):
        kernels.select(torch.ones(1, 2, 8), lanes, pack(Span(59, 1, (3, 1, 2, 0))), **{**CHOICE, name: value})


def test_blocks_that_are_too_large_for_the_kernels_are_refused():
    lanes = LayerLanes.allocate(LaneSpec(1, 2), 1, 1 << 20, torch.float32)
    with pytest.raises(ArgumentError, match="block_tokens is 1048576"):
        kernels.attend(torch.ones(1, 1, 2), lanes, Spans.pack([Span(5, 1, [0])], 1 << 20), block_ids=None, scale=1.0)


def backward(**changes) -> tuple[torch.Tensor, ...]:
    q, k, v, out, grad = torch.ones(1, 4, 16), *torch.ones(2, 32, 2, 16), *torch.ones(2, 1, 4, 16)
    options = {"query_start": 31, "block_tokens": 16, "scale": 0.25, **changes}
    ids = torch.tensor([[[0, 1]] * 2], dtype=torch.int32)
    return kernels.attend_backward(q, k, v, out, grad, torch.ones(1, 4), ids, **options)


@pytest.mark.parametrize(
    ("name", "value"), [("block_tokens", 0), ("block_tokens", -16), ("block_tokens", 1 << 20), ("query_start", -40)]
)
def test_a_gradient_of_impossible_sizes_is_refused_by_name(name, value):
    backward()
    with pytest.raises(ArgumentError, match=f"{name} is {value}"):
        backward(**{name: value})
