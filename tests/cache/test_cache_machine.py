"""The whole block cache, prefix tree, store and pager together, against a naive account of it: what was computed is
found, in memory or on the disk, with the right bytes or not at all, and every slot and frame has one owner."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from collections.abc import Sequence as Items
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from freehold.cache import BlockCache, BlockPool, BlockStore, Sequence
from freehold.cache.prefix import Node
from freehold.cache.record import Record
from freehold.cache.segments import Segments
from freehold.cache.shelf import shelf_path
from freehold.core.axes import ceil_div
from freehold.core.errors import CapacityError, DamagedBlockError, LostBlocksError, StoreError
from support.cached_blocks import (
    BLOCK,
    LAYOUT,
    OWNERS,
    SPECS,
    Prefix,
    SteppedStore,
    check_slot,
    identity_of,
    key_of,
    part_of,
    read_blocks,
    write_tokens,
)
from support.naive_cache import Copying, NaiveCache, NaiveDisk, NaiveSequence, common_length
from support.naive_store import NaiveStore

SLOTS = 10
MOST_OPEN = 3
MOST_TOKENS = 6 * BLOCK
MEMORY_DISK = Path("/dev/shm")  # a commit costs a thousandth there; this test is not about the physical disk

Runs = list[tuple[int, int]]
runs = st.lists(st.tuples(st.integers(0, 2), st.integers(1, 2 * BLOCK)), min_size=1, max_size=4)
"""Tokens, as (token, how often): so that texts are long and often begin alike."""
number = st.integers(0, 1 << 16)
"""Which of some things, counted round and round: a choice that does not depend on how many there are."""
cuts = st.integers(0, MOST_TOKENS)
rarely = st.sampled_from([False] * 7 + [True])


def spelled(parts: Runs) -> list[int]:
    """The tokens of `runs`."""
    return [token for token, times in parts for _ in range(times)]


class CacheMachine(RuleBasedStateMachine):
    """Random work of an engine, and random trouble of a disk."""

    store_type: type[BlockStore] = SteppedStore

    def __init__(self) -> None:
        super().__init__()
        self.patch = pytest.MonkeyPatch()
        self.folder = tempfile.TemporaryDirectory(dir=MEMORY_DISK if MEMORY_DISK.is_dir() else None)
        self.directory = Path(self.folder.name) / "0"
        self.full = self.no_descriptors = False
        self._fail_on_request()

    def _fail_on_request(self) -> None:
        allocate, preadv = Segments.allocate, os.preadv

        def checked_allocate(segments: Segments, slot: int) -> None:
            if self.full:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            allocate(segments, slot)

        def checked_preadv(*arguments: object) -> int:
            if self.no_descriptors:
                raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
            return preadv(*arguments)

        self.patch.setattr(Segments, "allocate", checked_allocate)
        self.patch.setattr(os, "preadv", checked_preadv)

    @initialize(frames=st.sampled_from([4, 6, SLOTS]), limit=st.integers(3, 9))
    def start(self, frames: int, limit: int) -> None:
        self.frames = frames
        disk = NaiveDisk(NaiveStore(limit), OWNERS[0], most_taken=SteppedStore.most_waiting)
        self.naive = NaiveCache(SLOTS, disk)
        self.texts: list[Prefix] = [()]
        self.open_store(limit)

    def open_store(self, limit: int) -> None:
        """A new process: memory is empty, and the disk is as it was left."""
        self.store = self.store_type(
            self.directory, identity_of(self.owner), LAYOUT, limit_bytes=limit * LAYOUT.record_bytes
        )
        self.store.flush()
        if isinstance(self.store, SteppedStore):
            self.store.slow = self.naive.disk.slow
        pool = BlockPool(
            SPECS, num_slots=SLOTS, block_tokens=BLOCK, dtype=torch.float32, store=self.store, num_frames=self.frames
        )
        self.cache = BlockCache(pool)
        (self.pager,) = pool.disk.pagers.values()
        self.pairs: list[tuple[Sequence, NaiveSequence]] = []
        self.done: list[Prefix] = []  # what was computed and closed in this process
        self.naive.disk.store.restart(limit)
        self.naive.disk.sort_out()
        self.naive.disk.backed.clear()
        self.naive.restart()
        self.watch()

    def watch(self) -> None:
        """Notes what happens to frames."""
        self.seen = Copying()
        pool, disk = self.cache.pool, self.cache.pool.disk
        forget, copy, wait, give_way = self.cache.forget, pool.copy, disk.wait, disk.give_way

        copied = -1

        def watched_forget(slots: Items[int]) -> None:
            self.seen.lost += [self.prefix_of(node) for node in self.cache.tree if node.slot in slots]
            before = len(self.seen.events)
            forget(slots)
            # Forgetting waits for the disk, and `NaiveCache.lose` does: after the damage was noticed, not before.
            del self.seen.events[before:]

        def watched_wait() -> None:
            self.seen.events.append("wait")
            wait()

        def watched_give_way() -> bool:
            before = {self.prefix_of(node): node.slot for node in self.cache.tree}
            unstored = [
                p
                for p, slot in before.items()
                if not disk.is_stored(slot) and self.naive.is_idle(p) and slot != copied  # what is copied is held
            ]
            gave_way = give_way()
            gone = before.keys() - {self.prefix_of(node) for node in self.cache.tree}
            assert len(gone) == gave_way
            for prefix in gone:
                others = [p for p in unstored if p in self.naive.kept and p not in self.seen.events]
                assert all(self.naive.kept[prefix] <= self.naive.kept[p] for p in others), "a newer block gave way"
            self.seen.events += ["learn", *gone]
            return gave_way

        def watched_copy(source: int, target: int) -> None:
            nonlocal copied
            copied = source
            try:
                copy(source, target)
            except LostBlocksError:
                raise
            except (CapacityError, StoreError) as error:
                self.seen.refused = True
                self.check_refusal(error, 2)  # the copied block may need one, too
                raise
            finally:
                copied = -1

        self.patch.setattr(self.cache, "forget", watched_forget)
        self.patch.setattr(pool, "copy", watched_copy)
        self.patch.setattr(disk, "wait", watched_wait)
        self.patch.setattr(disk, "give_way", watched_give_way)

    @property
    def owner(self) -> bytes:
        """Whose blocks the process works with."""
        return self.naive.disk.owner

    def prefix_of(self, node: Node | None) -> Prefix:
        """The tokens that lead to a block, its own included."""
        tokens: Prefix = ()
        while node is not None:
            tokens, node = node.tokens + tokens, node.parent
        return tokens

    def record_of(self, prefix: Prefix) -> Record:
        """The record of a stored block."""
        record = self.store.find(key_of(prefix))
        assert record is not None
        return record

    def stored(self) -> list[Prefix]:
        """What is stored, in an order that does not change from run to run."""
        return sorted(self.naive.disk.prefixes())

    # The engine.

    @contextmanager
    def without_descriptors(self, really: bool) -> Iterator[None]:
        """Nothing can be read from the disk, and nothing is wrong with it."""
        self.no_descriptors = really
        try:
            yield
        finally:
            self.no_descriptors = False

    @precondition(lambda self: len(self.pairs) < MOST_OPEN)
    @rule(text=number, cut=cuts, end=runs, answer=runs, chunk=st.integers(5, 2 * BLOCK))
    def serve(self, text: int, cut: int, end: Runs, answer: Runs, chunk: int) -> None:
        """A whole request."""
        self.begin_to_serve(text, cut, end, answer, chunk)
        self.close(-1)

    @precondition(lambda self: len(self.pairs) < MOST_OPEN)
    @rule(text=number, cut=cuts, end=runs, answer=runs, chunk=st.integers(5, 2 * BLOCK))
    def begin_to_serve(self, text: int, cut: int, end: Runs, answer: Runs, chunk: int) -> None:
        """A request that may end later: the prompt in chunks, the answer token by token."""
        self.open(text, cut, end, not_shared=False, fails=False)
        sequence, _ = self.pairs[-1]
        for token in [None, *spelled(answer)[:5]]:
            if token is not None:
                self.append(-1, [token])
            while sequence.num_computed < len(sequence.tokens) and self.advance(-1, chunk, reads=True):
                pass

    @precondition(lambda self: len(self.pairs) < MOST_OPEN)
    @rule(text=number, cut=cuts, end=runs, not_shared=rarely, fails=rarely)
    def open(self, text: int, cut: int, end: Runs, not_shared: bool, fails: bool) -> None:
        """A prompt that begins like an earlier one, or like one that is being answered."""
        share = not not_shared
        texts = [*self.texts, *(tuple(sequence.tokens) for sequence, _ in self.pairs)]
        tokens = [*texts[text % len(texts)][:cut], *spelled(end)][:MOST_TOKENS] or [0]
        order = self.naive.order_of(self.stored_children)
        self.seen = Copying()
        with self.without_descriptors(fails):
            sequence = self.cache.open(tokens, share=share)
        naive = self.naive.start(tokens, share=share, order=order, fails=fails, copying=self.seen)
        self.pairs.append((sequence, naive))
        assert sequence.num_computed < len(tokens)
        if share and self.naive.quiet and not fails and not self.seen.refused:
            assert sequence.num_computed >= max((common_length(text, tokens[:-1]) for text in self.done), default=0)

    def stored_children(self, prefix: Prefix) -> list[Prefix]:
        """The stored blocks after one, as the store has them."""
        return [prefix + record.tokens for record in self.store.children(key_of(prefix))]

    def pair(self, which: int) -> tuple[Sequence, NaiveSequence]:
        """One of the open sequences."""
        return self.pairs[which % len(self.pairs)]

    def append(self, which: int, tokens: list[int]) -> None:
        """Tokens that were sampled."""
        for sequence in self.pair(which):
            sequence.tokens += tokens

    @precondition(lambda self: self.pairs)
    @rule(which=number, length=st.integers(1, 2 * BLOCK), token=st.integers(0, 2), reads=st.booleans())
    def compute(self, which: int, length: int, token: int, reads: bool) -> None:
        """A chunk of a prompt, or the next token of an answer."""
        sequence, _ = self.pair(which)
        if sequence.num_computed == len(sequence.tokens):
            self.append(which, [token])
        self.advance(which, length, reads)

    def advance(self, which: int, length: int, reads: bool) -> bool:
        """Computes the next tokens, and attention reads every block. False if there is no room for that; where
        blocks were lost under way it is to be tried again."""
        sequence, naive = self.pair(which)
        end = min(sequence.num_computed + length, len(sequence.tokens))
        self.seen = Copying()
        room = self.cache.reserve(sequence, end)
        assert room == self.naive.reserve(naive, end)
        if room and self.forward([which], lambda: self.write(sequence, end, reads)):
            self.cache.computed(sequence, end)
            self.naive.compute(naive, end)
            return True
        return bool(self.seen.lost)

    def write(self, sequence: Sequence, end: int, reads: bool) -> None:
        tokens = sequence.tokens[:end]
        write_tokens(self.cache.pool, self.owner, tokens, sequence.slots, sequence.num_computed)
        if reads:
            list(read_blocks(self.cache.pool, self.owner, [(tuple(tokens), sequence.slots)], None))

    def forward(self, which: Items[int], work: Callable[[], None]) -> bool:
        """Does something that needs frames, as the engine does; False if it was not done."""
        self.seen = Copying()
        done = False
        try:
            work()
            done = True
        except LostBlocksError as error:
            self.naive.see(self.seen)
            self.cache.forget(error.slots)
            assert self.seen.lost
            self.naive.lose(self.seen.lost)
        except (CapacityError, StoreError) as error:
            self.check_refusal(error, sum(ceil_div(len(self.pair(w)[0].tokens), BLOCK) for w in which))
        self.naive.see(self.seen)
        return done

    def check_refusal(self, error: Exception, wanted: int) -> None:
        """Frames may be refused only while blocks that are in use and cannot be read again take the others."""
        if not isinstance(error, CapacityError):
            assert self.no_descriptors
            return
        clean = self.cache.pool.disk.clean()
        pinned = [slot for slot in range(SLOTS) if self.pager._frame_of[slot] >= 0 and not clean[slot]]
        assert len(pinned) + wanted > self.frames, f"{pinned} take {self.frames} frames"
        kept = {node.slot: node for node in self.cache.tree}
        idle = [slot for slot in pinned if slot in kept and self.cache.pool.references(slot) == 1]
        assert not idle, f"blocks in slots {idle} take frames, and nobody uses them"

    @precondition(lambda self: self.pairs)
    @rule(which=st.lists(number, min_size=1, max_size=2), chosen=st.none() | st.lists(number, min_size=1, max_size=4))
    def read(self, which: list[int], chosen: list[int] | None) -> None:
        """Attention over chosen blocks of one or two sequences."""
        which = [w for w in which if self.pair(w)[0].num_computed]
        if which:
            pieces = [(tuple(s.tokens[: s.num_computed]), s.slots) for s, _ in map(self.pair, which)]
            self.forward(which, lambda: list(read_blocks(self.cache.pool, self.owner, pieces, chosen)))

    @precondition(lambda self: self.pairs)
    @rule(which=number)
    def adopt(self, which: int) -> None:
        """Takes over what others have computed since."""
        sequence, naive = self.pair(which)
        if naive.share and len(sequence.tokens) - sequence.num_computed > 1:
            self.seen = Copying()
            self.cache.adopt(sequence)
            self.naive.adopt(naive, self.seen)

    @precondition(lambda self: self.pairs)
    @rule(which=number)
    def close(self, which: int) -> None:
        """An answer is finished, or cancelled."""
        sequence, naive = self.pair(which)
        self.pairs.remove((sequence, naive))
        self.texts = [*self.texts[-20:], tuple(sequence.tokens)]
        if naive.share:
            self.done.append(tuple(sequence.tokens[: sequence.num_computed]))
        self.cache.close(sequence)
        self.naive.close(naive)

    @rule(kind=st.sampled_from(["poll", "poll", "settle", "press", "forget"]), which=number)
    def maintain(self, kind: str, which: int) -> None:
        """What happens beside the answers."""
        if kind == "poll":
            self.cache.poll()
            self.naive.poll()
        elif kind == "settle":
            self.cache.forget(())
            self.naive.settle()
        elif kind == "press":
            self.press(1 + which % SLOTS)
        elif self.naive.kept:
            self.forget(which)

    def press(self, blocks: int) -> None:
        """Somebody needs room, and gives it back."""
        tokens = [0] * (blocks * BLOCK)
        sequence = self.cache.open(tokens, share=False)
        naive = self.naive.start(tokens, share=False, order=[], fails=False, copying=Copying())
        assert self.cache.reserve(sequence, len(tokens)) == self.naive.reserve(naive, len(tokens))
        self.cache.close(sequence)
        self.naive.close(naive)

    def forget(self, which: int) -> None:
        """A block in memory cannot be used any more."""
        kept = sorted(self.naive.kept)
        prefix = kept[which % len(kept)]
        self.cache.forget([node.slot for node in self.cache.tree if self.prefix_of(node) == prefix])
        self.naive.forget([prefix])

    # The disk.

    @rule(slow=st.booleans(), full=rarely)
    def change(self, slow: bool, full: bool) -> None:
        """The disk is slow or not, and others take all its space or give it back."""
        self.full = self.naive.disk.full = full
        self.naive.disk.slow = slow
        if isinstance(self.store, SteppedStore):
            self.store.slow = slow

    @precondition(lambda self: self.naive.disk.prefixes())
    @rule(
        kind=st.sampled_from(["change", "change", "change", "cut", "pin", "unpin"]),
        which=number,
        part=st.sampled_from(sorted(LAYOUT.places)),
        byte=st.integers(0, 703),
    )
    def touch_store(self, kind: str, which: int, part: str, byte: int) -> None:
        """A stored block is pinned, or damaged behind the store's back."""
        stored = self.stored()
        prefix = stored[which % len(stored)]
        if kind == "change":
            self.change_byte(prefix, part, byte)
        elif kind == "cut":
            self.cut_off(prefix, part)
        elif kind == "pin":
            assert self.store.pin(key_of(prefix))
            self.naive.disk.store.pins.add(self.naive.disk.key(prefix))
        else:
            assert self.store.unpin(key_of(prefix))
            self.naive.disk.store.pins.discard(self.naive.disk.key(prefix))

    def change_byte(self, prefix: Prefix, part: str, byte: int) -> None:
        """A byte on the disk changes, and nobody says so."""
        path, offset = self.place_of(prefix, part)
        with path.open("r+b") as file:
            file.seek(offset + byte)
            (old,) = file.read(1)
            file.seek(offset + byte)
            file.write(bytes([(old + 1) % 256]))
        self.naive.disk.damaged.setdefault(self.naive.disk.key(prefix), set()).add(part)

    def place_of(self, prefix: Prefix, part: str) -> tuple[Path, int]:
        """The file of a stored block's part, and where in it that begins."""
        segment, index = divmod(self.record_of(prefix).slot, LAYOUT.slots_per_segment)
        path = shelf_path(self.directory, identity_of(self.owner)) / f"segment-{segment:06d}.blocks"
        return path, index * LAYOUT.record_bytes + LAYOUT.place(part).offset

    def cut_off(self, last: Prefix, part: str) -> None:
        """A data file loses its end, and somebody notices what that costs."""
        path, end = self.place_of(last, part)
        os.truncate(path, end + 7)
        for prefix in sorted(self.stored(), key=lambda p: self.record_of(p).slot):
            for name, nbytes in LAYOUT.parts:
                other, offset = self.place_of(prefix, name)
                if other == path and offset + nbytes > end + 7:
                    with pytest.raises(DamagedBlockError):
                        self.store.read(self.record_of(prefix), name, bytearray(nbytes))
                    self.naive.disk.drop(prefix)
                    break

    # Ends of processes.

    @rule(
        kind=st.sampled_from(["restart", "restart", "crash", "clear"]),
        limit=st.integers(3, 9),
        other=rarely,
        harm=st.sampled_from([None] * 4 + ["catalog.sqlite", "segment"]),
        which=number,
    )
    def end_process(self, kind: str, limit: int, other: bool, harm: str | None, which: int) -> None:
        if kind == "restart":
            self.restart(limit, other, harm, which)
        elif kind == "crash":
            self.crash(limit)
        else:
            self.clear()

    def clear(self) -> None:
        """The engine does not trust its books any more."""
        self.cache.clear()
        self.naive.disk.wait()
        self.naive.disk.backed.clear()
        self.naive.clear()
        self.pairs, self.done = [], []

    def restart(self, limit: int, other: bool, harm: str | None, which: int) -> None:
        """The next process may run another model, and find that files are gone."""
        self.cache.close_store()
        self.naive.settle()
        if other:
            self.naive.disk.owner = OWNERS[1 - OWNERS.index(self.owner)]
        shelf = shelf_path(self.directory, identity_of(self.owner))
        harmed = harm is not None and bool(sorted(shelf.glob("segment-*")))
        if harmed:
            self.lose_files(shelf, harm, which)
        self.open_store(limit)
        assert harmed or self.store.damage.events == ()

    def lose_files(self, shelf: Path, harm: str, which: int) -> None:
        """The catalog is deleted, and with it its marks; perhaps a data file too."""
        disk = self.naive.disk
        ours = {key for key in disk.store.stored if key[1] == self.owner}
        if harm == "segment":
            with BlockStore(self.directory, identity_of(self.owner), LAYOUT, limit_bytes=None) as store:
                records = {key: record for key in ours if (record := store.find(key[0])) is not None}
            segments = sorted(shelf.glob("segment-*"))
            if segments:
                lost = segments[which % len(segments)]
                lost.unlink()
                first = int(lost.stem.partition("-")[2]) * LAYOUT.slots_per_segment
                of_file = range(first, first + LAYOUT.slots_per_segment)
                disk.store.stored -= {key for key, record in records.items() if record.slot in of_file}
            disk.store.stored -= ours - records.keys()
            ours &= disk.store.stored
        for path in shelf.glob("catalog.sqlite*"):
            path.unlink()
        disk.store.lose_marks(ours)

    def crash(self, limit: int) -> None:
        """What lies on the disk without a proper end, marks included; what was on its way is lost."""
        BlockStore.flush(self.store)
        directory = self.directory.with_name(str(int(self.directory.name) + 1))
        shutil.copytree(self.directory, directory)
        self.store.close()
        shutil.rmtree(self.directory)
        self.directory = directory
        self.naive.disk.waiting.clear()
        self.open_store(limit)
        assert self.store.damage.events == ()

    # What always holds.

    @invariant()
    def both_agree(self) -> None:
        self.cache.check_integrity()
        assert {self.prefix_of(node) for node in self.cache.tree} == self.naive.kept.keys()
        for sequence, naive in self.pairs:
            assert sequence.tokens == naive.tokens
            assert (sequence.num_computed, sequence.num_shared, len(sequence.slots)) == (
                naive.computed,
                naive.shared,
                naive.blocks,
            )
        stats = self.cache.stats()
        assert (stats.num_free, stats.num_kept) == (self.naive.free, len(self.naive.kept))
        assert (stats.hit_tokens, stats.restored_tokens, stats.computed_tokens) == (
            self.naive.hit_tokens,
            self.naive.restored_tokens,
            self.naive.computed_tokens,
        )
        stored = self.stored()
        assert self.store.stats().num_blocks == len(stored)
        assert [prefix for prefix in stored if self.store.find(key_of(prefix)) is None] == []

    @invariant()
    def every_byte_is_right(self) -> None:
        for node in self.cache.tree:
            check_slot(self.cache.pool, self.owner, self.prefix_of(node), node.slot)
        for sequence, _ in self.pairs:
            for b in range(ceil_div(sequence.num_computed, BLOCK)):
                prefix = tuple(sequence.tokens[: min((b + 1) * BLOCK, sequence.num_computed)])
                check_slot(self.cache.pool, self.owner, prefix, sequence.slots[b])
        for prefix in self.stored():
            for name, nbytes in LAYOUT.parts:
                if not self.naive.disk.is_damaged(prefix, [name]):
                    path, offset = self.place_of(prefix, name)
                    with path.open("rb") as file:
                        file.seek(offset)
                        assert file.read(nbytes) == part_of(self.owner, prefix, name), f"wrong bytes of {name} on disk"

    @invariant()
    def slots_and_frames_have_one_owner(self) -> None:
        owners = [node.slot for node in self.cache.tree]
        for sequence, naive in self.pairs:
            owners += sequence.slots[naive.shared :]
        assert len(owners) == len(set(owners)) == SLOTS - self.naive.free
        frames = [int(frame) for frame in self.pager._frame_of if frame >= 0]
        assert len(frames) == len(set(frames))

    def teardown(self) -> None:
        try:
            if hasattr(self, "store"):
                self.end()
        finally:
            if hasattr(self, "store"):
                self.store.close()
            self.folder.cleanup()
            self.patch.undo()

    def end(self) -> None:
        """After closing everything all slots are free or kept, and all of them can be had."""
        while self.pairs:
            self.close(0)
        self.both_agree()
        stats = self.cache.stats()
        assert stats.num_free + stats.num_kept == SLOTS
        self.press(SLOTS)
        self.both_agree()
        assert self.cache.stats().num_free == SLOTS
        assert (self.pager._frame_of < 0).all()


