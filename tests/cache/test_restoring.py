"""Blocks come back from the store beside what is in memory, and none of what they stand on makes room for them."""

from __future__ import annotations

from pathlib import Path

import torch

from freehold.cache import BlockCache, BlockPool, Sequence
from freehold.core.blocks import Span, Spans
from freehold.core.events import MISS_TOKENS
from support.cached_blocks import BLOCK, LAYOUT, OWNERS, SPECS, SteppedStore, identity_of, read_blocks, write_tokens

OWNER, SLOTS = OWNERS[0], 4


def make_cache(directory: Path, *, limit: int = 100, slots: int = SLOTS, frames: int = SLOTS) -> BlockCache:
    store = SteppedStore(directory, identity_of(OWNER), LAYOUT, limit_bytes=limit * LAYOUT.record_bytes)
    pool = BlockPool(SPECS, num_slots=slots, block_tokens=BLOCK, dtype=torch.float32, store=store, num_frames=frames)
    return BlockCache(pool)


def blocks(*tokens: int) -> list[int]:
    """A prompt of whole blocks, each of one token again and again, and a last token that is never computed."""
    return [token for token in tokens for _ in range(BLOCK)] + [9]


def serve(cache: BlockCache, prompt: list[int]) -> Sequence:
    """Computes all but the last token and closes; the sequence as it was opened tells nothing any more."""
    sequence = cache.open(prompt)
    end = len(prompt) - 1
    assert cache.reserve(sequence, end)
    write_tokens(cache.pool, OWNER, prompt[:end], sequence.slots, sequence.num_computed)
    cache.computed(sequence, end)
    cache.close(sequence)
    cache.poll()
    cache.check_integrity()
    return sequence


def test_what_is_restored_does_not_take_the_room_of_what_it_follows(tmp_path: Path) -> None:
    """The oldest block in memory is the one that the restored ones stand on."""
    cache = make_cache(tmp_path)
    serve(cache, blocks(1, 2, 3))
    serve(cache, blocks(4, 5, 6))  # of the first three, the first stays
    assert len(cache.tree) == SLOTS
    sequence = cache.open(blocks(1, 2, 3))
    assert sequence.num_computed == 3 * BLOCK
    assert cache.stats().restored_tokens == 2 * BLOCK
    cache.check_integrity()
    cache.close(sequence)
    cache.close_store()


