"""A store's shelves, open for writing while no process uses them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from freehold.cache.damage import DamageLog
from freehold.cache.shelf import shelf_paths
from freehold.cache.shelves import Shelves
from freehold.cache.store_lock import StoreLock
from freehold.core.errors import StoreError


@contextmanager
def idle_shelves(directory: Path, identity: str | None = None) -> Iterator[tuple[Shelves, list[Path]]]:
    """Holds the directory; gives its shelves, those that can be opened, and the paths of all.

    identity: the short name of the only identity to look at, or the beginning of it; None: all.
    Raises StoreLockedError if a process uses the directory, StoreError if it is not there or has no such identity,
    OSError if it cannot be written.
    """
    if not directory.is_dir():
        raise StoreError(f"{directory} does not exist; no blocks are stored there")
    with closing(StoreLock(directory)):
        paths = shelf_paths(directory)
        if identity is not None:
            paths = [path for path in paths if path.name.partition("-")[2].startswith(identity)]
            if not identity or not paths:
                raise StoreError(f"{directory} has no blocks of identity {identity!r}; see `freehold cache list`")
        with closing(Shelves(paths, DamageLog())) as shelves:
            shelves.load(remove_unreadable=False)
            yield shelves, paths
