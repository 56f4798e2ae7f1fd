"""The thread that writes answers to their file, and what becomes of a file that cannot be used."""

from __future__ import annotations

import logging
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from pathlib import Path

from freehold.engine.reply_file import ReplyFile, StoredReply

_log = logging.getLogger("freehold.engine")

_MOST_QUEUED_BYTES = 16 << 20
_MOST_MARKS = 100_000
_BATCH_ROWS = 256
_READ_WAIT_SECONDS = 0.05
_WRITE_WAIT_SECONDS = 5.0
_PAUSE_SECONDS = 5.0  # without reading, after a read failed


class ReplyDisk:
    """A file of answers behind a queue. Safe to use from several threads; methods raise nothing.

    written: answers on the disk. given_up: those that should be there and are not. path, limit_bytes: the file and its
    limit. Trouble is reported in the log `freehold.engine`, each kind once. A damaged file is set aside and begun anew,
    once.
    """

    def __init__(self, path: Path, limit_bytes: int) -> None:
        self.written = 0
        self.given_up = 0
        self._path = path
        self._writer = ReplyFile(path, limit_bytes=limit_bytes, wait_seconds=_WRITE_WAIT_SECONDS)
        self._reader = ReplyFile(path, limit_bytes=limit_bytes, wait_seconds=_READ_WAIT_SECONDS)
        self._read_lock = threading.Lock()
        self._no_reads_before = 0.0
        self._is_damaged = False
        self._was_replaced = False
        self._reported: set[str] = set()
        self._queue: deque[StoredReply] = deque()
        self._queued_bytes = 0
        self._marks: set[bytes] = set()
        self._busy = False
        self._stopping = False
        self._changed = threading.Condition()
        self._attempt(self._open_reader)
        self._thread = threading.Thread(target=self._run, name="freehold-replies", daemon=True)
        self._thread.start()

    @property
    def is_ready(self) -> bool:
        """Whether answers can be found on the disk now."""
        return self._reader.is_open and time.monotonic() >= self._no_reads_before

    def put(self, stored: StoredReply) -> None:
        """Takes an answer to be written; gives it up if too many are waiting, and after `stop`."""
        with self._changed:
            if self._stopping or self._queued_bytes + stored.nbytes > _MOST_QUEUED_BYTES:
                self.given_up += 1
                return
            self._queue.append(stored)
            self._queued_bytes += stored.nbytes
            self._changed.notify_all()

    def mark(self, key: bytes) -> None:
        """The key was used; the file learns it with the next answers."""
        with self._changed:
            if len(self._marks) < _MOST_MARKS:
                self._marks.add(key)

    def find(self, key: bytes) -> list[StoredReply]:
        """What the file has of a key, the latest first."""
        with self._read_lock:
            if time.monotonic() < self._no_reads_before:
                return []
            try:
                if not self._reader.is_open:
                    self._reader.open()
                return self._reader.find(key)
            except (sqlite3.Error, OSError) as error:
                self._no_reads_before = time.monotonic() + _PAUSE_SECONDS
                self._note(error)
                return []

    def flush(self) -> None:
        """Waits until everything taken so far is written or given up."""
        with self._changed:
            self._changed.wait_for(lambda: not (self._queue or self._busy))

    def stop(self) -> None:
        """Writes what is waiting and closes the file. May be called again."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        self._thread.join()
        with self._read_lock:
            self._reader.close()
            self._no_reads_before = float("inf")
        self._writer.close()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._busy = False
                self._changed.notify_all()
                self._changed.wait_for(lambda: self._queue or self._stopping)
                if not self._queue:
                    return
                rows = [self._queue.popleft() for _ in range(min(_BATCH_ROWS, len(self._queue)))]
                self._queued_bytes -= sum(row.nbytes for row in rows)
                marks, self._marks = self._marks, set()
                self._busy = True
            if self._attempt(partial(self._write, rows, marks)):
                self.written += len(rows)
            else:
                self.given_up += len(rows)

    def _open_reader(self) -> None:
        with self._read_lock:
            self._reader.open()

    def _write(self, rows: list[StoredReply], marks: set[bytes]) -> None:
        if self._is_damaged and not self._was_replaced:
            raise sqlite3.DatabaseError("a reader found it damaged")
        if not self._writer.is_open:
            self._writer.open()
        self._writer.write(rows, marks)

    def _attempt(self, action: Callable[[], None]) -> bool:
        """Whether the action succeeded; tried again with a new file if this one turns out damaged."""
        try:
            action()
            return True
        except (sqlite3.Error, OSError) as error:
            self._note(error)
        if not self._is_damaged or self._was_replaced:
            return False
        self._was_replaced = True
        try:
            with self._read_lock:
                self._reader.close()
                self._writer.replace()
                self._no_reads_before = 0.0
            action()
            return True
        except (sqlite3.Error, OSError) as error:
            self._note(error)
            return False

    def _note(self, error: Exception) -> None:
        """Reports what was not yet reported. Of SQLite's errors the bare one is that of a damaged file."""
        if type(error) is sqlite3.DatabaseError:
            self._is_damaged = True
        if str(error) not in self._reported:
            self._reported.add(str(error))
            _log.warning("%s: answers may not be recognised when they come back: %s", self._path, error)
