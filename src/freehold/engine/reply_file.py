"""Answers on the disk: one SQLite table, in which every row carries its own checksum."""

from __future__ import annotations

import contextlib
import hashlib
import os
import sqlite3
import sys
import time
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from freehold.model.chat_replay import Reply

REPLIES_NAME = "replies-1.sqlite"
_SET_ASIDE_NAME = "replies-1.damaged.sqlite"
_SCHEMA = (
    "CREATE TABLE replies (key BLOB NOT NULL, reasoning BLOB NOT NULL, opening BLOB NOT NULL, ids BLOB NOT NULL,"
    " made INTEGER NOT NULL, used INTEGER NOT NULL, seal BLOB NOT NULL, PRIMARY KEY (key, reasoning))"
)
_INDEX = "CREATE INDEX replies_used ON replies (used)"
_INSERT = "INSERT OR REPLACE INTO replies (key, reasoning, opening, ids, made, used, seal) VALUES (?, ?, ?, ?, ?, ?, ?)"
_ROW_OVERHEAD = 200  # of a row beside its ids and opening: hashes, its places in two indexes
_RAM_OVERHEAD = 500  # of an answer beside its ids and opening: objects, hashes, dictionary entries
_SEAL_BYTES = 16


@dataclass(frozen=True, slots=True)
class StoredReply:
    """A row. key: of the conversation. reasoning: digest of the answer's reasoning. made: nanoseconds since 1970."""

    key: bytes
    reasoning: bytes
    reply: Reply
    made: int

    @property
    def nbytes(self) -> int:
        """About the bytes of RAM that it takes."""
        return self.reply.ids.itemsize * len(self.reply.ids) + len(self.reply.opening) + _RAM_OVERHEAD


