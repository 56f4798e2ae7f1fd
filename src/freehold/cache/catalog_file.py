"""The catalog on disk: one SQLite table, in which every row carries its own checksum."""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import struct
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

from freehold.cache.catalog import Entry
from freehold.cache.damage import is_our_limit
from freehold.cache.layout import RecordLayout
from freehold.cache.record import Record, checksum, pack_header, unpack_header

CATALOG_NAME = "catalog.sqlite"
_SET_ASIDE_NAME = "catalog.damaged.sqlite"
_SCHEMA = (
    "CREATE TABLE blocks (slot INTEGER PRIMARY KEY, header BLOB NOT NULL, used INTEGER NOT NULL,"
    " pinned INTEGER NOT NULL, seal BLOB NOT NULL)"
)
_INSERT = "INSERT OR REPLACE INTO blocks (slot, header, used, pinned, seal) VALUES (?, ?, ?, ?, ?)"
# What SQLite says where it may be able to write later: a full disk is also an "I/O error" of its shared memory.
_NOT_NOW = ("disk is full", "disk I/O error", "is locked")
_DESCRIPTORS = 4  # that SQLite needs: the file, its log, its shared memory, the directory
# What reading a damaged database may raise.
_BROKEN = (sqlite3.Error, ValueError, TypeError, OverflowError, OSError)


@dataclass(slots=True)
class LoadedCatalog:
    """entries: rows that are whole. damaged: slots of rows that are not. problem: why there may have been more."""

    entries: list[Entry] = field(default_factory=list)
    damaged: list[int] = field(default_factory=list)
    problem: str | None = None