def test_a_block_is_lost_if_its_stored_copy_gives_way_to_blocks_that_are_saved_while_room_is_made() -> None:
    """The disk loses it between the search for what is kept and the copy, so that nobody can have been told."""
    machine = CacheMachine()
    try:
        machine.start(frames=4, limit=7)
        machine.serve(text=0, cut=0, end=[(1, 4 * BLOCK)], answer=[], chunk=BLOCK)
        machine.begin_to_serve(text=0, cut=0, end=[(2, 3 * BLOCK)], answer=[], chunk=BLOCK)  # stays open
        machine.change(slow=True, full=False)
        machine.serve(text=0, cut=0, end=[(0, 3 * BLOCK)], answer=[], chunk=BLOCK)  # on its way to the disk
        machine.open(text=1, cut=4 * BLOCK - 3, end=[(2, 8)], not_shared=False, fails=False)
        assert machine.seen.lost == [(1,) * 4 * BLOCK]
        machine.both_agree()
        machine.every_byte_is_right()
    finally:
        machine.teardown()


TestCacheMachine = CacheMachine.TestCase
TestCacheMachine.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)


@pytest.mark.slow
class TestCacheMachineForLonger(CacheMachine.TestCase):
    settings = settings(max_examples=2000, stateful_step_count=60, deadline=None)
