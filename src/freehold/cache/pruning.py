"""Removing blocks by hand: chosen first, deleted when that is confirmed."""

from __future__ import annotations

import shutil
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

from freehold.cache.idle_shelves import idle_shelves
from freehold.cache.shelf import Shelf
from freehold.cache.shelves import disk_bytes, drop_oldest


class Pruning:
    """Blocks chosen in a store's directory that no process uses, while it is open. Nothing is deleted before
    `carry_out`.

    identity: as for `idle_shelves`, which also says what is raised.
    blocks, nbytes: what was chosen. kept_blocks, kept_bytes: what stays of the identities looked at.
    """

    def __init__(self, directory: Path, *, identity: str | None = None) -> None:
        self.blocks = 0
        self.nbytes = 0
        self._held = ExitStack()
        self._shelves, paths = self._held.enter_context(idle_shelves(directory, identity))
        open_paths = {shelf.path for shelf in self._shelves}
        self._unreadable = [path for path in paths if path not in open_paths]
        self._remove_unreadable = False

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
        self._held.close()
