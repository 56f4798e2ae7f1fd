"""A naive account of the block cache: dictionaries of token prefixes instead of slots, frames, trees and files."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from itertools import takewhile

from freehold.cache.prefix import ROOT
from freehold.core.axes import ceil_div
from support.cached_blocks import BLOCK, RESIDENT_PARTS, Prefix, before, key_of
from support.naive_store import NaiveStore

Key = tuple[bytes, bytes, Prefix]
"""A stored block: the hash by which the store calls it, whose it is, and the tokens up to its end."""


def common_length(some: Sequence[int], others: Sequence[int]) -> int:
    """How many leading tokens are the same."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(some, others, strict=False)))


@dataclass(eq=False)
class NaiveSequence:
    """Tokens, how many of them are computed, how many blocks are shared, and how many blocks there are."""

    tokens: list[int]
    share: bool
    computed: int = 0
    shared: int = 0
    blocks: int = 0

    def at(self, blocks: int) -> Prefix:
        """The first blocks."""
        return tuple(self.tokens[: blocks * BLOCK])

    @property
    def base(self) -> Prefix:
        """Its shared blocks."""
        return self.at(self.shared)


@dataclass
class Copying:
    """What happened to frames while K and V were written, read or copied; that cannot be foreseen without an account
    of frames.

    events: "wait" for the disk, "learn" what is on it, or a block that was evicted for its frames; in order.
    refused: there was no frame, or nothing could be read. lost: blocks whose K and V are lost.
    """

    events: list[str | Prefix] = field(default_factory=list)
    refused: bool = False
    lost: list[Prefix] = field(default_factory=list)


@dataclass
class NaiveDisk:
    """What is stored of all owners, what is damaged there, and what is on its way.

    waiting: blocks of `owner` in order; of them `taken` have been taken by the store, which takes `most_taken`.
    """

    store: NaiveStore[Key]
    owner: bytes
    most_taken: int
    slow: bool = False
    full: bool = False
    taken: int = 0
    waiting: list[Prefix] = field(default_factory=list)
    damaged: dict[Key, set[str]] = field(default_factory=dict)
    backed: set[Prefix] = field(default_factory=set)
    """Blocks in memory that were stored without a break since they were computed or restored."""

    def key(self, prefix: Prefix) -> Key:
        """What the store calls a prefix of whole blocks."""
        return key_of(prefix), self.owner, prefix

    def has(self, prefix: Prefix) -> bool:
        """Whether the block is stored, damaged or not."""
        return self.key(prefix) in self.store.stored

    def is_damaged(self, prefix: Prefix, parts: Collection[str]) -> bool:
        """Whether one of these parts is damaged and nobody has noticed."""
        return self.has(prefix) and bool(self.damaged.get(self.key(prefix), set()) & set(parts))

    def prefixes(self) -> set[Prefix]:
        """What is stored for the owner."""
        return {prefix for _, owner, prefix in self.store.stored if owner == self.owner}

    def put(self, prefix: Prefix) -> None:
        """Stores a block, if the disk can."""
        parent = self.key(before(prefix)) if before(prefix) else ROOT
        self.store.put(parent, self.key(prefix), full=self.full)
        self.sort_out()
        if self.has(prefix):
            self.backed.add(prefix)

    def drop(self, prefix: Prefix) -> None:
        """A damaged block was noticed."""
        self.store.remove(self.key(prefix))
        self.sort_out()

    def sort_out(self) -> None:
        """Forgets what is said of blocks that are not stored any more."""
        self.damaged = {key: parts for key, parts in self.damaged.items() if key in self.store.stored}
        self.backed = set(filter(self.has, self.backed))

    def poll(self) -> None:
        """Hands over what the store takes; one that is not slow writes it at once."""
        self.taken = min(self.most_taken, len(self.waiting))
        if not self.slow:
            self.write_taken()

    def write_taken(self) -> None:
        """Writes what was taken."""
        for prefix in self.waiting[: self.taken]:
            self.put(prefix)
        del self.waiting[: self.taken]
        self.taken = 0

    def wait(self) -> None:
        """Until nothing is on its way."""
        while self.waiting:
            self.taken = min(self.most_taken, len(self.waiting))
            self.write_taken()