class CatalogFile:
    """Rows for entries. Used by one thread at a time; methods raise sqlite3.Error unless they say otherwise."""

    def __init__(self, directory: Path, layout: RecordLayout, stamp: bytes, *, writable: bool) -> None:
        self.path = directory / CATALOG_NAME
        self._layout = layout
        self._stamp = stamp
        self._writable = writable
        self._database: sqlite3.Connection | None = None
        self._copies = contextlib.ExitStack()
        self._is_put_off = False  # could not be opened to be written; `write` tries it again

    def load(self) -> LoadedCatalog:
        """Every row, as far as the file can be read. Raises OSError if the process has no file descriptors or memory
        left to read it."""
        loaded = LoadedCatalog()
        try:
            if not self.path.exists() or not self.path.stat().st_size:
                loaded.problem = "it is missing or empty"
                return loaded
            self._database = self._connect_as_may_be()
            if self._schema() != _SCHEMA:
                loaded.problem = "it has no table of blocks"
                return loaded
            for row in self._database.execute("SELECT slot, header, used, pinned, seal FROM blocks"):
                try:
                    loaded.entries.append(self._entry(*row))
                except (ValueError, TypeError, struct.error):
                    loaded.damaged.append(row[0])
        except _BROKEN as error:
            self._raise_our_limit(error)
            loaded.problem = f"it cannot be read: {error}"
        if self._is_put_off:
            self.close()
        return loaded

    def _raise_our_limit(self, error: Exception) -> None:
        """SQLite says of every file that it cannot open only that; the system says why."""
        if is_our_limit(error):
            raise error
        if not isinstance(error, sqlite3.OperationalError):
            return
        with contextlib.ExitStack() as opened:
            try:
                for _ in range(_DESCRIPTORS):
                    opened.callback(os.close, os.open(self.path, os.O_RDONLY | os.O_CLOEXEC))
            except OSError as reason:
                if is_our_limit(reason):
                    raise

    def _connect_as_may_be(self) -> sqlite3.Connection:
        """To write, if it can be opened so. Where it cannot be now, for want of space or of a lock, there is nothing
        wrong with what is in it: it is read, and `write` tries again."""
        if not self._writable:
            return self._connect_to_read()
        try:
            return self._connect()
        except sqlite3.OperationalError as error:
            if not any(sign in str(error) for sign in _NOT_NOW):
                raise
            self._is_put_off = True
            return self._connect_to_read()

    def _connect(self) -> sqlite3.Connection:
        database = sqlite3.connect(
            f"file:{quote(os.fsencode(self.path))}?mode=rwc",
            uri=True,
            timeout=10,
            isolation_level=None,
            check_same_thread=False,
        )
        try:
            # FULL: a transaction is on the disk when it returns. No memory map: a truncated file must be an error.
            for pragma in ("journal_mode=WAL", "synchronous=FULL", "mmap_size=0", "trusted_schema=OFF"):
                database.execute(f"PRAGMA {pragma}").fetchall()
            os.chmod(self.path, 0o600)
        except BaseException:
            database.close()
            raise
        return database

    def _connect_to_read(self) -> sqlite3.Connection:
        """Beside a process that writes; or, where SQLite may not even make its shared memory, to a copy."""
        try:
            return self._open_to_read(self.path)
        except sqlite3.OperationalError:
            folder = Path(self._copies.enter_context(tempfile.TemporaryDirectory(prefix="freehold-")))
            for suffix in ("", "-wal"):
                source = self.path.with_name(self.path.name + suffix)
                if source.exists():
                    shutil.copyfile(source, folder / source.name)
            return self._open_to_read(folder / self.path.name)

    @staticmethod
    def _open_to_read(path: Path) -> sqlite3.Connection:
        database = sqlite3.connect(
            f"file:{quote(os.fsencode(path))}?mode=ro",
            uri=True,
            timeout=10,
            isolation_level=None,
            check_same_thread=False,
        )
        try:
            database.execute("PRAGMA mmap_size=0").fetchall()
            database.execute("SELECT count(*) FROM sqlite_schema").fetchall()
        except sqlite3.Error:
            database.close()
            raise
        return database

    def _schema(self) -> str | None:
        assert self._database is not None
        row = self._database.execute("SELECT sql FROM sqlite_schema WHERE name = 'blocks'").fetchone()
        return None if row is None else row[0]

    def _entry(self, slot: int, header: bytes, used: int, pinned: int, seal: bytes) -> Entry:
        if self._seal(slot, header, used, pinned) != seal:
            raise ValueError("the row's checksum is wrong")
        return Entry(unpack_header(header, slot, self._layout, self._stamp), used, pinned)

    @staticmethod
    def _seal(slot: int, header: bytes, used: int, pinned: int) -> bytes:
        return checksum(header + struct.pack("<qqq", slot, used, pinned))

    def _row(self, entry: Entry) -> tuple[int, bytes, int, int, bytes]:
        slot, used, pinned = entry.record.slot, entry.used, entry.pinned
        header = pack_header(entry.record, self._stamp)
        return slot, header, used, pinned, self._seal(slot, header, used, pinned)

    def write(self, put: Iterable[Entry], delete: Iterable[int]) -> None:
        """Deletes the rows of some slots and writes the rows of entries: all of it durably, or none."""
        if self._database is None and self._is_put_off:
            self._database = self._connect()
        database = self._database
        if database is None:
            raise sqlite3.OperationalError(f"{self.path} is not open")
        database.execute("BEGIN IMMEDIATE")
        try:
            database.executemany("DELETE FROM blocks WHERE slot = ?", [(slot,) for slot in delete])
            database.executemany(_INSERT, map(self._row, put))
            database.execute("COMMIT")
        except BaseException:
            if database.in_transaction:
                with contextlib.suppress(sqlite3.Error):
                    database.execute("ROLLBACK")
            raise

    def recreate(self, entries: Iterable[Entry]) -> None:
        """A new database with these rows; the old one is set aside, replacing one that was set aside before.

        May also raise OSError.
        """
        self.close()
        if self.path.exists() and self.path.stat().st_size:
            os.replace(self.path, self.path.with_name(_SET_ASIDE_NAME))
        for suffix in ("", "-wal", "-shm", "-journal"):
            self.path.with_name(self.path.name + suffix).unlink(missing_ok=True)
        self._database = self._connect()
        self._database.execute(_SCHEMA)
        self.write(entries, ())

    def shrink(self) -> None:
        """Folds the write-ahead log into the file and gives its space back."""
        if self._database is not None:
            self._database.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()

    def still_has(self, record: Record) -> bool:
        """False if another process has deleted the record since it was loaded; True if that cannot be said. Raises
        nothing."""
        if self._database is None:
            return True
        try:
            row = self._database.execute("SELECT header FROM blocks WHERE slot = ?", (record.slot,)).fetchone()
        except _BROKEN:
            return True
        return row is not None and row[0] == pack_header(record, self._stamp)

    def problems(self) -> list[str]:
        """What SQLite's own check finds; empty if the file is sound. Raises nothing."""
        if self._database is None:
            return []
        try:
            rows = self._database.execute("PRAGMA integrity_check(10)").fetchall()
        except _BROKEN as error:
            return [str(error)]
        return [row[0] for row in rows if row[0] != "ok"]

    def close(self) -> None:
        """Closes the file; the last one to close it folds the write-ahead log into it."""
        database, self._database = self._database, None
        if database is not None:
            with contextlib.suppress(sqlite3.Error):
                database.close()
        self._copies.close()
