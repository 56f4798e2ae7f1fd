"""The block store against a naive account of it: a dictionary in which every mark is set on every block of a chain."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, multiple, rule

from freehold.cache.prefix import ROOT
from freehold.core.errors import DamagedBlockError
from support.stored_blocks import BLOCK, RECORD_BYTES, open_store, overwrite, put, read_block, stored_keys


@dataclass
class NaiveStore:
    """Keys, their parents as far as they were ever seen, and a clock."""

    limit: int
    parents: dict[bytes, bytes] = field(default_factory=dict)
    stored: set[bytes] = field(default_factory=set)
    used: dict[bytes, int] = field(default_factory=dict)
    pins: set[bytes] = field(default_factory=set)
    held: list[bytes] = field(default_factory=list)
    now: int = 0

    def chain(self, key: bytes) -> list[bytes]:
        """The block and those before it, as far as no damaged one is missing between them."""
        keys = []
        while key in self.stored:
            keys.append(key)
            key = self.parents[key]
        return keys

    def touch(self, key: bytes) -> None:
        self.now += 1
        self.used.update(dict.fromkeys(self.chain(key), self.now))

    def pinned(self) -> set[bytes]:
        return {key for pin in self.pins for key in self.chain(pin)}

    def leaves(self) -> set[bytes]:
        return self.stored - {self.parents[key] for key in self.stored}

    def is_reachable(self, key: bytes) -> bool:
        return key in self.stored and self.parents[self.chain(key)[-1]] == ROOT

    def shrink(self, most: int, keep: bytes) -> None:
        while len(self.stored) > most:
            pinned = self.pinned()
            free = self.leaves() - set(self.held) - {keep}
            if not free:
                return
            # Blocks on both sides of a lost one were last used at the same moment; their keys decide.
            self.remove(min(free, key=lambda key: (key in pinned, self.used[key], key)))

    def remove(self, key: bytes) -> None:
        parent = self.parents[key]
        if any(key in self.chain(pin) for pin in self.pins) and parent in self.stored:
            self.pins.add(parent)
        self.pins.discard(key)
        self.stored.remove(key)

    def put(self, parent: bytes, key: bytes) -> None:
        self.parents[key] = parent
        if key in self.stored or not (parent == ROOT or parent in self.stored):
            return
        self.shrink(self.limit - 1, keep=parent)
        if len(self.stored) < self.limit:
            self.stored.add(key)
            self.touch(key)

    def restart(self, limit: int) -> None:
        self.limit = limit
        self.held.clear()
        self.stored = set(filter(self.is_reachable, self.stored))
        self.pins &= self.stored
        self.shrink(limit, keep=ROOT)


class StoreMachine(RuleBasedStateMachine):
    """Random puts, marks, reads, damage, restarts and crashes."""

    known = Bundle("known")

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.directory = Path(self.folder.name) / "0"
        self.naive = NaiveStore(limit=6)
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
