"""Directories that training works in and writes to: one process at a time, and nobody else's files."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

from freehold.core.errors import ArgumentError
from freehold.loading.claim import claimed
from freehold.training.whole_file import beside

_LOCK = ".freehold-lock"


def work_of(out: Path, work: Path | None) -> Path:
    """Where work for `out` is kept: `work`, or OUT.work beside it. Raises ArgumentError if there can be none."""
    place = out if out.name not in ("", "..") else out.resolve()
    if not place.name:
        raise ArgumentError(f"{out}: is the root of all files; name a directory inside of it")
    found = place.with_name(f"{place.name}.work") if work is None else work
    if found.resolve() == out.resolve():
        raise ArgumentError(f"{found}: is the place of the work and of what comes out; name two directories")
    return found


@contextlib.contextmanager
def alone_in(work: Path) -> Iterator[None]:
    """Makes the directory and holds it; if it is empty at the end, it is removed.

    Raises ArgumentError if another process works there.
    """
    work.mkdir(parents=True, exist_ok=True)
    lock = work / _LOCK
    file = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        if not claimed(file, lock):
            raise ArgumentError(f"{work}: another process works here; wait until it is done, or name another place")
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)
            with contextlib.suppress(OSError):
                work.rmdir()
    finally:
        os.close(file)


def check_work(work: Path, card: str, told: str, what: str) -> None:
    """The directory is for what `told` says, or for nothing yet. card: the file in it that says so. what: others' work.

    Raises ArgumentError if it is for something else, or holds files without being for anything.
    """
    path = work / card
    if path.is_file():
        if path.read_bytes() != told.encode():
            raise ArgumentError(
                f"{work}: holds {what} (other model, texts or settings); name another directory as place of the work, "
                "or remove this one"
            )
        return
    found = _others(work, {_LOCK, beside(path).name})
    if found:
        raise ArgumentError(
            f"{work}: holds {found} and no {card}, so it is not the work of this command; name another directory as "
            "place of the work"
        )


def check_out(out: Path, is_ours: Callable[[], bool], unfinished: Collection[str]) -> None:
    """The directory is not there, empty, or holds what this command writes. is_ours: asked if something is in it.
    unfinished: names of files that a command which was killed may have left alone there.

    Raises ArgumentError for anything else: nothing of it shall be lost.
    """
    if not os.path.lexists(out):
        return
    if not out.is_dir():
        raise ArgumentError(f"{out}: is no directory, and what comes out will be one; name another place")
    found = _others(out, unfinished)
    if found and not is_ours():
        raise ArgumentError(
            f"{out}: holds {found}, which this command did not write; name another directory, or empty this one"
        )


def _others(directory: Path, known: Collection[str]) -> str:
    """Some of the files that are not known, in words; nothing if there is none."""
    if not os.path.lexists(directory):
        return ""
    names = sorted({path.name for path in directory.iterdir()} - set(known))
    return ", ".join(map(repr, names[:3])) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
