"""The data files: records in slots, read and written at their offsets."""

from __future__ import annotations

import ctypes
import errno
import heapq
import os
import re
import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path

from freehold.cache.layout import PAGE_BYTES, RecordLayout
from freehold.core.durable import sync

_MOST_BUFFERS = 1024  # of one preadv or pwritev: IOV_MAX on Linux
_KEEP_SIZE, _PUNCH_HOLE = 1, 2  # of fallocate(2)
_NAME = re.compile(r"segment-(\d{6})\.blocks")
_libc = ctypes.CDLL(None, use_errno=True)


class Segments:
    """Slots of `layout.record_bytes`, numbered over all files; file n holds slots [n * s, (n + 1) * s).

    A free slot is a hole in its file: it takes no space. `allocate` fills the hole, so that a full disk is met
    there and not while a record is written. Reading may happen in any thread; everything else in one.
    Methods raise OSError as the system says it, and EOFError where a file ends before its record does.
    """

    def __init__(self, directory: Path, layout: RecordLayout) -> None:
        self.directory = directory
        self._layout = layout
        self._descriptors: dict[tuple[int, int], int] = {}
        self._lock = threading.Lock()
        self._free: list[int] = []
        self._next = 0
        self.sizes: dict[int, int] = {}
        """Bytes of each data file when they were counted."""

    def count(self) -> None:
        """Finds the data files; done once, before anything else."""
        for path in self.directory.iterdir():
            match = _NAME.fullmatch(path.name)
            if match:
                self.sizes[int(match.group(1))] = path.stat().st_size

    def path(self, segment: int) -> Path:
        """The file of a segment."""
        return self.directory / f"segment-{segment:06d}.blocks"

    def where(self, slot: int) -> tuple[int, int]:
        """(segment, offset in its file) of a slot."""
        segment, index = divmod(slot, self._layout.slots_per_segment)
        return segment, index * self._layout.record_bytes

    def written_slots(self) -> Iterator[int]:
        """Every slot that begins in a file that was there at the start."""
        size = self._layout.record_bytes
        for segment, nbytes in sorted(self.sizes.items()):
            first = segment * self._layout.slots_per_segment
            yield from range(first, first + min(-(-nbytes // size), self._layout.slots_per_segment))

    def is_whole(self, slot: int) -> bool:
        """Whether the file of a slot reached beyond the slot's record at the start."""
        segment, offset = self.where(slot)
        return offset + self._layout.record_bytes <= self.sizes.get(segment, 0)

    def read(self, slot: int, offset: int, views: Sequence[memoryview]) -> None:
        """Fills the buffers with the record's bytes from `offset`."""
        segment, start = self.where(slot)
        _transfer(os.preadv, self._descriptor(segment, os.O_RDONLY), views, start + offset)

    def announce(self, slot: int, offset: int, nbytes: int) -> None:
        """Tells the system that these bytes will be read soon. Raises OSError if there is no such file."""
        segment, start = self.where(slot)
        if hasattr(os, "posix_fadvise"):  # macOS has none
            os.posix_fadvise(self._descriptor(segment, os.O_RDONLY), start + offset, nbytes, os.POSIX_FADV_WILLNEED)

    def write(self, slot: int, offset: int, views: Sequence[memoryview]) -> None:
        """Writes the buffers into the record from `offset`; durable after `sync`."""
        segment, start = self.where(slot)
        _transfer(os.pwritev, self._descriptor(segment, os.O_RDWR), views, start + offset)

    def sync(self, slots: Collection[int]) -> None:
        """Makes what was written into the slots durable."""
        for segment in sorted({self.where(slot)[0] for slot in slots}):
            os.fdatasync(self._descriptor(segment, os.O_RDWR))

    def take(self) -> int:
        """A free slot, the lowest there is."""
        if self._free:
            return heapq.heappop(self._free)
        self._next += 1
        return self._next - 1

    def allocate(self, slot: int) -> None:
        """Gives a free slot its space on the disk."""
        segment, start = self.where(slot)
        descriptor = self._descriptor(segment, os.O_RDWR | os.O_CREAT)
        os.posix_fallocate(descriptor, start, self._layout.record_bytes)

    def free(self, slot: int) -> None:
        """Gives a slot's space back to the disk and the slot to `take`; what was in it is gone."""
        segment, start = self.where(slot)
        self._clear(segment, start, self._layout.record_bytes)
        heapq.heappush(self._free, slot)

    def _clear(self, segment: int, start: int, nbytes: int) -> None:
        try:
            descriptor = self._descriptor(segment, os.O_RDWR)
        except FileNotFoundError:
            return
        try:
            punch_hole(descriptor, start, nbytes)
        except OSError as error:
            if error.errno != errno.EOPNOTSUPP:
                raise
            # The space stays taken until the slot is used again, but no header must speak of a freed slot.
            size = self._layout.record_bytes
            for offset in range(start, start + nbytes, size):
                os.pwrite(descriptor, bytes(PAGE_BYTES), offset)

    def reclaim(self, taken: Collection[int]) -> None:
        """Frees every slot that is not taken: removes files without records, makes holes between records.

        Nothing may be reading.
        """
        per_segment = self._layout.slots_per_segment
        used: dict[int, list[int]] = {}
        for slot in sorted(taken):
            used.setdefault(slot // per_segment, []).append(slot)
        for segment in sorted(self.sizes):
            slots = used.get(segment, [])
            if not slots:
                self._remove(segment)
                continue
            end = self.sizes[segment]
            starts = [self.where(slot)[1] for slot in slots] + [end]
            begin = 0
            for start in starts:
                if start > begin:
                    self._clear(segment, begin, start - begin)
                begin = start + self._layout.record_bytes
        self._next = max(taken, default=-1) + 1
        self._free = sorted(set(range(self._next)).difference(taken))

    def _remove(self, segment: int) -> None:
        self.path(segment).unlink()
        for flags in (os.O_RDONLY, os.O_RDWR):  # a new file may take the name
            descriptor = self._descriptors.pop((segment, flags), None)
            if descriptor is not None:
                os.close(descriptor)

    def _descriptor(self, segment: int, flags: int) -> int:
        key = segment, flags & os.O_RDWR
        descriptor = self._descriptors.get(key)
        if descriptor is not None:
            return descriptor
        with self._lock:
            descriptor = self._descriptors.get(key)
            if descriptor is None:
                path = self.path(segment)
                new = bool(flags & os.O_CREAT) and not path.exists()
                descriptor = os.open(path, flags | os.O_CLOEXEC, 0o600)
                self._descriptors[key] = descriptor
                if new:
                    sync(self.directory)
        return descriptor

    def close(self) -> None:
        """Closes the files. Nothing may be reading."""
        with self._lock:
            for descriptor in self._descriptors.values():
                os.close(descriptor)
            self._descriptors.clear()


def punch_hole(descriptor: int, start: int, nbytes: int) -> None:
    """Makes a range of a file a hole, which reads as zeros and takes no space. Raises OSError."""
    status = _libc.fallocate(descriptor, _KEEP_SIZE | _PUNCH_HOLE, ctypes.c_int64(start), ctypes.c_int64(nbytes))
    if status != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def _transfer(
    call: Callable[[int, list[memoryview], int], int], descriptor: int, buffers: Sequence[memoryview], offset: int
) -> None:
    """preadv or pwritev until every buffer is done."""
    views = list(buffers)
    while views:
        done = call(descriptor, views[:_MOST_BUFFERS], offset)
        if done == 0:
            raise EOFError("the file ends before the record does")
        offset += done
        while views and done >= len(views[0]):
            done -= len(views.pop(0))
        if done:
            views[0] = views[0][done:]
