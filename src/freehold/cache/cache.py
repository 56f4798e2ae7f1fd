"""The block cache: finds what is already computed, finds room for what is not, and keeps what was."""

from __future__ import annotations

import heapq
import logging
from collections.abc import Hashable
from collections.abc import Sequence as Items
from dataclasses import dataclass

from freehold.cache.pool import BlockPool
from freehold.cache.prefix import Node, PrefixTree
from freehold.cache.sequence import Sequence
from freehold.core.axes import ceil_div
from freehold.core.errors import CapacityError, LostBlocksError, StoreError
from freehold.core.events import MISS_TOKENS, Miss

_log = logging.getLogger("freehold.cache")


@dataclass(frozen=True, slots=True)
class CacheStats:
    """Blocks by state, and since the start: prompt tokens that were found, tokens whose blocks were
    read from the store, and tokens that were computed (of prompts and answers).

    num_blocks = num_free + num_kept + num_open; kept blocks may be evicted when they are not in use.
    """

    num_blocks: int
    num_free: int
    num_kept: int
    block_tokens: int
    hit_tokens: int
    restored_tokens: int
    computed_tokens: int


class BlockCache:
    """Shares computed blocks between sequences with a common beginning.

    A slot is held once by the tree, if its block is kept, and once by each open sequence that uses it.
    Kept blocks that no sequence uses are evicted, least recently used leaf first, when room is needed.
    """

    def __init__(self, pool: BlockPool) -> None:
        self.pool = pool
        self.tree = PrefixTree()
        self._open: set[Sequence] = set()
        # Kept leaves that no sequence uses, by (last use, slot, block). An entry may be outdated: it is looked at
        # again when it comes up. A block has at most one.
        self._idle: list[tuple[int, int, Node]] = []
        self._listed: set[Node] = set()
        self._saving: dict[int, Node] = {}  # blocks on their way to the store, by slot; their memory must not change
        self._hit_tokens = 0
        self._restored_tokens = 0
        self._computed_tokens = 0
        if pool.disk is not None:
            pool.disk.give_way = self._give_way

    @property
    def block_tokens(self) -> int:
        """Tokens in a block."""
        return self.pool.block_tokens

    @property
    def capacity_tokens(self) -> int:
        """Most tokens that one sequence can have."""
        return self.pool.num_slots * self.block_tokens

    @property
    def unshared_capacity_tokens(self) -> int:
        """Most tokens of a sequence without `share`: what is never stored cannot leave the memory."""
        return self.pool.num_frames * self.block_tokens

    def open(self, tokens: Items[int], *, share: bool = True) -> Sequence:
        """A sequence for `tokens`, with everything that is already computed.

        At least the last token is left to compute, because its logits are wanted. share=False finds nothing and
        shares nothing. May raise no error: a sequence needs room only when it grows (`reserve`).
        """
        sequence = Sequence(node=self.tree.root, tokens=list(tokens), share=share)
        self._open.add(sequence)
        if share:
            restored = self._restore(sequence.tokens)
            self.adopt(sequence)
            for node in restored:
                self.pool.release(node.slot)
                self._list(node)
        return sequence

    def _restore(self, tokens: list[int]) -> list[Node]:
        """Brings the stored blocks that follow the kept ones into the tree; each is held once more, so that making
        room for one does not evict another."""
        disk, size, end = self.pool.disk, self.block_tokens, len(tokens) - 1
        if disk is None:
            return []
        chain = self.tree.find(tokens, size, end=end)
        node, begin = chain[-1] if chain else self.tree.root, len(chain) * size
        if chain:
            self.pool.hold(node.slot)
        restored = chain[-1:]
        records = disk.chain(node.key, tokens, begin, end)
        # Beyond them, a block that begins like what is left serves for its first tokens.
        after = begin + len(records) * size
        tail = tokens[after : min(after + size, end)]
        like, length = disk.closest(records[-1].key if records else node.key, tail)
        if like is not None and (records or length > self.tree.closest_child(node, tail)[1]):
            records.append(like)
        slots: list[int] = []
        while len(slots) < len(records) and self._make_room(1):
            slots.append(self.pool.take())
        try:
            lost = disk.restore(records[: len(slots)], slots)
        except StoreError as error:  # of the process, not of the blocks: they stay, and are computed this time
            _log.warning("%s", error)
            lost = {record.key for record in records}
        for number, (record, slot) in enumerate(zip(records, slots, strict=False)):
            if record.key in lost:
                for rest in slots[number:]:
                    self.pool.release(rest)
                break
            node, new = self.tree.add(node, record.tokens, slot)
            assert new, "a block in memory was read again"
            self.pool.hold(slot)
            restored.append(node)
            self._restored_tokens += size
        return restored

    def adopt(self, sequence: Sequence) -> int:
        """Takes what other sequences have computed since; returns how many tokens fewer are left to compute.

        At least the last token is left. Costs next to nothing while no kept block follows the sequence's last one.
        """
        before, size, first = sequence.num_computed, self.block_tokens, sequence.num_shared * self.block_tokens
        if not sequence.node.children:
            return 0
        reusable = len(sequence.tokens) - 1
        for node in self.tree.find(sequence.tokens, size, after=sequence.node, begin=first, end=reusable):
            self.pool.hold(node.slot)
            if sequence.num_shared < len(sequence.slots):  # what was begun there is not needed any more
                self.pool.release(sequence.slots[sequence.num_shared])
                sequence.slots[sequence.num_shared] = node.slot
            else:
                sequence.slots.append(node.slot)
            sequence.node = node
            sequence.num_shared += 1
        sequence.num_computed = max(before, sequence.num_shared * size)
        if len(sequence.slots) == sequence.num_shared:
            self._reuse_inside_block(sequence)
        self._hit_tokens += sequence.num_computed - before
        return sequence.num_computed - before

    def _reuse_inside_block(self, sequence: Sequence) -> None:
        """Copies a kept block that begins with the next tokens: its first tokens need not be computed again."""
        child, length = self._closest(sequence)
        if child is None or length == 0:
            return
        self.pool.hold(child.slot)  # so that making room cannot evict it
        lost: tuple[int, ...] = ()
        if self._make_room(1):
            slot = self.pool.take()
            try:
                self.pool.copy(child.slot, slot)
            except LostBlocksError as error:
                self.pool.release(slot)
                lost = error.slots
            except (CapacityError, StoreError) as error:  # no frame, or not to be read now: the tokens are computed
                self.pool.release(slot)
                _log.warning("%s", error)
            else:
                sequence.slots.append(slot)
                sequence.num_computed += length
        self.pool.release(child.slot)
        self._list(child)
        if lost:
            self.forget(lost)

    def _closest(self, sequence: Sequence) -> tuple[Node | None, int]:
        """The kept block after the sequence's last full one that goes on most like it, and for how many tokens.
        The sequence's last token does not count: it is computed in any case."""
        first = sequence.num_shared * self.block_tokens
        reusable = min(first + self.block_tokens, len(sequence.tokens) - 1)
        return self.tree.closest_child(sequence.node, sequence.tokens[first:reusable])

    def miss(self, sequence: Sequence) -> Miss | None:
        """Where a sequence that was just opened leaves what is kept. None if it is found to its end, or if nothing
        kept goes on where it does."""
        child, length = self._closest(sequence)
        position = sequence.num_shared * self.block_tokens + length
        if child is None or length == len(child.tokens) or position >= len(sequence.tokens) - 1:
            return None
        expected = tuple(child.tokens[length : length + MISS_TOKENS])
        got = tuple(sequence.tokens[position : position + MISS_TOKENS])
        return Miss(position, sequence.num_shared, expected, got)

    def kept_slots(self, tokens: Items[int]) -> list[int]:
        """Slots of the kept blocks that `tokens` begins with, in order. Changes nothing."""
        return [node.slot for node in self.tree.find(tokens, self.block_tokens, end=len(tokens) - 1)]

    def next_block(self, sequence: Sequence) -> Hashable:
        """Equal for sequences whose next full block is the same one, so that one may compute it for all; None where
        less than a block and a token is left."""
        first, end = sequence.num_shared * self.block_tokens, (sequence.num_shared + 1) * self.block_tokens
        return (sequence.node, tuple(sequence.tokens[first:end])) if end < len(sequence.tokens) else None

    def reserve(self, sequence: Sequence, num_tokens: int) -> bool:
        """Makes sure the sequence has slots for its first `num_tokens` tokens; False if there is no room."""
        missing = ceil_div(num_tokens, self.block_tokens) - len(sequence.slots)
        if missing > 0 and not self._make_room(missing):
            return False
        sequence.slots.extend(self.pool.take() for _ in range(missing))
        return True

    def computed(self, sequence: Sequence, num_tokens: int) -> None:
        """Says that the first `num_tokens` tokens are in their blocks; full blocks are shared from now on, and go to
        the store."""
        self._computed_tokens += num_tokens - sequence.num_computed
        sequence.num_computed = num_tokens
        size = self.block_tokens
        while sequence.share and (sequence.num_shared + 1) * size <= num_tokens:
            b = sequence.num_shared
            tokens = tuple(sequence.tokens[b * size : (b + 1) * size])
            node, new = self.tree.add(sequence.node, tokens, sequence.slots[b])
            if new:
                self.pool.hold(node.slot)
                if self.pool.disk is not None:
                    self._saving[node.slot] = node
                    self.pool.disk.save(sequence.node.key, tokens, node.slot)
            elif node.slot != sequence.slots[b]:
                # Someone computed the same block meanwhile: the bits are the same, so theirs serves us too.
                self.pool.release(sequence.slots[b])
                self.pool.hold(node.slot)
                sequence.slots[b] = node.slot
            sequence.node = node
            sequence.num_shared += 1

    def close(self, sequence: Sequence) -> None:
        """The sequence is done; its blocks stay until their room is needed, the unfinished last one too."""
        self._open.remove(sequence)
        tail = self._keep_tail(sequence) if sequence.share else None
        self.tree.touch(sequence.node)
        if self.pool.disk is not None:
            self.pool.disk.store.touch(sequence.node.key)
        for slot in sequence.slots:
            self.pool.release(slot)
        sequence.slots.clear()
        self._list(sequence.node)
        if tail is not None:
            self._list(tail)

    def _keep_tail(self, sequence: Sequence) -> Node | None:
        """Keeps the block that is not full: what goes on like it begins with a copy. It is never stored."""
        first = sequence.num_shared * self.block_tokens
        tokens = tuple(sequence.tokens[first : sequence.num_computed])
        if not tokens:
            return None
        for child in list(sequence.node.children.values()):
            if child.tokens[: len(tokens)] == tokens:
                return None  # there is one that says as much
            if child.tokens == tokens[: len(child.tokens)] and self._is_idle(child):
                self._uproot(child)
        node, _ = self.tree.add(sequence.node, tokens, sequence.slots[sequence.num_shared])
        self.pool.hold(node.slot)
        return node

    def forget(self, slots: Items[int]) -> None:
        """Blocks in these slots cannot be read any more: they leave the tree with all that follows them, and open
        sequences go back to where they still have everything."""
        self._settle()
        lost = set(slots)
        doomed = [node for node in self.tree if node.slot in lost]
        for node in doomed:
            self._uproot(node)
            assert node.parent is not None
            self._list(node.parent)
        for sequence in self._open:
            keep = next((b for b, slot in enumerate(sequence.slots[: sequence.num_shared]) if slot in lost), None)
            if keep is None:
                continue
            for slot in sequence.slots[keep:]:
                self.pool.release(slot)
            del sequence.slots[keep:]
            sequence.num_shared, sequence.num_computed = keep, keep * self.block_tokens
            chain = self.tree.find(sequence.tokens, self.block_tokens, end=keep * self.block_tokens)
            sequence.node = chain[-1] if chain else self.tree.root

    def _uproot(self, node: Node) -> None:
        """Takes a block and all that follows it out of the tree."""
        for child in list(node.children.values()):
            self._uproot(child)
        if node in self.tree:
            self.tree.remove(node)
            self.pool.release(node.slot)

    def poll(self) -> None:
        """Passes on blocks to the store, and learns which are there. To be called now and then."""
        if self.pool.disk is not None:
            self.pool.disk.poll()
            self._learn()

    def close_store(self) -> None:
        """Waits for the store and closes it; nothing can be computed or found afterwards."""
        if self.pool.disk is not None:
            self._settle()
            self.pool.disk.store.close()

    def _settle(self) -> None:
        """Waits until nothing is on its way to the store."""
        if self.pool.disk is not None:
            self.pool.disk.wait()
            self._learn()

    def _learn(self) -> None:
        assert self.pool.disk is not None
        for slot in self.pool.disk.freed():
            self._list(self._saving.pop(slot))

    def clear(self) -> None:
        """Forgets every block, for when the books cannot be trusted any more. Open sequences become useless."""
        self.pool.clear()
        self.tree = PrefixTree()
        self._open.clear()
        self._idle.clear()
        self._listed.clear()
        self._saving.clear()

    def _make_room(self, wanted: int) -> bool:
        while self.pool.num_free < wanted:
            node = self._least_recently_used()
            if node is None and self._saving:
                self._settle()
                node = self._least_recently_used()
            if node is None:
                return False
            self._evict(node)
        return True

    def _evict(self, leaf: Node) -> None:
        self.tree.remove(leaf)
        self.pool.release(leaf.slot)
        assert leaf.parent is not None
        self._list(leaf.parent)

    def _give_way(self) -> bool:
        """Evicts a block for its frames, which it cannot leave while it is not on the disk: an unfinished one, or one
        that could not be stored. False if there is none that nobody uses."""
        self._learn()
        leaves = [leaf for leaf in self._listed if self._is_idle(leaf) and self._is_in_the_way(leaf)]
        if not leaves:
            return False
        self._evict(min(leaves, key=lambda leaf: (leaf.used, leaf.slot)))
        return True

    def _is_in_the_way(self, node: Node | None) -> bool:
        """Whether a kept block that nobody uses, or such a one before it, is not on the disk."""
        assert self.pool.disk is not None
        while node is not None and node in self.tree and self.pool.references(node.slot) == 1:
            if not self.pool.disk.is_stored(node.slot):
                return True
            node = node.parent
        return False

    def _is_idle(self, node: Node) -> bool:
        """Whether nothing stands on a kept block, and nobody uses it."""
        if node not in self.tree or node.children or node.slot in self._saving:
            return False
        return self.pool.references(node.slot) == 1

    def _list(self, node: Node) -> None:
        """To be called wherever a block may have become idle."""
        if node not in self._listed and self._is_idle(node):
            self._listed.add(node)
            heapq.heappush(self._idle, (node.used, node.slot, node))
            if len(self._idle) > 2 * len(self.tree) + 64:  # most are not kept any more
                self._idle = [(leaf.used, leaf.slot, leaf) for leaf in self._listed if self._is_idle(leaf)]
                self._listed = {leaf for _, _, leaf in self._idle}
                heapq.heapify(self._idle)

    def _least_recently_used(self) -> Node | None:
        """The idle block to evict next, taken off the list. A step costs the logarithm of the list's length."""
        while self._idle:
            used, _, node = heapq.heappop(self._idle)
            self._listed.remove(node)
            if used == node.used and self._is_idle(node):
                return node
            self._list(node)
        return None

    def stats(self) -> CacheStats:
        """Counts for monitoring."""
        return CacheStats(
            num_blocks=self.pool.num_slots,
            num_free=self.pool.num_free,
            num_kept=len(self.tree),
            block_tokens=self.block_tokens,
            hit_tokens=self._hit_tokens,
            restored_tokens=self._restored_tokens,
            computed_tokens=self._computed_tokens,
        )

    def check_integrity(self) -> None:
        """Recounts every slot from the tree and the open sequences. Raises AssertionError on any disagreement."""
        holders = [node.slot for node in self.tree]
        for sequence in self._open:
            holders.extend(sequence.slots)
            assert sequence.num_computed <= len(sequence.slots) * self.block_tokens, "more computed than there is room"
        self.pool.check_integrity(holders)
        kept = set(self.tree)
        for node in kept:
            assert node.parent is self.tree.root or node.parent in kept, "a kept block lost its parent"
            assert node in self._listed or not self._is_idle(node), "an unused block could never be evicted"
        assert self._listed == {node for _, _, node in self._idle}, "the list of unused blocks contradicts itself"
