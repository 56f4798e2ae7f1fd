"""One process at a time writes a file."""

from __future__ import annotations

import contextlib
import fcntl
import os
from pathlib import Path


def claimed(file: int, path: Path) -> bool:
    """Locks the file that was opened at `path`, until it is closed; False if another process writes it, or has just
    given it its final name or removed it."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return is_at(file, path)


def is_at(file: int, path: Path) -> bool:
    """Whether the open file is the one that has this name now."""
    with contextlib.suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(file), os.stat(path))
    return False
