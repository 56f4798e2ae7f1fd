"""Saying how far a long task has come."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

Progress = Callable[[str, int, int | None], None]
"""Called with what is being done, the bytes done so far, and the bytes in all where that is known."""


def unreported(what: str, done: int, total: int | None) -> None:
    """A `Progress` for callers who do not want to know."""


def tree_size(directory: Path) -> int:
    """Bytes of all files under `directory`, links not followed; files that vanish meanwhile count nothing."""
    total = 0
    for parent, _, names in os.walk(directory):
        for name in names:
            with contextlib.suppress(OSError):
                total += os.lstat(os.path.join(parent, name)).st_size
    return total


@contextlib.contextmanager
def watched(directory: Path, what: str, already: int, total: int, progress: Progress) -> Iterator[None]:
    """Report how `directory` grows while the body runs, from another thread.

    already: bytes out of `total` that were there before. An error of `progress` ends the reports, and is
    raised here when the body is done.
    """
    before = tree_size(directory)
    done = threading.Event()
    failed: list[BaseException] = []

    def report() -> None:
        try:
            while not done.wait(0.2):
                progress(what, min(already + max(0, tree_size(directory) - before), total), total)
        except BaseException as error:
            failed.append(error)

    watcher = threading.Thread(target=report, name="freehold-progress", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        done.set()
        watcher.join()
    if failed:
        raise failed[0]
    progress(what, total, total)