def test_of_blocks_that_go_on_alike_the_newest_is_copied(tmp_path: Path) -> None:
    cache = make_cache(tmp_path)
    alike = [1] * (BLOCK // 2)
    older, newer = ([*alike, *[last] * (BLOCK // 2), 9] for last in (2, 3))
    serve(cache, older)
    serve(cache, newer)
    child, length = cache.tree.closest_child(cache.tree.root, [*alike, 7])
    assert (child.tokens, length) == (tuple(newer[:BLOCK]), BLOCK // 2)
    cache.close_store()


def test_of_stored_blocks_the_one_that_shares_most_is_closest(tmp_path: Path) -> None:
    cache = make_cache(tmp_path)
    alike = [1] * (BLOCK - 2)
    for tail in ([2, 3], [4, 5], [4, 6], [7, 7]):
        serve(cache, [*alike, *tail, 9])
    disk = cache.pool.disk
    assert disk is not None
    for wanted, expected in (([4, 6], BLOCK), ([4, 8], BLOCK - 1), ([8, 8], BLOCK - 2)):
        record, length = disk.closest(cache.tree.root.key, [*alike, *wanted])
        assert length == expected
        assert record is not None
        assert record.tokens[:length] == (*alike, *wanted)[:length]
    assert disk.closest(cache.tree.root.key, [8]) == (None, 0)
    assert disk.closest(cache.tree.root.key, [1]) != (None, 0)
    cache.close_store()


def test_a_miss_names_the_first_token_that_differs(tmp_path: Path) -> None:
    cache = make_cache(tmp_path)
    serve(cache, blocks(1, 2))
    prompt = [*[1] * BLOCK, *[2] * 5, 7, 8]
    sequence = cache.open(prompt)
    miss = cache.miss(sequence)
    assert miss is not None
    assert (miss.position, miss.got) == (BLOCK + 5, (7, 8))
    assert miss.expected == (2,) * min(MISS_TOKENS, BLOCK - 5)
    assert cache.miss(cache.open([*[1] * BLOCK, 2, 2])) is None  # found to its end
    assert cache.miss(cache.open([5, 5])) is not None
    cache.clear()
    cache.close_store()


def test_only_a_block_with_a_token_behind_it_may_be_computed_for_others(tmp_path: Path) -> None:
    cache = make_cache(tmp_path)
    prompt = blocks(1, 2)
    one, other, short = cache.open(prompt), cache.open(prompt), cache.open(prompt[:BLOCK])
    assert cache.next_block(one) == cache.next_block(other) is not None
    assert cache.next_block(short) is None
    cache.close_store()


def test_kept_slots_leave_a_token_to_compute(tmp_path: Path) -> None:
    cache = make_cache(tmp_path)
    serve(cache, blocks(1, 2))
    assert len(cache.kept_slots(blocks(1, 2))) == 2
    assert len(cache.kept_slots(blocks(1, 2)[:-1])) == 1
    cache.close_store()


def test_the_frame_used_longest_ago_is_taken(tmp_path: Path) -> None:
    """Three frames for four blocks; one that attention has read since is newer than those that were written later."""
    cache = make_cache(tmp_path, frames=3)
    pool = cache.pool
    (pager,) = pool.disk.pagers.values()
    slots = []
    for token in (1, 2, 3):
        sequence = cache.open(blocks(token))
        assert cache.reserve(sequence, BLOCK)
        slots += sequence.slots
        write_tokens(pool, OWNER, [token] * BLOCK, sequence.slots, 0)
        cache.computed(sequence, BLOCK)
    pool.disk.wait()
    list(read_blocks(pool, OWNER, [((1,) * BLOCK, slots[:1])], None))
    sequence = cache.open(blocks(4))
    assert cache.reserve(sequence, BLOCK)
    write_tokens(pool, OWNER, [4] * BLOCK, sequence.slots, 0)
    assert [slot for slot in slots if pager._absent[slot]] == [slots[1]]
    cache.clear()
    cache.close_store()


def test_a_use_counts_for_what_stood_before_it_when_it_is_gone(tmp_path: Path) -> None:
    """A block that waits for the disk outlives a newer one; the one before that is then newer than it."""
    cache = make_cache(tmp_path)
    store = cache.pool.disk.store
    serve(cache, blocks(1, 2))
    store.slow = True
    serve(cache, blocks(3))
    serve(cache, blocks(1, 2))
    serve(cache, blocks(4, 5))  # takes the room of block 2: block 3 is not on the disk yet
    store.slow = False
    cache.poll()
    serve(cache, blocks(6))
    assert {node.tokens[0] for node in cache.tree} == {1, 4, 5, 6}
    cache.close_store()


def test_unfinished_blocks_that_end_otherwise_are_both_kept(tmp_path: Path) -> None:
    cache = make_cache(tmp_path)
    serve(cache, [1, 1, 1, 2, 9])
    serve(cache, [1, 1, 1, 3, 9])
    assert {node.tokens for node in cache.tree} == {(1, 1, 1, 2), (1, 1, 1, 3)}
    cache.close_store()


def test_a_use_in_memory_counts_on_the_disk(tmp_path: Path) -> None:
    cache = make_cache(tmp_path, limit=2)
    for token in (1, 2, 1, 3):
        serve(cache, blocks(token))
    assert {record.tokens[0] for record in cache.pool.disk.store.children()} == {1, 3}
    cache.close_store()


def test_a_frame_is_waited_for_while_blocks_are_on_their_way_to_the_disk(tmp_path: Path) -> None:
    cache = make_cache(tmp_path, frames=3)
    cache.pool.disk.store.slow = True
    prompt = blocks(1, 2, 3, 4)[:-1]
    sequence = cache.open(prompt)
    for end in range(BLOCK, len(prompt) + 1, BLOCK):
        assert cache.reserve(sequence, end)
        write_tokens(cache.pool, OWNER, prompt[:end], sequence.slots, sequence.num_computed)
        cache.computed(sequence, end)
    assert len(cache.tree) == 4
    cache.close(sequence)
    cache.close_store()


def test_attention_over_more_blocks_than_frames_comes_in_as_few_parts_as_there_may_be(tmp_path: Path) -> None:
    prompt = blocks(1, 2, 3, 4, 5, 6)
    first = make_cache(tmp_path, slots=6, frames=6)
    serve(first, prompt)
    first.close_store()
    cache = make_cache(tmp_path, slots=6, frames=3)
    sequence = cache.open(prompt)
    assert sequence.num_computed == 6 * BLOCK
    (pager,) = cache.pool.disk.pagers.values()
    assert pager.parts(Spans.pack([Span(6 * BLOCK - 1, 1, sequence.slots)], BLOCK), None)[0] == 2
    list(read_blocks(cache.pool, OWNER, [(tuple(prompt[:-1]), sequence.slots)], None))
    cache.close(sequence)
    cache.close_store()
