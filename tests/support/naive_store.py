"""A naive account of a block store: a dictionary in which every mark is set on every block of a chain."""

from __future__ import annotations

from collections.abc import Hashable, Set
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from freehold.cache.prefix import ROOT

Key = TypeVar("Key", bound=Hashable)


@dataclass
class NaiveStore(Generic[Key]):
    """Keys, their parents as far as they were ever seen, and a clock. Keys can be sorted; ROOT is no key."""

    limit: int
    parents: dict[Key, Key | bytes] = field(default_factory=dict)
    stored: set[Key] = field(default_factory=set)
    used: dict[Key, int] = field(default_factory=dict)
    made: dict[Key, int] = field(default_factory=dict)
    pins: set[Key] = field(default_factory=set)
    held: list[Key] = field(default_factory=list)
    now: int = 0

    def chain(self, key: Key | bytes) -> list[Key]:
        """The block and those before it, as far as no damaged one is missing between them."""
        keys = []
        while key in self.stored:
            keys.append(key)
            key = self.parents[key]
        return keys

    def touch(self, key: Key) -> None:
        """Marks a block and all before it as used now."""
        self.now += 1
        self.used.update(dict.fromkeys(self.chain(key), self.now))

    def pinned(self) -> set[Key]:
        """Every block that a pin holds."""
        return {key for pin in self.pins for key in self.chain(pin)}

    def leaves(self) -> set[Key]:
        """Blocks that no stored one follows."""
        return self.stored - {self.parents[key] for key in self.stored}

    def is_reachable(self, key: Key) -> bool:
        """Whether every block before it is stored."""
        return key in self.stored and self.parents[self.chain(key)[-1]] == ROOT

    def shrink(self, most: int, keep: Key | bytes) -> None:
        """Evicts the oldest leaves until no more than `most` are left."""
        while len(self.stored) > most:
            pinned = self.pinned()
            free = self.leaves() - set(self.held) - {keep}
            if not free:
                return
            # Blocks on both sides of a lost one were last used at the same moment; their keys decide.
            self.remove(min(free, key=lambda key: (key in pinned, self.used[key], key)))

    def remove(self, key: Key) -> None:
        """Takes a block out; its marks go to the one before it."""
        parent = self.parents[key]
        if any(key in self.chain(pin) for pin in self.pins) and parent in self.stored:
            self.pins.add(parent)
        self.pins.discard(key)
        self.stored.remove(key)

    def put(self, parent: Key | bytes, key: Key, *, full: bool = False) -> None:
        """Stores a block if it may and there is room. full: the disk has none, although a leaf is given up for it."""
        self.parents[key] = parent
        if key in self.stored or not (parent == ROOT or parent in self.stored):
            return
        self.shrink(self.limit - 1, keep=parent)
        if len(self.stored) < self.limit and full:
            self.shrink(len(self.stored) - 1, keep=parent)
        elif len(self.stored) < self.limit:
            self.stored.add(key)
            self.touch(key)
            self.made[key] = self.now

    def restart(self, limit: int) -> None:
        """What a new process finds."""
        self.limit = limit
        self.held.clear()
        self.stored = set(filter(self.is_reachable, self.stored))
        self.pins &= self.stored
        self.shrink(limit, keep=ROOT)

    def lose_marks(self, keys: Set[Key]) -> None:
        """These blocks count as last used when they were made, and are not pinned."""
        self.pins -= keys
        self.used.update(dict.fromkeys(keys, 0))
        for key in keys:
            for before in self.chain(key):
                self.used[before] = max(self.used[before], self.made[key])