class ReplyFile:
    """Rows of answers, the least recently used deleted to keep the limit. One file may be used by several processes.

    Methods raise sqlite3.Error or OSError: sqlite3.DatabaseError itself for a damaged file. One thread at a time.
    wait_seconds: how long to wait for a lock of another process.
    """

    def __init__(self, path: Path, *, limit_bytes: int, wait_seconds: float) -> None:
        self.path = path
        self._limit = limit_bytes
        self._wait = wait_seconds
        self._database: sqlite3.Connection | None = None

    def open(self) -> None:
        """Opens the file, and makes it if it is not there. It is for its owner alone."""
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.close(os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        database = sqlite3.connect(
            f"file:{quote(os.fsencode(self.path))}?mode=rw",
            uri=True,
            timeout=self._wait,
            isolation_level=None,
            check_same_thread=False,
        )
        try:
            # NORMAL: what was committed outlives the process, though not a loss of power; it never costs the file.
            # No memory map: a truncated file must be an error.
            for pragma in ("auto_vacuum=INCREMENTAL", "journal_mode=WAL", "synchronous=NORMAL", "mmap_size=0"):
                database.execute(f"PRAGMA {pragma}").fetchall()
            database.execute("PRAGMA trusted_schema=OFF").fetchall()
            self._make_table(database)
        except BaseException:
            database.close()
            raise
        self._database = database

    @staticmethod
    def _make_table(database: sqlite3.Connection) -> None:
        query = "SELECT sql FROM sqlite_schema WHERE name = 'replies'"
        if database.execute(query).fetchone() is None:
            database.execute("BEGIN IMMEDIATE")
            if database.execute(query).fetchone() is None:  # else another process was faster
                database.execute(_SCHEMA)
                database.execute(_INDEX)
            database.execute("COMMIT")
        if database.execute(query).fetchone() != (_SCHEMA,):
            raise sqlite3.DatabaseError("its table is not one of answers")

    @property
    def is_open(self) -> bool:
        """Whether `open` succeeded."""
        return self._database is not None

    def _connection(self) -> sqlite3.Connection:
        if self._database is None:
            raise sqlite3.OperationalError(f"{self.path} is not open")
        return self._database

    def find(self, key: bytes) -> list[StoredReply]:
        """The whole rows of a key, the latest first."""
        query = "SELECT reasoning, opening, ids, made, seal FROM replies WHERE key = ? ORDER BY made DESC"
        rows = self._connection().execute(query, (key,)).fetchall()
        return [_stored(key, *row[:4]) for row in rows if _is_sealed(key, *row)]

    def write(self, rows: Sequence[StoredReply], used: Iterable[bytes]) -> None:
        """Writes rows, marks keys as used now, and deletes what is too much: all of it, or nothing."""
        database = self._connection()
        now = time.time_ns()
        database.execute("BEGIN IMMEDIATE")
        try:
            database.executemany("UPDATE replies SET used = ? WHERE key = ?", [(now, key) for key in used])
            database.executemany(_INSERT, [_row(row, now) for row in rows])
            deleted = self._make_room(database)
            database.execute("COMMIT")
        except BaseException:
            if database.in_transaction:
                with contextlib.suppress(sqlite3.Error):
                    database.execute("ROLLBACK")
            raise
        if deleted:
            database.execute("PRAGMA incremental_vacuum").fetchall()

    def nbytes(self) -> int:
        """Bytes of the file that hold something."""
        database = self._connection()
        (pages,), (free,), (size,) = (
            database.execute(f"PRAGMA {name}").fetchone() for name in ("page_count", "freelist_count", "page_size")
        )
        return int((pages - free) * size)

    def _make_room(self, database: sqlite3.Connection) -> bool:
        deleted = False
        while (excess := self.nbytes() - self._limit) > 0:
            query = "SELECT rowid, length(ids) + length(opening) FROM replies ORDER BY used LIMIT 1000"
            doomed = []
            for row_id, size in database.execute(query).fetchall():
                doomed.append((row_id,))
                excess -= size + _ROW_OVERHEAD
                if excess <= 0:
                    break
            if not doomed:
                break  # empty, and still too large
            database.executemany("DELETE FROM replies WHERE rowid = ?", doomed)
            deleted = True
        return deleted

    def replace(self) -> None:
        """A new, empty file; the damaged one is set aside, replacing one that was set aside before."""
        self.close()
        os.replace(self.path, self.path.with_name(_SET_ASIDE_NAME))
        for suffix in ("-wal", "-shm", "-journal"):
            self.path.with_name(self.path.name + suffix).unlink(missing_ok=True)
        self.open()

    def close(self) -> None:
        """Closes the file; the last one to close it folds the write-ahead log into it. Raises nothing."""
        database, self._database = self._database, None
        if database is not None:
            with contextlib.suppress(sqlite3.Error):
                database.close()


def _row(stored: StoredReply, now: int) -> tuple[bytes, bytes, bytes, bytes, int, int, bytes]:
    ids = _little_endian(stored.reply.ids).tobytes()
    opening = stored.reply.opening.encode("utf-8", "surrogatepass")
    seal = _seal(stored.key, stored.reasoning, opening, ids, stored.made)
    return stored.key, stored.reasoning, opening, ids, stored.made, now, seal


def _stored(key: bytes, reasoning: bytes, opening: bytes, ids: bytes, made: int) -> StoredReply:
    reply = Reply(_little_endian(array("i", ids)), opening.decode("utf-8", "surrogatepass"))
    return StoredReply(key, reasoning, reply, made)


def _little_endian(ids: array[int]) -> array[int]:
    """The same numbers between this machine's order of bytes and the file's."""
    if sys.byteorder == "big":
        ids = ids[:]
        ids.byteswap()
    return ids


def _is_sealed(key: bytes, reasoning: object, opening: object, ids: object, made: object, seal: object) -> bool:
    if not (isinstance(reasoning, bytes) and isinstance(opening, bytes) and isinstance(ids, bytes)):
        return False
    return isinstance(made, int) and _seal(key, reasoning, opening, ids, made) == seal


def _seal(key: bytes, reasoning: bytes, opening: bytes, ids: bytes, made: int) -> bytes:
    seal = hashlib.blake2b(digest_size=_SEAL_BYTES)
    for field in (key, reasoning, opening, ids, str(made).encode()):
        seal.update(len(field).to_bytes(8, "little") + field)
    return seal.digest()