class NaiveCache:
    """kept: the prefixes whose last block is in memory, oldest first, and when they were used: a use is marked on
    every block of a chain. saving: those that may not be evicted because they are on their way, as far as is known.

    quiet: nothing was evicted, lost or refused room since the start.
    """

    def __init__(self, num_slots: int, disk: NaiveDisk) -> None:
        self.num_slots, self.disk = num_slots, disk
        self.restart()

    def restart(self) -> None:
        """A new process: memory is empty, and nothing is on its way."""
        self.disk.waiting.clear()
        self.hit_tokens = self.restored_tokens = self.computed_tokens = 0
        self.clear()

    def clear(self) -> None:
        """Memory is empty."""
        self.kept: dict[Prefix, int] = {}
        self.open: list[NaiveSequence] = []
        self.saving: set[Prefix] = set()
        self.quiet = True
        self._now = 0
        self._borrowed = 0  # slots taken by nobody yet
        self._held: set[Prefix] = set()  # blocks that may not be evicted during an operation

    # Room.

    @property
    def free(self) -> int:
        """Slots that nobody has: a shared block takes one, however many use it."""
        own = sum(sequence.blocks - sequence.shared for sequence in self.open)
        return self.num_slots - len(self.kept) - own - self._borrowed

    def children(self, prefix: Prefix) -> list[Prefix]:
        """The kept blocks after a prefix of whole blocks, oldest first."""
        return [p for p in self.kept if before(p) == prefix]

    def is_used(self, prefix: Prefix) -> bool:
        """Whether an open sequence uses a kept block."""
        return len(prefix) % BLOCK == 0 and any(s.base[: len(prefix)] == prefix for s in self.open)

    def is_idle(self, prefix: Prefix) -> bool:
        """Whether a kept block may be evicted."""
        busy = prefix in self.saving or prefix in self._held
        return not (busy or self.is_used(prefix) or self.children(prefix))

    def make_room(self, wanted: int) -> bool:
        """Evicts the blocks used least recently; waits for the disk where there are no others."""
        while self.free < wanted:
            idle = list(filter(self.is_idle, self.kept))
            if not idle and self.saving:
                self.settle()
                continue
            self.quiet = False
            if not idle:
                return False
            self.evict(min(idle, key=self.kept.__getitem__))
        return True

    def evict(self, prefix: Prefix) -> None:
        """A block leaves memory."""
        self.quiet = False
        del self.kept[prefix]
        self.disk.backed.discard(prefix)

    def keep(self, prefix: Prefix) -> None:
        """A block comes into memory."""
        self.kept[prefix] = 0
        self.touch(prefix)

    def touch(self, prefix: Prefix) -> None:
        """A block and all before it are used now."""
        self._now += 1
        while prefix:
            self.kept[prefix] = self._now
            prefix = before(prefix)

    # The disk.

    def settle(self) -> None:
        """Waits for the disk."""
        self.disk.wait()
        self.saving.clear()

    def poll(self) -> None:
        """Learns what is on the disk."""
        self.disk.poll()
        self.saving.intersection_update(self.disk.waiting)

    def see(self, copying: Copying) -> None:
        """Learns what happened to frames; blocks gave way only if that freed some."""
        for event in copying.events:
            if event == "wait":
                self.disk.wait()
            elif event == "learn":
                self.saving.intersection_update(self.disk.waiting)
            elif not isinstance(event, str):
                self._give_way(event)
        copying.events.clear()

    def _give_way(self, prefix: Prefix) -> None:
        assert self.is_idle(prefix), "a block that is used was evicted"
        chain = [prefix]
        while before(chain[-1]):
            chain.append(before(chain[-1]))
        assert not set(chain) <= self.disk.backed, "a block was evicted for its frames, which it could leave"
        self.evict(prefix)

    # What the engine does.

    def chain(self, tokens: Sequence[int], end: int) -> list[Prefix]:
        """The kept whole blocks that tokens[:end] begins with."""
        wholes = (tuple(tokens[:n]) for n in range(BLOCK, end + 1, BLOCK))
        return list(takewhile(self.kept.__contains__, wholes))

    def closest(self, sequence: NaiveSequence) -> tuple[Prefix | None, int]:
        """The kept block that goes on most like a sequence after its shared ones, the newest of equals, and for how
        many tokens: the last one is computed in any case."""
        tail = sequence.tokens[sequence.shared * BLOCK : min((sequence.shared + 1) * BLOCK, len(sequence.tokens) - 1)]
        best, most = None, 0
        for child in self.children(sequence.base):
            length = common_length(child[len(sequence.base) :], tail)
            if length >= most:
                best, most = child, length
        return best, most

    def start(
        self,
        tokens: Sequence[int],
        *,
        share: bool,
        order: Sequence[Prefix],
        fails: bool,
        copying: Copying,
    ) -> NaiveSequence:
        """A sequence that finds what is there.

        order: stored blocks in the order in which the store names them: of equals it takes the first. fails: nothing
        can be read now.
        """
        sequence = NaiveSequence(list(tokens), share)
        self.open.append(sequence)
        if share:
            self._restore(sequence.tokens, order, fails)
            self.adopt(sequence, copying)
        self._held.clear()
        return sequence

    def _restore(self, tokens: list[int], order: Sequence[Prefix], fails: bool) -> None:
        end = len(tokens) - 1
        chain = self.chain(tokens, end)
        base = chain[-1] if chain else ()
        self._held.update(chain)
        wholes = (tuple(tokens[:n]) for n in range(len(base) + BLOCK, end + 1, BLOCK))
        found = list(takewhile(self.disk.has, wholes))
        last = found[-1] if found else base
        tail = tokens[len(last) : min(len(last) + BLOCK, end)]
        lengths = {p: common_length(p[len(last) :], tail) for p in order if before(p) == last}
        most = max(lengths.values(), default=0)
        kept = max((common_length(p[len(base) :], tail) for p in self.children(base)), default=0)
        if most > (0 if found else kept):
            found.append(next(p for p, length in lengths.items() if length == most))
        while self._borrowed < len(found) and self.make_room(1):
            self._borrowed += 1
        del found[self._borrowed :]
        self._borrowed = 0
        if fails:
            return
        bad = [p for p in found if not self.disk.has(p) or self.disk.is_damaged(p, RESIDENT_PARTS)]
        for prefix in filter(self.disk.has, bad):
            self.quiet = False
            self.disk.drop(prefix)
        for prefix in takewhile(lambda p: p not in bad, found):
            self.keep(prefix)
            self._held.add(prefix)
            self.disk.backed.add(prefix)
            self.restored_tokens += BLOCK

    def adopt(self, sequence: NaiveSequence, copying: Copying) -> None:
        """Takes over what is kept."""
        old = sequence.computed
        if not self.children(sequence.base):
            return
        sequence.shared = len(self.chain(sequence.tokens, len(sequence.tokens) - 1))
        sequence.blocks = max(sequence.blocks, sequence.shared)
        sequence.computed = max(old, len(sequence.base))
        if sequence.blocks == sequence.shared:
            child, length = self.closest(sequence)
            if child is not None and length:
                self._held.add(child)
                if self.make_room(1):
                    self.see(copying)
                    if not copying.refused and not copying.lost:
                        sequence.blocks += 1
                        sequence.computed += length
                self._held.clear()
                if copying.lost:
                    self.lose(copying.lost)
        self.hit_tokens += sequence.computed - old

    def reserve(self, sequence: NaiveSequence, num_tokens: int) -> bool:
        """Room for the first tokens."""
        missing = ceil_div(num_tokens, BLOCK) - sequence.blocks
        if missing > 0 and not self.make_room(missing):
            return False
        sequence.blocks += max(missing, 0)
        return True

    def compute(self, sequence: NaiveSequence, num_tokens: int) -> None:
        """The first tokens are computed."""
        self.computed_tokens += num_tokens - sequence.computed
        sequence.computed = num_tokens
        while sequence.share and (sequence.shared + 1) * BLOCK <= num_tokens:
            prefix = sequence.at(sequence.shared + 1)
            sequence.shared += 1
            if prefix not in self.kept:
                self.keep(prefix)
                self.saving.add(prefix)
                self.disk.waiting.append(prefix)
                self.disk.poll()

    def close(self, sequence: NaiveSequence) -> None:
        """A sequence ends; what it had is kept, the tokens of an unfinished block too."""
        self.open.remove(sequence)
        if sequence.share:
            self._keep_tail(sequence)
            self.touch(sequence.base)
            if sequence.base and self.disk.has(sequence.base):
                self.disk.store.touch(self.disk.key(sequence.base))

    def _keep_tail(self, sequence: NaiveSequence) -> None:
        whole = tuple(sequence.tokens[: sequence.computed])
        if whole == sequence.base:
            return
        for child in self.children(sequence.base):
            if child[: len(whole)] == whole:
                return
            if whole[: len(child)] == child and self.is_idle(child):
                del self.kept[child]
        self.keep(whole)

    def lose(self, lost: Collection[Prefix]) -> None:
        """K and V of blocks turned out lost when they were read, which happens only where the disk had lost them, be
        it a moment before, for want of space: where that is damage, it was noticed."""
        for prefix in lost:
            if prefix in self.disk.backed:
                assert self.disk.is_damaged(prefix, ["1/kv"]), f"{len(prefix)} tokens lost"
                self.disk.drop(prefix)
        self.forget(lost)

    def forget(self, lost: Collection[Prefix]) -> None:
        """Blocks are not to be used any more, nor all that follows them."""
        self.settle()
        for prefix in lost:
            whole = len(prefix) % BLOCK == 0
            for kept in [k for k in self.kept if k == prefix or (whole and k[: len(prefix)] == prefix)]:
                self.evict(kept)
            for sequence in self.open:
                if whole and sequence.base[: len(prefix)] == prefix:
                    sequence.shared = sequence.blocks = len(before(prefix)) // BLOCK
                    sequence.computed = len(before(prefix))

    def order_of(self, children: Callable[[Prefix], list[Prefix]]) -> list[Prefix]:
        """Every stored block, those after one block in the order of `children`."""
        parents = dict.fromkeys(before(p) for p in sorted(self.disk.prefixes()))
        return [child for parent in parents for child in children(parent)]
