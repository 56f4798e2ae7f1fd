"""The Merkle tree of RFC 9162, section 2.1: roots, inclusion proofs and consistency proofs over SHA-256.

A leaf hash is SHA-256(0x00 || entry), a node SHA-256(0x01 || left || right), and the left side of a tree of n leaves
has the largest power of two below n. The two prefixes keep a node from passing for an entry.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

HASH_BYTES = 32
EMPTY_ROOT = hashlib.sha256(b"").digest()
"""The root of the tree without leaves."""


def leaf_hash(entry: bytes) -> bytes:
    """The hash of one entry, 32 bytes."""
    return hashlib.sha256(b"\x00" + entry).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """The hash above two hashes, 32 bytes."""
    return hashlib.sha256(b"\x01" + left + right).digest()


class Frontier:
    """A growing tree that keeps only the roots of its whole subtrees: as many as its size has bits set.

    size: leaves so far.
    """

    def __init__(self) -> None:
        self.size = 0
        self._whole: list[bytes] = []  # the largest first

    def append(self, leaf: bytes) -> None:
        """Add a leaf hash at the end."""
        merged, size = leaf, self.size
        while size & 1:
            merged = node_hash(self._whole.pop(), merged)
            size >>= 1
        self._whole.append(merged)
        self.size += 1

    def root(self) -> bytes:
        """The root of all leaves so far."""
        if not self._whole:
            return EMPTY_ROOT
        root = self._whole[-1]
        for left in reversed(self._whole[:-1]):
            root = node_hash(left, root)
        return root

    def copy(self) -> Frontier:
        """The same tree, which then grows apart."""
        other = Frontier()
        other.size, other._whole = self.size, list(self._whole)
        return other


def root_of(leaves: Iterable[bytes]) -> bytes:
    """The root of some leaf hashes."""
    frontier = Frontier()
    for leaf in leaves:
        frontier.append(leaf)
    return frontier.root()


def inclusion_path(leaves: Sequence[bytes], index: int) -> list[bytes]:
    """The hashes that lead from leaf `index` to the root, the lowest first. Raises IndexError beyond the tree."""
    if not 0 <= index < len(leaves):
        raise IndexError(index)
    path: list[bytes] = []
    first, end = 0, len(leaves)
    while end - first > 1:
        middle = first + _split(end - first)
        if index < middle:
            path.append(root_of(leaves[middle:end]))
            end = middle
        else:
            path.append(root_of(leaves[first:middle]))
            first = middle
    return path[::-1]


def consistency_path(leaves: Sequence[bytes], old_size: int) -> list[bytes]:
    """The hashes that show that the tree of the first `old_size` leaves grew into that of all.

    Empty where there is nothing to show: for no leaves, and for all. Raises IndexError beyond the tree.
    """
    if not 0 <= old_size <= len(leaves):
        raise IndexError(old_size)
    if old_size in (0, len(leaves)):
        return []
    path: list[bytes] = []
    first, end, old_end, known = 0, len(leaves), old_size, True
    while old_end != end:
        middle = first + _split(end - first)
        if old_end <= middle:
            path.append(root_of(leaves[middle:end]))
            end = middle
        else:
            path.append(root_of(leaves[first:middle]))
            first, known = middle, False
    # The verifier has the old root itself; any other subtree it has to be given.
    if not known:
        path.append(root_of(leaves[first:end]))
    return path[::-1]


def verify_inclusion(leaf: bytes, index: int, size: int, path: Sequence[bytes], root: bytes) -> bool:
    """Whether leaf `index` of the tree of `size` leaves with this root is `leaf` (RFC 9162, 2.1.3.2)."""
    if not 0 <= index < size:
        return False
    node, last, found = index, size - 1, leaf
    for sibling in path:
        if last == 0:
            return False
        if node & 1 or node == last:
            found = node_hash(sibling, found)
            while not node & 1 and node:
                node, last = node >> 1, last >> 1
        else:
            found = node_hash(found, sibling)
        node, last = node >> 1, last >> 1
    return last == 0 and found == root


def verify_consistency(old_size: int, old_root: bytes, size: int, root: bytes, path: Sequence[bytes]) -> bool:
    """Whether the tree with `root` begins with the leaves of the one with `old_root` (RFC 9162, 2.1.4.2)."""
    if not 0 <= old_size <= size:
        return False
    if old_size == size:
        return not path and old_root == root
    if old_size == 0:
        return not path and old_root == EMPTY_ROOT
    hashes = list(path)
    if old_size & (old_size - 1) == 0:
        hashes.insert(0, old_root)
    if not hashes:
        return False
    node, last = old_size - 1, size - 1
    while node & 1:
        node, last = node >> 1, last >> 1
    old_found = found = hashes[0]
    for sibling in hashes[1:]:
        if last == 0:
            return False
        if node & 1 or node == last:
            old_found, found = node_hash(sibling, old_found), node_hash(sibling, found)
            while not node & 1 and node:
                node, last = node >> 1, last >> 1
        else:
            found = node_hash(found, sibling)
        node, last = node >> 1, last >> 1
    return last == 0 and old_found == old_root and found == root


def _split(size: int) -> int:
    """The largest power of two below `size`, which is at least 2."""
    return 1 << ((size - 1).bit_length() - 1)
