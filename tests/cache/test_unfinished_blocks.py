"""Unfinished blocks are never stored, so that each keeps a frame: they give way to whatever needs one."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
import torch

from freehold.cache import BlockCache, BlockPool, BlockStore
from support.cached_blocks import BLOCK, LAYOUT, OWNERS, SPECS, identity_of, write_tokens

OWNER = OWNERS[0]


def make_cache(directory: Path) -> BlockCache:
    """Twenty slots and four frames."""
    store = BlockStore(directory, identity_of(OWNER), LAYOUT, limit_bytes=None)
    pool = BlockPool(SPECS, num_slots=20, block_tokens=BLOCK, dtype=torch.float32, store=store, num_frames=4)
    return BlockCache(pool)


def serve(cache: BlockCache, tokens: list[int]) -> int:
    """Computes and closes; returns how many tokens were found."""
    sequence = cache.open(tokens)
    found = sequence.num_computed
    assert cache.reserve(sequence, len(tokens))
    write_tokens(cache.pool, OWNER, tokens, sequence.slots, found)
    cache.computed(sequence, len(tokens))
    cache.close(sequence)
    cache.check_integrity()
    return found


def test_more_unfinished_blocks_than_frames_are_no_error(tmp_path: Path) -> None:
    cache = make_cache(tmp_path)
    for number in range(12):
        assert serve(cache, [number] * 9) == 0
    assert cache.stats().num_kept == 4  # the newest: as many as there are frames
    assert serve(cache, [11] * 9) == 8
    cache.close_store()


def test_blocks_that_cannot_be_read_now_are_computed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = [1] * BLOCK + [2] * BLOCK + [3]
    cache = make_cache(tmp_path)
    serve(cache, tokens)
    cache.close_store()

    def no_more(*_: object) -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    cache = make_cache(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(os, "preadv", no_more)
        assert cache.open(tokens).num_computed == 0
        cache.check_integrity()
    assert cache.open(tokens).num_computed == 2 * BLOCK  # they are still there
    assert cache.pool.disk is not None
    assert cache.pool.disk.store.damage.events == ()
    cache.close_store()


def test_the_unfinished_block_used_longest_ago_gives_way(tmp_path: Path) -> None:
    cache = make_cache(tmp_path)
    for number in (1, 2, 3, 4):  # a frame each
        serve(cache, [number] * 9)
    serve(cache, [5] * 9)
    assert {node.tokens[0] for node in cache.tree} == {2, 3, 4, 5}
    cache.close_store()
