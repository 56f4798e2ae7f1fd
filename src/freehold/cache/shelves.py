"""The shelves of one directory that share a limit with each other."""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path

from freehold.cache.damage import DamageLog
from freehold.cache.label import read_label
from freehold.cache.recovery import open_shelf
from freehold.cache.shelf import Shelf, shelf_paths
from freehold.core.errors import StoreError


class Shelves:
    """Shelves that no engine is using: they only count, and give way. Used by one thread.

    paths: where they are. They are opened by `load` only, since most starts never need room.
    """

    def __init__(self, paths: Sequence[Path], damage: DamageLog) -> None:
        self._damage = damage
        self._paths = paths
        self._nbytes_on_disk = sum(map(disk_bytes, paths))
        self._shelves: dict[Path, Shelf] | None = None

    def __iter__(self) -> Iterator[Shelf]:
        return iter([] if self._shelves is None else list(self._shelves.values()))

    @property
    def nbytes(self) -> int:
        """Bytes of their records; before `load`, what they take on the disk."""
        return self._nbytes_on_disk if self._shelves is None else sum(shelf.nbytes for shelf in self)

    def load(self, *, remove_unreadable: bool = True) -> None:
        """Opens them all, once. A shelf without a readable label cannot be evicted block by block: it is removed
        whole, or left alone. Raises OSError if the process has no file descriptors or memory left; then none is open.
        """
        if self._shelves is not None:
            return
        shelves: dict[Path, Shelf] = {}
        with contextlib.ExitStack() as opened:
            for path in self._paths:
                try:
                    identity, layout = read_label(path)
                except StoreError as error:
                    self._damage.report(str(path), f"{error}; {'removed' if remove_unreadable else 'left alone'}")
                    if remove_unreadable:
                        shutil.rmtree(path, ignore_errors=True)
                else:
                    shelves[path] = open_shelf(path, identity, layout, self._damage, writable=True)
                    opened.callback(shelves[path].close)
            opened.pop_all()
        self._shelves = shelves

    def bury(self) -> None:
        """Deletes what was dropped from the shelves, and shelves without blocks. Raises sqlite3.Error or OSError."""
        for shelf in self:
            bury(shelf)
            if not len(shelf.catalog) and shelf.writable:
                assert self._shelves is not None
                shelf.close()
                del self._shelves[shelf.path]
                shutil.rmtree(shelf.path, ignore_errors=True)

    def close(self) -> None:
        """Closes those that are open."""
        for shelf in self:
            shelf.close()


def drop_oldest(shelves: Sequence[Shelf]) -> Shelf | None:
    """Takes the oldest leaf of all shelves out of its catalog and says whose it was; None if none may go."""
    oldest = [
        (entry.pinned, entry.used, number)
        for number, shelf in enumerate(shelves)
        if shelf.writable and (entry := shelf.catalog.oldest_leaf()) is not None
    ]
    if not oldest:
        return None
    shelf = shelves[min(oldest)[2]]
    leaf = shelf.catalog.oldest_leaf()
    assert leaf is not None
    shelf.drop(leaf.record.key)
    return shelf


def bury(shelf: Shelf) -> None:
    """Deletes a shelf's doomed entries and writes changed marks. Raises sqlite3.Error or OSError, to be tried again."""
    with shelf.lock:
        doomed, shelf.doomed = shelf.doomed, []
        changed = [entry for key in shelf.changed if (entry := shelf.catalog.get(key)) is not None]
        shelf.changed = set()
    if not doomed and not changed:
        return
    try:
        shelf.commit([], changed, doomed)
    except (sqlite3.Error, OSError):
        with shelf.lock:
            shelf.doomed += doomed
            shelf.changed.update(entry.record.key for entry in changed)
        raise


def taken_bytes(directory: Path) -> int:
    """What a store's blocks, of all identities, take on the disk. Raises nothing."""
    with contextlib.suppress(OSError):
        return sum(map(disk_bytes, shelf_paths(directory)))
    return 0


def disk_bytes(path: Path) -> int:
    """What the files of a directory take on the disk; files that vanish meanwhile count nothing."""
    total = 0
    with contextlib.suppress(OSError), os.scandir(path) as files:
        for file in files:
            with contextlib.suppress(OSError):
                total += file.stat().st_blocks * 512
    return total
