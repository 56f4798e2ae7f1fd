"""How fast a directory's disk is read: a temporary file, written and read again past the page cache."""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from freehold.core.errors import FreeholdError

_CHUNK = 8 * 2**20
_READERS = 4
"""Reads in flight; solid-state disks are only fast with several."""
_DIRECT: int = getattr(os, "O_DIRECT", 0)


@dataclass(frozen=True, slots=True)
class DiskSpeed:
    """read, write: bytes a second. direct: whether reads went past the page cache by themselves (O_DIRECT); otherwise
    the system was asked to forget the file first, which it may not have done. nbytes: size of the file."""

    read: float
    write: float
    direct: bool
    nbytes: int


def measure_disk(
    directory: Path, *, nbytes: int = 2**30, seconds: float = 8.0, clock: Callable[[], float] = time.perf_counter
) -> DiskSpeed:
    """Writes up to `nbytes` in `directory`, which is made if needed, and reads them sequentially.

    A slow disk gets a smaller file: writing takes about half of `seconds`, and reading ends after the other half.
    Raises FreeholdError if the directory cannot be written or has no room for the file and as much again.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        free = os.statvfs(directory).f_bavail * os.statvfs(directory).f_frsize
        if free < 2 * nbytes:
            raise FreeholdError(
                f"{directory}: has {free / 1e9:.2f} GB free; measuring its disk takes {2 * nbytes / 1e9:.2f} GB. "
                "Free some space, or set FREEHOLD_HOME to another disk"
            )
        with _temporary(directory) as path:
            written, took = _write(path, nbytes, seconds / 2, clock)
            rate, direct = _read(path, written, seconds / 2, clock)
            return DiskSpeed(rate, written / took, direct, written)
    except OSError as error:
        raise FreeholdError(
            f"{directory}: its disk cannot be measured: {error.strerror}; set FREEHOLD_HOME to a directory of yours"
        ) from error


def has_direct_reads(directory: Path) -> bool:
    """Whether files in `directory` can be read past the page cache. Raises OSError if none can be written there."""
    with _temporary(directory) as path:
        path.write_bytes(b"\0" * mmap.PAGESIZE)
        descriptor, direct = _open(path)
        os.close(descriptor)
        return direct


@contextlib.contextmanager
def _temporary(directory: Path) -> Iterator[Path]:
    descriptor, name = tempfile.mkstemp(prefix=".measure-", dir=directory)
    os.close(descriptor)
    try:
        yield Path(name)
    finally:
        Path(name).unlink(missing_ok=True)


def _write(path: Path, nbytes: int, seconds: float, clock: Callable[[], float]) -> tuple[int, float]:
    """(bytes, seconds); whole chunks of numbers that no file system can compress."""
    chunk = bytearray(os.urandom(_CHUNK))
    start, written = clock(), 0
    with open(path, "wb", buffering=0) as file:
        while written < max(nbytes, _CHUNK) and (written == 0 or clock() - start < seconds):
            chunk[:8] = written.to_bytes(8, "little")
            file.write(chunk)
            os.fdatasync(file.fileno())
            written += _CHUNK
        return written, max(clock() - start, 1e-9)


def _read(path: Path, nbytes: int, seconds: float, clock: Callable[[], float]) -> tuple[float, bool]:
    """(bytes a second of the fastest pass, whether it went past the page cache); at least one pass over the file."""
    descriptor, direct = _open(path)
    offsets = range(0, nbytes, _CHUNK)
    buffers = [mmap.mmap(-1, _CHUNK) for _ in range(_READERS)]  # aligned to pages, as direct reads demand
    begin, best, passes = clock(), 0.0, 0

    def read_every(reader: int) -> None:
        for offset in offsets[reader::_READERS]:
            if os.preadv(descriptor, [buffers[reader]], offset) != _CHUNK:
                raise OSError(errno.EIO, "the file is shorter than what was written")

    try:
        with ThreadPoolExecutor(_READERS) as pool:
            while passes == 0 or (passes < 3 and clock() - begin < seconds):
                if not direct and hasattr(os, "posix_fadvise"):
                    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
                start = clock()
                list(pool.map(read_every, range(_READERS)))
                best = max(best, nbytes / max(clock() - start, 1e-9))
                passes += 1
    finally:
        os.close(descriptor)
    return best, direct


def _open(path: Path) -> tuple[int, bool]:
    """A descriptor, and whether it reads past the page cache."""
    if _DIRECT:
        try:
            descriptor = os.open(path, os.O_RDONLY | _DIRECT)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
        else:
            return descriptor, True
    return os.open(path, os.O_RDONLY), False
