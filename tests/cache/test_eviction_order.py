"""Which kept blocks go first: the leaf whose last use, or that of anything that ever stood on it, is longest ago."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from hypothesis import strategies as st

from freehold.cache import BlockCache, BlockPool, Sequence
from freehold.core.blocks import LaneSpec
from support.proofs import tried

BLOCK, SLOTS, MOST_OPEN = 4, 7, 2

Path = tuple[int, ...]
"""A chain of blocks: block i of it holds one token, `path[i]`, again and again."""
paths = st.lists(st.integers(0, 1), min_size=1, max_size=4).map(tuple)


@dataclass
class Account:
    """When each kept block was last used, a use of a block being one of all before it; and which are in use."""

    kept: dict[Path, int] = field(default_factory=dict)
    open: list[tuple[Path, int]] = field(default_factory=list)  # where it leads to, and its own blocks
    now: int = 0

    def begin(self, path: Path) -> bool:
        """Room for a chain, of which what is kept is found; False if there is none."""
        found = path
        while found and found not in self.kept:
            found = found[:-1]
        self.open.append((found, 0))
        while SLOTS - len(self.kept) < len(path) - len(found):
            used = {end[: n + 1] for end, _ in self.open for n in range(len(end))}
            leaves = [p for p in self.kept if p not in used and not any(k[:-1] == p for k in self.kept)]
            if not leaves:
                return False
            del self.kept[min(leaves, key=self.kept.__getitem__)]
        self.open[-1] = (path, 0)
        for n in range(len(found), len(path)):
            self.now += 1
            self.kept[path[: n + 1]] = self.now
        return True

    def end(self, which: int) -> None:
        """A chain is used now, and nobody uses it any more."""
        path, _ = self.open.pop(which)
        self.now += 1
        for n in range(len(path)):
            self.kept[path[: n + 1]] = self.now


def kept_paths(cache: BlockCache) -> set[Path]:
    found = set()
    for node in cache.tree:
        path: Path = ()
        step = node
        while step.parent is not None:
            path, step = (step.tokens[0], *path), step.parent
        found.add(path)
    return found


@tried(150, 5000, st.lists(st.tuples(paths, st.booleans(), st.integers(0, 1)), min_size=8, max_size=40))
def test_the_block_used_longest_ago_goes_first(requests: list[tuple[Path, bool, int]]) -> None:
    cache = BlockCache(BlockPool((LaneSpec(1, 2),), num_slots=SLOTS, block_tokens=BLOCK, dtype=torch.float32))
    account, sequences = Account(), list[Sequence]()
    for path, stays, which in requests:
        # The last token is of no block and never computed.
        sequence = cache.open([token for token in path for _ in range(BLOCK)] + [9])
        sequences.append(sequence)
        room = cache.reserve(sequence, len(path) * BLOCK)
        assert room == account.begin(path)
        if room:
            cache.computed(sequence, len(path) * BLOCK)
        if not stays or not room or len(sequences) > MOST_OPEN:
            which = -1 if not room else which % len(sequences)
            cache.close(sequences.pop(which))
            account.end(which)
        assert kept_paths(cache) == account.kept.keys()
        cache.check_integrity()
