"""Removing blocks by hand: chosen first, deleted when that is confirmed."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import TracebackType

from freehold.cache.damage import DamageLog
from freehold.cache.shelf import Shelf, shelf_paths
from freehold.cache.shelves import Shelves, disk_bytes, drop_oldest
from freehold.cache.store_lock import StoreLock
from freehold.core.errors import StoreError


class Pruning:
    """Blocks chosen in a store's directory that no process uses, while it is open. Nothing is deleted before
    `carry_out`.

    identity: the short name of the only identity to look at, or the beginning of it; None: all.
    blocks, nbytes: what was chosen. kept_blocks, kept_bytes: what stays of the identities looked at.
    Raises StoreLockedError if a process uses the directory, StoreError if there is no such identity, OSError if the
    directory cannot be written.
    """

    def __init__(self, directory: Path, *, identity: str | None = None) -> None:
        self.blocks = 0
        self.nbytes = 0
        if not directory.is_dir():
            raise StoreError(f"{directory} does not exist; there is nothing to prune")
        self._lock = StoreLock(directory)
        try:
            paths = shelf_paths(directory)
            if identity is not None:
                paths = [path for path in paths if path.name.partition("-")[2].startswith(identity)]
                if not identity or not paths:
                    raise StoreError(f"{directory} has no blocks of identity {identity!r}; see `freehold cache list`")
            self._shelves = Shelves(paths, DamageLog())
            self._shelves.load(remove_unreadable=False)
            open_paths = {shelf.path for shelf in self._shelves}
            self._unreadable = [path for path in paths if path not in open_paths]
            self._remove_unreadable = False
        except BaseException:
            self._lock.close()
            raise

    @property
    def kept_blocks(self) -> int:
        """Blocks that were not chosen."""
        return sum(len(shelf.catalog) for shelf in self._shelves)

    @property
    def kept_bytes(self) -> int:
        """Bytes that were not chosen."""
        return self._shelves.nbytes + (0 if self._remove_unreadable else sum(map(disk_bytes, self._unreadable)))

    def choose_all(self) -> None:
        """Everything, pinned or not, also directories whose label is damaged."""
        while self._drop(drop_oldest(list(self._shelves))):
            pass
        self.nbytes += sum(map(disk_bytes, self._unreadable))
        self._remove_unreadable = True

    def choose_beyond(self, max_bytes: int) -> None:
        """The least recently used, pinned ones last, until no more than `max_bytes` stay."""
        while self._shelves.nbytes > max_bytes and self._drop(drop_oldest(list(self._shelves))):
            pass

    def choose_unused_since(self, time: float) -> None:
        """What is not pinned and was last used before `time`, in seconds since 1970."""
        for shelf in self._shelves:
            while (leaf := shelf.catalog.oldest_leaf()) is not None and not leaf.pinned and leaf.used < time * 1e9:
                self._drop(drop_oldest([shelf]))

    def _drop(self, shelf: Shelf | None) -> bool:
        if shelf is None:
            return False
        self.blocks += 1
        self.nbytes += shelf.layout.record_bytes
        return True

    def carry_out(self) -> None:
        """Deletes what was chosen. Raises sqlite3.Error or OSError."""
        self._shelves.bury()
        for path in self._unreadable if self._remove_unreadable else ():
            shutil.rmtree(path)

    def __enter__(self) -> Pruning:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._shelves.close()
        self._lock.close()
