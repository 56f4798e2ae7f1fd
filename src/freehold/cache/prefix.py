"""The prefix tree: which computed blocks there are, and what tokens lead to them."""

from __future__ import annotations

import hashlib
import itertools
import struct
from collections.abc import Iterator
from collections.abc import Sequence as Items

ROOT = b"root"


def block_hash(parent: bytes, tokens: Items[int]) -> bytes:
    """The name of a block: it covers the block's tokens and, through the parent, all tokens before them."""
    return hashlib.sha256(parent + struct.pack(f"<{len(tokens)}q", *tokens)).digest()


class Node:
    """A block in the tree. One that is not full has no children: it is worth a copy of its tokens."""

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

    def __contains__(self, node: Node) -> bool:
        return node in self._nodes

    def __iter__(self) -> Iterator[Node]:
        return iter(self._nodes)

    def find(
        self,
        tokens: Items[int],
        block_tokens: int,
        *,
        after: Node | None = None,
        begin: int = 0,
        end: int | None = None,
    ) -> list[Node]:
        """The longest chain of full blocks that tokens[begin:end] begins with, in order.

        after: the block before tokens[begin]; None: the root.
        """
        chain: list[Node] = []
        node = after or self.root
        end = len(tokens) if end is None else end
        for first in range(begin, end - block_tokens + 1, block_tokens):
            child = node.children.get(block_hash(node.key, tokens[first : first + block_tokens]))
            if child is None:
                break
            chain.append(child)
            node = child
        return chain

    def closest_child(self, parent: Node, tokens: Items[int]) -> tuple[Node | None, int]:
        """The child of `parent` that shares the most leading tokens with `tokens`, and how many; the newest of equals.

        None if there is no child.
        """
        ours = tuple(tokens)
        best, length = None, 0
        for child in reversed(parent.children.values()):
            if best is None or (length < len(ours) and child.tokens[: length + 1] == ours[: length + 1]):
                best = child
                while length < min(len(ours), len(child.tokens)) and ours[length] == child.tokens[length]:
                    length += 1
        return best, length

    def touch(self, node: Node) -> None:
        """Marks a block as used now, and thereby all before it: they learn of it when they become leaves."""
        node.used = next(self._clock)

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
        node.parent.used = max(node.parent.used, node.used)
        self._nodes.discard(node)
