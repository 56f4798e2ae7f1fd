"""Pinning sessions by hand: what is pinned is evicted only when nothing else is left."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from freehold.cache.idle_shelves import idle_shelves
from freehold.cache.shelf import Shelf
from freehold.cache.shelves import bury
from freehold.core.errors import StoreError


def set_pin(
    directory: Path,
    choose: Callable[[Sequence[Shelf]], tuple[Shelf, bytes]],
    *,
    pinned: bool,
    identity: str | None = None,
) -> tuple[bytes, int]:
    """Pins a session in a store's directory that no process uses, or takes all pins off it; returns the key of
    its last block, and its tokens.

    choose: says which, by the key of its last block, of the shelves there are. identity: as for `idle_shelves`.
    Taking off also reaches pins in the session's beginning, so another session that begins like it may lose what it
    shares of them.
    Raises what `idle_shelves` and `choose` do, StoreError if the shelf cannot be written; sqlite3.Error or OSError if
    the disk fails.
    """
    with idle_shelves(directory, identity) as (shelves, _):
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
