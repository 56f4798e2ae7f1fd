"""The writer: one thread that stores blocks behind the computing, and makes room for them."""

from __future__ import annotations

import contextlib
import errno
import logging
import sqlite3
import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from freehold.cache.catalog import Entry
from freehold.cache.prefix import ROOT
from freehold.cache.record import Record
from freehold.cache.shelf import Shelf
from freehold.cache.shelves import Shelves, bury, drop_oldest

_log = logging.getLogger("freehold.cache")

_BATCH_BYTES = 64 << 20  # what is made durable together
_LATE_SECONDS = 5.0  # how long marks and removals may stay in memory only
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass(frozen=True, slots=True)
class Completion:
    """A block handed over was written (stored) or given up; its buffers are free again."""

    key: bytes
    stored: bool


@dataclass(frozen=True, slots=True, eq=False)
class PendingBlock:
    """A block on its way to the disk. parts: the buffers of each part, in the layout's order."""

    key: bytes
    parent: bytes
    token_bytes: bytes
    parts: Sequence[Sequence[memoryview]]


class StoreWriter:
    """Owns the disk of a shelf while it runs. Public methods may be called from any thread.

    limit_bytes: of all records in the directory together; None: the disk is the limit.
    inflight_bytes: most bytes handed over and not yet completed; one block is always taken.
    """

    def __init__(self, shelf: Shelf, others: Shelves, *, limit_bytes: int | None, inflight_bytes: int) -> None:
        self.evicted = 0
        self.given_up = 0
        self._shelf, self._others = shelf, others
        self._limit = limit_bytes
        self._record_bytes = shelf.layout.record_bytes
        self._most_inflight = max(1, inflight_bytes // self._record_bytes)
        self._queue: deque[PendingBlock] = deque()
        self._inflight = 0
        self._completed: list[Completion] = []
        self._flushes_asked = self._flushes_done = 0
        self._stopping = False
        self._trouble: str | None = None
        self._thread = threading.Thread(target=self._run, name="freehold-store", daemon=True)
        self._thread.start()

    @property
    def inflight_bytes(self) -> int:
        """Bytes handed over and not yet completed."""
        return self._inflight * self._record_bytes

    def submit(self, block: PendingBlock) -> bool:
        """Takes a block; False if too many are on their way."""
        with self._shelf.lock:
            if self._inflight >= self._most_inflight:
                return False
            self._inflight += 1
            self._shelf.catalog.holds[block.parent] += 1
            self._queue.append(block)
            self._shelf.lock.notify_all()
        return True

    def completed(self) -> list[Completion]:
        """What was completed since the last call, in order."""
        with self._shelf.lock:
            done, self._completed = self._completed, []
        return done

    def flush(self) -> None:
        """Waits until everything handed over and marked so far is on the disk or given up."""
        with self._shelf.lock:
            self._flushes_asked += 1
            mine = self._flushes_asked
            self._shelf.lock.notify_all()
            self._shelf.lock.wait_for(lambda: self._flushes_done >= mine)

    def stop(self) -> None:
        """Flushes and ends the thread."""
        self.flush()
        with self._shelf.lock:
            self._stopping = True
            self._shelf.lock.notify_all()
        self._thread.join()

    def _run(self) -> None:
        self._attempt([])  # the limit may be lower than last time
        while True:
            with self._shelf.lock:
                self._wait()
                if self._stopping:
                    return
                most = max(1, _BATCH_BYTES // self._record_bytes)
                batch = [self._queue.popleft() for _ in range(min(most, len(self._queue)))]
                flushes = self._flushes_asked if not self._queue else self._flushes_done
            stored = self._attempt(batch)
            with self._shelf.lock:
                for block in batch:
                    self._complete(block, block.key in stored)
                self._flushes_done = flushes
                self._shelf.lock.notify_all()

    def _wait(self) -> None:
        """Until there is something to do; what may be late is done after a while."""
        while not (self._queue or self._stopping or self._flushes_asked > self._flushes_done):
            late = self._shelf.changed or self._shelf.doomed
            if not self._shelf.lock.wait(_LATE_SECONDS if late else None):
                return

    def _complete(self, block: PendingBlock, stored: bool) -> None:
        self._inflight -= 1
        self.given_up += not stored
        release(self._shelf, block.parent)
        self._completed.append(Completion(block.key, stored))

    def _attempt(self, batch: Sequence[PendingBlock]) -> set[bytes]:
        """Stores a batch and writes what was marked; returns the keys that are stored. Reports what fails, once."""
        trouble: str | None = None
        stored: set[bytes] = set()
        try:
            try:
                stored, trouble = self._store(batch)
            except (OSError, sqlite3.Error) as error:
                if not is_disk_full(error):
                    raise
                self._make_slack()
                stored, trouble = self._store(batch)
        except (OSError, sqlite3.Error) as error:
            trouble = str(error)
        except Exception as error:  # the engine waits for its buffers, whatever happens here
            _log.exception("the block store's writer failed")
            trouble = repr(error)
        if trouble is not None and trouble != self._trouble:
            self._shelf.damage.report(str(self._shelf.path), f"blocks cannot be stored now: {trouble}")
        if trouble is not None or stored:
            self._trouble = trouble
        return stored

    def _store(self, batch: Sequence[PendingBlock]) -> tuple[set[bytes], str | None]:
        new, known = self._sort_out(batch)
        room = self._make_room(len(new))
        trouble = None if room >= len(new) else f"{self._limit} bytes are the limit, and all of them are held"
        placed: dict[bytes, Record] = {}
        try:
            for block in new[:room]:
                if block.parent in placed or self._is_reachable(block.parent):
                    placed[block.key] = self._place(block)
        except OSError as error:
            trouble = str(error)
        self._commit(list(placed.values()))
        return known | placed.keys(), trouble

    def _sort_out(self, batch: Sequence[PendingBlock]) -> tuple[list[PendingBlock], set[bytes]]:
        """(blocks to be written, keys that are stored already); a block whose parent is in neither is left out."""
        new: dict[bytes, PendingBlock] = {}
        known = set()
        with self._shelf.lock:
            for block in batch:
                if self._shelf.catalog.get(block.key) is not None:
                    known.add(block.key)
                elif block.parent in new or self._is_reachable(block.parent):
                    new[block.key] = block
        return list(new.values()), known

    def _is_reachable(self, parent: bytes) -> bool:
        return parent == ROOT or self._shelf.catalog.get(parent) is not None

    def _place(self, block: PendingBlock) -> Record:
        """Writes a block into a slot; where the disk is full, in place of the oldest one."""
        try:
            return self._shelf.place(block.key, block.parent, block.token_bytes, block.parts)
        except OSError as error:
            if not is_disk_full(error):
                raise
            self._others.load()
            freed = 0
            while freed < self._record_bytes:
                more = self._drop_oldest()
                if not more:
                    raise
                freed += more
            self._bury()
            return self._shelf.place(block.key, block.parent, block.token_bytes, block.parts)

    def _commit(self, placed: Sequence[Record]) -> None:
        """Makes blocks durable, then their rows, then shows them."""
        entries = [Entry(record, used=self._shelf.tick()) for record in placed]
        try:
            self._shelf.segments.sync([record.slot for record in placed])
            self._shelf.commit(entries, [], [])
        except (OSError, sqlite3.Error):
            for record in placed:
                self._shelf.give_back(record.slot)
            raise
        with self._shelf.lock:
            for entry in entries:
                self._shelf.catalog.add(entry)

    def _make_room(self, wanted: int) -> int:
        """Evicts the oldest leaves until `wanted` records more keep the limit; returns how many really may come."""
        if self._limit is None:
            self._bury()
            return wanted
        needed = wanted * self._record_bytes
        if self._nbytes() + needed > self._limit:
            self._others.load()
        while self._nbytes() + needed > self._limit:
            if not self._drop_oldest():
                break
        self._bury()
        return max(0, min(wanted, (self._limit - self._nbytes()) // self._record_bytes))

    def _nbytes(self) -> int:
        return self._shelf.nbytes + self._others.nbytes

    def _drop_oldest(self) -> int:
        """Takes the oldest leaf of all shelves out of its catalog; returns its bytes, or 0 if none may go."""
        with self._shelf.lock:
            oldest = drop_oldest([self._shelf, *self._others])
        self.evicted += oldest is not None
        return 0 if oldest is None else oldest.layout.record_bytes

    def _make_slack(self) -> None:
        """Where the catalog file cannot grow: leaves it a block's space."""
        with contextlib.suppress(OSError, sqlite3.Error):
            self._shelf.file.shrink()
            self._drop_oldest()
            self._bury()

    def _bury(self) -> None:
        bury(self._shelf)
        self._others.bury()


def is_disk_full(error: Exception) -> bool:
    """Whether an error of the system or of SQLite says that there is no space, or that a file may not grow."""
    if isinstance(error, OSError):
        return error.errno in _DISK_FULL
    return isinstance(error, sqlite3.OperationalError) and "full" in str(error)


def release(shelf: Shelf, key: bytes) -> None:
    """One hold fewer; the caller has the shelf's lock."""
    holds = shelf.catalog.holds
    assert holds[key] > 0, key.hex()
    holds[key] -= 1
    if holds[key] == 0:
        del holds[key]
