"""Opening a shelf after anything that may have happened to it."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import sqlite3
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from freehold.cache.catalog import Entry
from freehold.cache.catalog_file import LoadedCatalog
from freehold.cache.damage import DamageLog, is_our_limit
from freehold.cache.identity import Identity
from freehold.cache.label import read_label, write_label
from freehold.cache.layout import RecordLayout
from freehold.cache.record import Record, unpack_header
from freehold.cache.shelf import Shelf, shelf_path
from freehold.core.errors import ArgumentError, StoreError

_log = logging.getLogger("freehold.cache")


def open_own_shelf(
    directory: Path, identity: Identity, layout: RecordLayout, damage: DamageLog, *, writable: bool
) -> Shelf:
    """The shelf of a known identity, made if it is not there. A damaged label is written again.

    Raises ArgumentError if the blocks there have another layout: the identity's digest has to cover it.
    """
    path = shelf_path(directory, identity)
    with contextlib.suppress(StoreError, OSError):
        found, found_layout = read_label(path)
        if found != identity or found_layout != layout:
            raise ArgumentError(
                f"{path} holds blocks of another digest or layout than identity {identity.short} has now; make the"
                " digest cover the layout, or remove that directory"
            )
    if writable:
        try:
            write_label(path, identity, layout, damage)
            if not os.access(path, os.W_OK | os.X_OK, effective_ids=True):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        except OSError as error:
            damage.report(str(path), f"cannot be written ({error}); no block is stored")
            writable = False
    try:
        return open_shelf(path, identity, layout, damage, writable=writable)
    except OSError as error:
        damage.report(str(path), f"cannot be read ({error}); no block is read or stored")
        return Shelf(path, identity, layout, damage, writable=False)


def open_shelf(path: Path, identity: Identity, layout: RecordLayout, damage: DamageLog, *, writable: bool) -> Shelf:
    """The shelf at `path`, with every whole record that can be found. Damage is reported, never raised. Raises OSError
    if the process has no file descriptors or memory left to look; then nothing has changed.

    writable: no other process writes, and what is found wrong is put right on the disk. Otherwise the disk stays as
    it is.
    """
    shelf = Shelf(path, identity, layout, damage, writable=writable)
    try:
        _read_in(shelf)
    except BaseException:
        shelf.close()
        raise
    return shelf


def _read_in(shelf: Shelf) -> None:
    """Fills the catalog with what is on the disk and, if the shelf is writable, puts right what is wrong there."""
    loaded = shelf.file.load()  # before the files are counted: a process that writes makes them larger, then adds rows
    try:
        shelf.segments.count()
    except FileNotFoundError:
        return
    except OSError as error:
        if is_our_limit(error):
            raise
        shelf.damage.report(str(shelf.path), f"cannot be read ({error}); no block is read or stored")
        shelf.writable = False
        return
    if loaded.problem is not None and shelf.segments.sizes:
        shelf.damage.report(str(shelf.file.path), f"{loaded.problem}; looking for blocks in the data files")
    gone = _take_rows(shelf, loaded)
    found = _search_headers(shelf, complete=loaded.problem is None) if shelf.writable or loaded.problem else []
    shelf.clock = max((entry.used for entry in shelf.catalog), default=0)
    lost = shelf.catalog.unreachable()
    for entry in lost:
        shelf.take_out(entry.record.key)
    if lost:
        _log.info("%s: %d blocks without the blocks before them are dropped", shelf.path, len(lost))
    if shelf.writable:
        try:
            _put_right(shelf, loaded, found, [*gone, *(entry.record.slot for entry in lost)])
        except (OSError, sqlite3.Error) as error:
            shelf.damage.report(str(shelf.path), f"cannot be written ({error}); no block is stored")
            shelf.writable = False


def _put_right(shelf: Shelf, loaded: LoadedCatalog, found: Sequence[Entry], gone: Sequence[int]) -> None:
    """Makes the disk say what the catalog in memory says: adds the rows that were found, deletes those that are gone,
    frees all other slots. Raises OSError or sqlite3.Error."""
    broken = loaded.problem is not None or bool(loaded.damaged)
    if found and not broken:
        # Rows may be missing because of a crash, or because SQLite cannot see them any more.
        for problem in shelf.file.problems():
            shelf.damage.report(str(shelf.file.path), f"{problem}; written again")
            broken = True
    if broken:
        shelf.file.recreate(shelf.catalog)
    elif found or gone:
        changed = shelf.changed.union(entry.record.key for entry in found)
        shelf.file.write([entry for entry in shelf.catalog if entry.record.key in changed], gone)
    shelf.changed.clear()
    shelf.segments.reclaim({entry.record.slot for entry in shelf.catalog})


def _take_rows(shelf: Shelf, loaded: LoadedCatalog) -> list[int]:
    """Takes the rows whose records are on the disk into the catalog; returns the slots of those whose are not."""
    for slot in loaded.damaged:
        shelf.damage.report(
            str(shelf.file.path), f"the row of slot {slot} is damaged; looking for its block in the data"
        )
    whole = [entry for entry in loaded.entries if shelf.segments.is_whole(entry.record.slot)]
    gone = [entry for entry in loaded.entries if not shelf.segments.is_whole(entry.record.slot)]
    slots: set[int] = set()
    for entry in (*whole, *gone):
        record = entry.record
        if record.slot not in slots and shelf.catalog.get(record.key) is None:
            shelf.catalog.add(entry)
            slots.add(record.slot)
    for entry in gone:  # once all are there, so that their marks find the blocks before them
        if shelf.catalog.get(entry.record.key) is entry:
            shelf.take_out(entry.record.key)
    missing = Counter(shelf.segments.path(shelf.segments.where(entry.record.slot)[0]) for entry in gone)
    for path, count in sorted(missing.items()):
        shelf.damage.report(str(path), f"missing or cut off; {count} blocks are lost")
    return [entry.record.slot for entry in gone]


def _search_headers(shelf: Shelf, *, complete: bool) -> list[Entry]:
    """Adds records that the catalog file does not know but whose headers are whole, and returns them.

    complete: the catalog file could be read to its end. Then the slots left are few, written just before a crash or
    of rows that are damaged, and a record is taken only if every part of it is right. Otherwise they may be all
    there are; then the parts are checked when they are read.
    """
    taken = {entry.record.slot for entry in shelf.catalog}
    buffer = memoryview(bytearray(shelf.layout.record_bytes if complete else shelf.layout.header_bytes))
    found = []
    for slot in shelf.segments.written_slots():
        if slot in taken:
            continue
        record = _read_header(shelf, slot, buffer[: shelf.layout.header_bytes], quiet=complete)
        if record is None or shelf.catalog.get(record.key) is not None:
            continue
        if complete and shelf.check(record, buffer) is not None:
            continue
        entry = Entry(record, used=record.created)
        shelf.catalog.add(entry)
        found.append(entry)
    if found:
        _log.info("%s: found %d blocks that were not in the catalog", shelf.path, len(found))
    return found


def _read_header(shelf: Shelf, slot: int, header: memoryview, *, quiet: bool) -> Record | None:
    try:
        shelf.segments.read(slot, 0, [header])
        if not any(header):
            return None  # a free slot
        return unpack_header(bytes(header), slot, shelf.layout, shelf.stamp)
    except (OSError, EOFError, ValueError) as error:
        if is_our_limit(error):
            raise
        if not quiet:
            segment, offset = shelf.segments.where(slot)
            shelf.damage.report(f"{shelf.segments.path(segment)} at byte {offset}", f"{error}; its block is lost")
        return None
