"""The catalog: which blocks are stored, how they follow each other, and which of them goes first."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from freehold.cache.prefix import ROOT
from freehold.cache.record import Record


@dataclass(slots=True, eq=False)
class Entry:
    """A record and how it is used: used in nanoseconds since 1970, pinned 0 or 1."""

    record: Record
    used: int
    pinned: int = 0


class Catalog:
    """The records of one identity, in memory. Not safe for several threads.

    A leaf is a record without stored children; only leaves are evicted, so that what is stored stays reachable.
    Marks are set on the last block of a chain and reach the others when it leaves: its parent is then marked as used
    when it was, and as pinned if it was. So a mark costs the same for a chain of any length.
    A parent may be absent while a damaged block has not been stored again.
    """

    def __init__(self) -> None:
        self.holds: Counter[bytes] = Counter()
        """How often a key is held; held keys are not evicted. A key may be held that is not stored yet."""
        self._entries: dict[bytes, Entry] = {}
        self._children: dict[bytes, dict[bytes, None]] = {}
        # (pinned, used, key) of every leaf, and outdated triples that are skipped when they come up.
        self._heap: list[tuple[int, int, bytes]] = []

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[Entry]:
        return iter(self._entries.values())

    def __contains__(self, key: bytes) -> bool:
        return key in self._entries

    def get(self, key: bytes) -> Entry | None:
        """The entry of a key."""
        return self._entries.get(key)

    def children(self, parent: bytes) -> list[Record]:
        """The records whose parent is `parent`."""
        return [self._entries[key].record for key in self._children.get(parent, ())]

    def leaves(self) -> Iterator[Entry]:
        """Entries without children."""
        return (entry for key, entry in self._entries.items() if key not in self._children)

    def depths(self) -> dict[bytes, int]:
        """For each key that the root leads to, how many blocks its chain has."""
        depths = {ROOT: 0}
        for entry in self._below(ROOT):
            depths[entry.record.key] = depths[entry.record.parent] + 1
        return depths

    def pinned_depths(self) -> dict[bytes, int]:
        """For each key that the root leads to, how many blocks of its chain are pinned: those up to the last mark."""
        depths, pinned = self.depths(), {ROOT: 0}
        for entry in self._below(ROOT):
            key = entry.record.key
            pinned[key] = depths[key] if entry.pinned else pinned[entry.record.parent]
        return pinned

    def chain(self, key: bytes) -> list[Record]:
        """The records from the root to `key`; empty if one of them is not stored."""
        records = []
        while key != ROOT:
            entry = self._entries.get(key)
            if entry is None:
                return []
            records.append(entry.record)
            key = entry.record.parent
        return records[::-1]

    def add(self, entry: Entry) -> None:
        """Takes in a record whose key is not there yet."""
        key = entry.record.key
        assert key not in self._entries, key.hex()
        self._entries[key] = entry
        self._children.setdefault(entry.record.parent, {})[key] = None
        self._offer(entry)

    def remove(self, key: bytes) -> Entry:
        """Takes a record out. Its children, if it has any, stay without a parent."""
        entry = self._entries.pop(key)
        siblings = self._children[entry.record.parent]
        del siblings[key]
        if not siblings:
            del self._children[entry.record.parent]
        parent = self._entries.get(entry.record.parent)
        if parent is not None:
            for below in (entry, *self._below(key)):
                parent.used = max(parent.used, below.used)
                parent.pinned |= below.pinned
            self._offer(parent)
        return entry

    def _below(self, key: bytes) -> Iterator[Entry]:
        todo = list(self._children.get(key, ()))
        while todo:
            key = todo.pop()
            yield self._entries[key]
            todo.extend(self._children.get(key, ()))

    def mark(self, key: bytes, *, used: int | None = None, pinned: bool | None = None) -> bool:
        """Sets the marks of a record; False if there is none of that key."""
        entry = self._entries.get(key)
        if entry is None:
            return False
        entry.used = entry.used if used is None else used
        entry.pinned = entry.pinned if pinned is None else int(pinned)
        self._offer(entry)
        return True

    def oldest_leaf(self) -> Entry | None:
        """The leaf to evict first: not held, not pinned if there is a choice, least recently used."""
        held = []
        found = None
        while self._heap and found is None:
            triple = self._heap[0]
            entry = self._current(triple)
            if entry is not None and not self.holds[triple[2]]:
                found = entry
                break
            heapq.heappop(self._heap)
            if entry is not None:
                held.append(triple)
        for triple in held:
            heapq.heappush(self._heap, triple)
        return found

    def _current(self, triple: tuple[int, int, bytes]) -> Entry | None:
        pinned, used, key = triple
        entry = self._entries.get(key)
        if entry is None or key in self._children or (entry.pinned, entry.used) != (pinned, used):
            return None
        return entry

    def _offer(self, entry: Entry) -> None:
        """Puts an entry into the order of eviction, if it is a leaf."""
        if entry.record.key in self._children:
            return
        heapq.heappush(self._heap, (entry.pinned, entry.used, entry.record.key))
        if len(self._heap) > 2 * len(self._entries) + 64:
            self._heap = [(e.pinned, e.used, e.record.key) for e in self.leaves()]
            heapq.heapify(self._heap)

    def unreachable(self) -> list[Entry]:
        """Entries that no chain from the root leads to."""
        reached = {entry.record.key for entry in self._below(ROOT)}
        return [entry for key, entry in self._entries.items() if key not in reached]

    def check_integrity(self) -> None:
        """Recounts. Raises AssertionError on any disagreement."""
        children: dict[bytes, set[bytes]] = {}
        for key, entry in self._entries.items():
            assert entry.record.key == key, "an entry stands under another key"
            children.setdefault(entry.record.parent, set()).add(key)
        assert children == {parent: set(keys) for parent, keys in self._children.items()}, "children are miscounted"
        slots = [entry.record.slot for entry in self]
        assert len(slots) == len(set(slots)), "two records share a slot"
        offered = {triple[2] for triple in self._heap if self._current(triple) is not None}
        assert offered == {entry.record.key for entry in self.leaves()}, "the order of eviction misses a leaf"
        assert all(count > 0 for count in self.holds.values()), "a hold was released twice"
