"""Pinning sessions by hand: what is pinned is evicted only when nothing else is left."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from freehold.cache.damage import DamageLog
from freehold.cache.shelf import Shelf, shelf_paths
from freehold.cache.shelves import Shelves, bury
from freehold.cache.store_lock import StoreLock
from freehold.core.errors import StoreError


def set_pin(
    directory: Path, choose: Callable[[Sequence[Shelf]], tuple[Shelf, bytes]], *, pinned: bool
) -> tuple[bytes, int]:
    """Pins a session in a store's directory that no process uses, or takes all pins off it; returns the key of
    its last block, and its tokens.

    choose: says which, by the key of its last block, of the shelves there are. Taking off also reaches pins in the
    session's beginning, so another session that begins like it may lose what it shares of them.
    Raises StoreLockedError if a process uses the directory, StoreError if it is not there or cannot be written, and
    what `choose` does; sqlite3.Error or OSError if the disk fails.
    """
    if not directory.is_dir():
        raise StoreError(f"{directory} does not exist; there is nothing to pin")
    lock = StoreLock(directory)
    shelves = Shelves(shelf_paths(directory), DamageLog())
    try:
        shelves.load(remove_unreadable=False)
        shelf, key = choose(list(shelves))
        if not shelf.writable:
            raise StoreError(f"{shelf.path} cannot be written; see who may")
        with shelf.lock:
            chain = shelf.catalog.chain(key)
            for record in chain[-1:] if pinned else chain:
                entry = shelf.catalog.get(record.key)
                if entry is not None and bool(entry.pinned) != pinned:
                    shelf.mark(record.key, pinned=pinned)
        bury(shelf)
        return key, len(chain) * shelf.layout.block_tokens
    finally:
        shelves.close()
        lock.close()
