"""The block cache: finds what is already computed, finds room for what is not, and keeps what was."""

from __future__ import annotations

from collections.abc import Sequence as Items
from dataclasses import dataclass

from freehold.cache.pool import BlockPool
from freehold.cache.prefix import Node, PrefixTree
from freehold.cache.sequence import Sequence
from freehold.core.axes import ceil_div


@dataclass(frozen=True, slots=True)
class CacheStats:
    """Blocks by state, and since the start: prompt tokens that were found, and tokens that were
    computed (of prompts and answers).

    num_blocks = num_free + num_kept + num_open; kept blocks may be evicted when they are not in use.
    """

    num_blocks: int
    num_free: int
    num_kept: int
    block_tokens: int
    hit_tokens: int
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
        self._hit_tokens = 0
        self._computed_tokens = 0

    @property
    def block_tokens(self) -> int:
        """Tokens in a block."""
        return self.pool.block_tokens

    @property
    def capacity_tokens(self) -> int:
        """Most tokens that one sequence can have."""
        return self.pool.num_slots * self.block_tokens

    def open(self, tokens: Items[int], *, share: bool = True) -> Sequence:
        """A sequence for `tokens`, with everything that is already computed.

        At least the last token is left to compute, because its logits are wanted. share=False finds nothing and
        shares nothing. May raise no error: a sequence needs room only when it grows (`reserve`).
        """
        sequence = Sequence(node=self.tree.root, tokens=list(tokens))
        self._open.add(sequence)
        if not share:
            return sequence
        reusable = sequence.tokens[: len(tokens) - 1]
        for node in self.tree.find(reusable, self.block_tokens):
            self.pool.hold(node.slot)
            sequence.slots.append(node.slot)
            sequence.node = node
        sequence.num_shared = len(sequence.slots)
        sequence.num_computed = sequence.num_shared * self.block_tokens
        self._reuse_inside_block(sequence, reusable)
        self._hit_tokens += sequence.num_computed
        return sequence

    def _reuse_inside_block(self, sequence: Sequence, reusable: list[int]) -> None:
        """Copies a kept block that begins with the next tokens: its first tokens need not be computed again."""
        child, length = self.tree.closest_child(sequence.node, reusable[sequence.num_computed :])
        if child is None:
            return
        self.pool.hold(child.slot)  # so that making room cannot evict it
        if self._make_room(1):
            slot = self.pool.take()
            self.pool.copy(child.slot, slot)
            sequence.slots.append(slot)
            sequence.num_computed += length
        self.pool.release(child.slot)

    def reserve(self, sequence: Sequence, num_tokens: int) -> bool:
        """Makes sure the sequence has slots for its first `num_tokens` tokens; False if there is no room."""
        missing = ceil_div(num_tokens, self.block_tokens) - len(sequence.slots)
        if missing > 0 and not self._make_room(missing):
            return False
        sequence.slots.extend(self.pool.take() for _ in range(missing))
        return True

    def computed(self, sequence: Sequence, num_tokens: int) -> None:
        """Says that the first `num_tokens` tokens are in their blocks; full blocks are shared from now on."""
        self._computed_tokens += num_tokens - sequence.num_computed
        sequence.num_computed = num_tokens
        size = self.block_tokens
        while (sequence.num_shared + 1) * size <= num_tokens:
            b = sequence.num_shared
            tokens = tuple(sequence.tokens[b * size : (b + 1) * size])
            node, new = self.tree.add(sequence.node, tokens, sequence.slots[b])
            if new:
                self.pool.hold(node.slot)
            elif node.slot != sequence.slots[b]:
                # Someone computed the same block meanwhile: the bits are the same, so theirs serves us too.
                self.pool.release(sequence.slots[b])
                self.pool.hold(node.slot)
                sequence.slots[b] = node.slot
            sequence.node = node
            sequence.num_shared += 1

    def close(self, sequence: Sequence) -> None:
        """The sequence is done; its full blocks stay until their room is needed."""
        self._open.remove(sequence)
        self.tree.touch(sequence.node)
        for slot in sequence.slots:
            self.pool.release(slot)
        sequence.slots.clear()

    def _make_room(self, wanted: int) -> bool:
        if self.pool.num_free + len(self.tree) < wanted:
            return False
        while self.pool.num_free < wanted:
            idle = [n for n in self.tree.oldest_leaves() if self.pool.references(n.slot) == 1]
            if not idle:
                return False
            for node in idle[: wanted - self.pool.num_free]:
                self._evict(node)
        return True

    def _evict(self, node: Node) -> None:
        self.tree.remove(node)
        self.pool.release(node.slot)

    def stats(self) -> CacheStats:
        """Counts for monitoring."""
        return CacheStats(
            num_blocks=self.pool.num_slots,
            num_free=self.pool.num_free,
            num_kept=len(self.tree),
            block_tokens=self.block_tokens,
            hit_tokens=self._hit_tokens,
            computed_tokens=self._computed_tokens,
        )

    def check_integrity(self) -> None:
        """Recounts every slot from the tree and the open sequences. Raises AssertionError on any disagreement."""
        holders = [node.slot for node in self.tree]
        for sequence in self._open:
            holders.extend(sequence.slots)
            assert sequence.num_computed <= len(sequence.slots) * self.block_tokens, "more computed than there is room"
        self.pool.check_integrity(holders)
        for node in self.tree:
            assert node.parent is self.tree.root or node.parent in set(self.tree), "a kept block lost its parent"
