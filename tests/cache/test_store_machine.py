"""The block store against a naive account of it."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, multiple, rule

from freehold.cache.prefix import ROOT
from freehold.core.errors import DamagedBlockError
from support.naive_store import NaiveStore
from support.stored_blocks import BLOCK, RECORD_BYTES, open_store, overwrite, put, read_block, stored_keys


class StoreMachine(RuleBasedStateMachine):
    """Random puts, marks, reads, damage, restarts and crashes."""

    known = Bundle("known")

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.directory = Path(self.folder.name) / "0"
        self.naive: NaiveStore[bytes] = NaiveStore(limit=6)
        self.store = open_store(self.directory, blocks=6)

    @initialize(target=known)
    def root(self) -> bytes:
        return ROOT

    @rule(target=known, parent=known, tokens=st.lists(st.integers(0, 2), min_size=1, max_size=3))
    def put_blocks(self, parent: bytes, tokens: list[int]):
        keys = []
        for token in tokens:
            key = put(self.store, parent, [token] * BLOCK)
            self.store.flush()
            self.naive.put(parent, key)
            (done,) = self.store.completed()
            assert (done.key, done.stored) == (key, key in self.naive.stored)
            keys.append(key)
            parent = key
        return multiple(*keys)

    @rule(key=known)
    def read(self, key: bytes) -> None:
        assert read_block(self.store, key) == (key in self.naive.stored)

    @rule(key=known)
    def touch(self, key: bytes) -> None:
        assert self.store.touch(key) == (key in self.naive.stored)
        if key in self.naive.stored:
            self.naive.touch(key)

    @rule(key=known, pinned=st.booleans())
    def pin(self, key: bytes, pinned: bool) -> None:
        done = self.store.pin(key) if pinned else self.store.unpin(key)
        assert done == (key in self.naive.stored)
        if done:
            (self.naive.pins.add if pinned else self.naive.pins.discard)(key)

    @rule(key=known)
    def hold(self, key: bytes) -> None:
        assert self.store.hold(key) == (key in self.naive.stored)
        if key in self.naive.stored:
            self.naive.held.append(key)

    @rule(data=st.data())
    def release(self, data) -> None:
        if self.naive.held:
            key = data.draw(st.sampled_from(self.naive.held))
            self.naive.held.remove(key)
            self.store.release(key)

    @rule(key=known, part=st.sampled_from(["0/kv", "0/index", "1/kv"]))
    def damage(self, key: bytes, part: str) -> None:
        record = self.store.find(key)
        if record is not None:
            before = self.store.damage.num_events
            overwrite(self.directory, record, part)
            with pytest.raises(DamagedBlockError):
                self.store.read(record, part, bytearray(dict(self.store.layout.parts)[part]))
            assert self.store.damage.num_events == before + 1
            self.naive.remove(key)

    @rule(limit=st.integers(2, 9))
    def restart(self, limit: int) -> None:
        self.store.close()
        self._open(limit)

    @rule(limit=st.integers(2, 9))
    def crash(self, limit: int) -> None:
        """What lies on the disk without a proper end, marks included."""
        self.store.flush()
        directory = self.directory.with_name(str(int(self.directory.name) + 1))
        shutil.copytree(self.directory, directory)
        self.store.close()
        shutil.rmtree(self.directory)
        self.directory = directory
        self._open(limit)

    def _open(self, limit: int) -> None:
        self.store = open_store(self.directory, blocks=limit)
        assert self.store.damage.events == ()
        self.store.flush()
        self.naive.restart(limit)

    @invariant()
    def both_agree(self) -> None:
        self.store.check_integrity()
        assert set(stored_keys(self.store)) == set(filter(self.naive.is_reachable, self.naive.stored))
        stats = self.store.stats()
        assert (stats.num_blocks, stats.nbytes) == (len(self.naive.stored), len(self.naive.stored) * RECORD_BYTES)

    def teardown(self) -> None:
        self.store.close()
        self.folder.cleanup()


TestStoreMachine = StoreMachine.TestCase
TestStoreMachine.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


@pytest.mark.slow
class TestStoreMachineForLonger(StoreMachine.TestCase):
    settings = settings(max_examples=500, stateful_step_count=50, deadline=None)
