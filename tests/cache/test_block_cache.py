"""The block cache against a naive account of what has been computed."""

from __future__ import annotations

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from freehold.cache import BlockCache, BlockPool
from freehold.core.blocks import LaneSpec

BLOCK = 4


def make_cache(num_slots: int = 8) -> BlockCache:
    specs = (LaneSpec(1, 16), LaneSpec(1, 16, index_dim=8))
    return BlockCache(BlockPool(specs, num_slots=num_slots, block_tokens=BLOCK, dtype=torch.float32))


def compute(cache: BlockCache, tokens: list[int]) -> int:
    """Opens, computes and closes a sequence; returns how many tokens were found."""
    sequence = cache.open(tokens)
    found = sequence.num_computed
    assert cache.reserve(sequence, len(tokens))
    cache.computed(sequence, len(tokens))
    cache.close(sequence)
    cache.check_integrity()
    return found


def test_a_repeated_prompt_is_found_but_for_its_last_token():  # the unfinished last block too
    cache, tokens = make_cache(), list(range(10))
    assert compute(cache, tokens) == 0
    assert compute(cache, tokens) == 9
    assert compute(cache, tokens[:8]) == 7  # all of it is known; its last logits are not


def test_a_changed_tail_reuses_everything_before_it():
    cache = make_cache()
    compute(cache, [1, 2, 3, 4, 5, 6, 7, 8, 9])
    assert compute(cache, [1, 2, 3, 4, 5, 6, 0, 0, 0]) == 6


def test_same_tokens_after_another_beginning_are_not_shared():
    cache = make_cache()
    compute(cache, [1, 2, 3, 4, 5, 6, 7, 8, 9])
    assert compute(cache, [0, 2, 3, 4, 5, 6, 7, 8, 9]) == 0


def test_copied_blocks_carry_all_lanes():
    cache = make_cache()
    first = cache.open([1, 2, 3, 4, 5])
    assert cache.reserve(first, 5)
    slot = first.slots[0]
    for lanes in cache.pool.lanes:
        for lane in lanes.tensors():
            lane[slot] = torch.randint(0, 100, lane[slot].shape).to(lane.dtype)
    cache.computed(first, 5)
    second = cache.open([1, 2, 3, 9, 9])
    assert second.num_computed == 3
    copy = second.slots[0]
    assert copy != slot
    for lanes in cache.pool.lanes:
        for lane in lanes.tensors():
            assert torch.equal(lane[copy], lane[slot])


def test_the_least_recently_used_leaf_goes_first():
    cache = make_cache(num_slots=4)
    compute(cache, [1] * 4 + [0])  # one full block is kept of each
    compute(cache, [2] * 4 + [0])
    compute(cache, [3] * 4 + [0])
    compute(cache, [1] * 4 + [0])  # used again
    compute(cache, [4] * 8)  # needs the room of one more
    assert compute(cache, [1] * 4 + [0]) == 4
    assert compute(cache, [2] * 4 + [0]) == 0


def test_blocks_in_use_are_never_evicted():
    cache = make_cache(num_slots=4)
    held = cache.open([1] * 9)
    assert cache.reserve(held, 9)
    cache.computed(held, 8)
    other = cache.open([2] * 9)
    assert not cache.reserve(other, 9)
    assert cache.reserve(other, 4)
    cache.close(other)
    cache.close(held)
    cache.check_integrity()


def test_two_sequences_that_compute_the_same_block_end_up_sharing_it():
    cache, tokens = make_cache(), [5, 6, 7, 8, 9]
    a, b = cache.open(tokens), cache.open(tokens)
    for sequence in (a, b):
        assert cache.reserve(sequence, 5)
        cache.computed(sequence, 5)
    assert a.slots[0] == b.slots[0]
    cache.check_integrity()


def test_a_leak_is_found():
    cache = make_cache()
    cache.pool.take()
    with pytest.raises(AssertionError, match="slot references"):
        cache.check_integrity()


class CacheMachine(RuleBasedStateMachine):
    """Random opens, steps and closes. Each slot is stamped with the tokens computed into it, so that a wrong
    reuse is seen as a wrong stamp."""

    def __init__(self) -> None:
        super().__init__()
        self.cache = make_cache(num_slots=6)
        self.open = []
        self.known: set[tuple[int, ...]] = set()

    def stamp(self, sequence, start: int, end: int) -> None:
        for i in range(start, end):
            prefix = hash(tuple(sequence.tokens[: i + 1])) % 100_003
            self.cache.pool.lanes[0].v[sequence.slots[i // BLOCK], 0, i % BLOCK, 0] = prefix

    def check_stamps(self, sequence) -> None:
        for i in range(sequence.num_computed):
            prefix = hash(tuple(sequence.tokens[: i + 1])) % 100_003
            assert self.cache.pool.lanes[0].v[sequence.slots[i // BLOCK], 0, i % BLOCK, 0] == prefix

    @rule(tokens=st.lists(st.integers(0, 1), min_size=1, max_size=14))
    def open_sequence(self, tokens):
        sequence = self.cache.open(tokens)
        assert sequence.num_computed < len(tokens)
        self.check_stamps(sequence)
        self.open.append(sequence)

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def compute_some(self, data):
        sequence = data.draw(st.sampled_from(self.open))
        if sequence.num_computed == len(sequence.tokens):
            sequence.tokens.append(data.draw(st.integers(0, 1)))
        end = data.draw(st.integers(sequence.num_computed + 1, len(sequence.tokens)))
        start = sequence.num_computed
        if self.cache.reserve(sequence, end):
            self.stamp(sequence, start, end)
            self.cache.computed(sequence, end)

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def close_one(self, data):
        sequence = data.draw(st.sampled_from(self.open))
        self.open.remove(sequence)
        self.cache.close(sequence)

    @invariant()
    def everything_adds_up(self):
        self.cache.check_integrity()
        for sequence in self.open:
            self.check_stamps(sequence)


TestCacheMachine = CacheMachine.TestCase
TestCacheMachine.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
