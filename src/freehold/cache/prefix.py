"""The prefix tree: which computed blocks there are, and what tokens lead to them."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator
from collections.abc import Sequence as Items

import numpy as np

ROOT = b"root"


def block_hash(parent: bytes, tokens: Items[int]) -> bytes:
    """The name of a block: it covers the block's tokens and, through the parent, all tokens before them."""
    return hashlib.sha256(parent + np.asarray(tokens, dtype=np.int64).tobytes()).digest()


class Node:
    """A full block in the tree."""

    __slots__ = ("children", "key", "parent", "slot", "tokens", "used")

    def __init__(self, key: bytes, parent: Node | None, tokens: tuple[int, ...], slot: int) -> None:
        self.key = key
        self.parent = parent
        self.tokens = tokens
        self.slot = slot
        self.children: dict[bytes, Node] = {}
        self.used = 0


class PrefixTree:
    """Full blocks by hash. A child is only reachable through its parent, so leaves are evicted first."""

    def __init__(self) -> None:
        self.root = Node(ROOT, None, (), -1)
        self._clock = itertools.count(1)
        self._nodes: set[Node] = set()

    def __len__(self) -> int:
        return len(self._nodes)

    def __iter__(self) -> Iterator[Node]:
        return iter(self._nodes)

    def find(self, tokens: Items[int], block_tokens: int) -> list[Node]:
        """The longest chain of full blocks that `tokens` begins with, in order."""
        chain: list[Node] = []
        node = self.root
        for first in range(0, len(tokens) - block_tokens + 1, block_tokens):
            child = node.children.get(block_hash(node.key, tokens[first : first + block_tokens]))
            if child is None:
                break
            chain.append(child)
            node = child
        self.touch(node)
        return chain

    def closest_child(self, parent: Node, tokens: Items[int]) -> tuple[Node | None, int]:
        """The child of `parent` that shares the most leading tokens with `tokens`, and how many."""
        best, best_length = None, 0
        for child in parent.children.values():
            length = 0
            for ours, theirs in zip(tokens, child.tokens, strict=False):
                if ours != theirs:
                    break
                length += 1
            if length > best_length:
                best, best_length = child, length
        return best, best_length

    def touch(self, node: Node) -> None:
        """Marks a block and all before it as used now."""
        now = next(self._clock)
        current: Node | None = node
        while current is not None:
            current.used = now
            current = current.parent

    def add(self, parent: Node, tokens: tuple[int, ...], slot: int) -> tuple[Node, bool]:
        """The block `tokens` after `parent`, and whether it is new; if it is not, its own slot stays."""
        key = block_hash(parent.key, tokens)
        known = parent.children.get(key)
        if known is not None:
            return known, False
        node = Node(key, parent, tokens, slot)
        parent.children[key] = node
        self._nodes.add(node)
        self.touch(node)
        return node, True

    def remove(self, node: Node) -> None:
        """Takes a leaf out of the tree."""
        assert not node.children, "only leaves leave the tree"
        assert node.parent is not None
        del node.parent.children[node.key]
        self._nodes.discard(node)

    def oldest_leaves(self) -> list[Node]:
        """Leaves, least recently used first."""
        return sorted((n for n in self._nodes if not n.children), key=lambda n: n.used)
