"""A shelf: the directory of one identity's blocks, and what of it is in memory."""

from __future__ import annotations

import contextlib
import re
import sqlite3
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from freehold.cache.catalog import Catalog, Entry
from freehold.cache.catalog_file import CatalogFile
from freehold.cache.damage import DamageLog, is_our_limit
from freehold.cache.identity import Identity
from freehold.cache.label import FORMAT
from freehold.cache.layout import PartPlace, RecordLayout
from freehold.cache.record import Record, checksum, pack_header, stamp_of, unpack_header
from freehold.cache.segments import Segments

_NAME = re.compile(rf"v{FORMAT}-[0-9a-f]{{16}}")


def shelf_path(directory: Path, identity: Identity) -> Path:
    """Where an identity's blocks lie. The format is in the name, so that another format's blocks are left alone."""
    return directory / f"v{FORMAT}-{identity.short}"


def shelf_paths(directory: Path) -> list[Path]:
    """The shelves in a store's directory, by name."""
    if not directory.is_dir():
        return []
    return sorted(path for path in directory.iterdir() if _NAME.fullmatch(path.name) and path.is_dir())


class Shelf:
    """One identity's records: in memory the catalog, on disk its file and the data files.

    `lock` guards catalog, doomed and changed. The disk belongs to one thread, except for `read` and `check`, which
    may be called in any. Opened by `freehold.cache.recovery`.
    """

    def __init__(
        self, path: Path, identity: Identity, layout: RecordLayout, damage: DamageLog, *, writable: bool
    ) -> None:
        self.path, self.identity, self.layout, self.damage, self.writable = path, identity, layout, damage, writable
        self.stamp = stamp_of(identity, layout)
        self.lock = threading.Condition()
        self.catalog = Catalog()
        self.doomed: list[Entry] = []
        """Out of the catalog, but not yet deleted from the disk: their slots are not free."""
        self.changed: set[bytes] = set()
        """Keys whose marks are not on the disk yet."""
        self.clock = 0
        """The latest use; see `tick`."""
        self.segments = Segments(path, layout)
        self.file = CatalogFile(path, layout, self.stamp, writable=writable)

    @property
    def nbytes(self) -> int:
        """Bytes of the records in the catalog."""
        return len(self.catalog) * self.layout.record_bytes

    def tick(self) -> int:
        """The time of a use: now, and always later than the last, even if the machine's clock is set back."""
        with self.lock:
            self.clock = max(self.clock + 1, time.time_ns())
            return self.clock

    # The catalog, under the lock.

    def mark(self, key: bytes, *, used: int | None = None, pinned: bool | None = None) -> bool:
        """Sets the marks of a record, on the disk at the next `commit`; False if there is none of that key."""
        known = self.catalog.mark(key, used=used, pinned=pinned)
        if known:
            self.changed.add(key)
        return known

    def drop(self, key: bytes) -> None:
        """Takes a record out of the catalog; `bury` deletes it."""
        self.doomed.append(self.take_out(key))

    def take_out(self, key: bytes) -> Entry:
        """Takes a record out of the catalog, and the block before it takes over its marks; the disk stays as it is."""
        entry = self.catalog.remove(key)
        self.changed.discard(key)
        if self.catalog.get(entry.record.parent) is not None:
            self.changed.add(entry.record.parent)
        return entry

    # The disk.

    def announce(self, record: Record, place: PartPlace) -> None:
        """Has the disk begin to read a part that `read` will ask for. May do nothing; raises nothing."""
        with contextlib.suppress(OSError):
            self.segments.announce(record.slot, place.offset, place.nbytes)

    def read(self, record: Record, place: PartPlace, views: Sequence[memoryview]) -> str | None:
        """Fills the buffers with a part. None if its checksum is right, otherwise what is wrong.

        Raises OSError if the process has no file descriptors or memory left: that says nothing of the block.
        """
        try:
            self.segments.read(record.slot, place.offset, views)
        except (OSError, EOFError) as error:
            if is_our_limit(error):
                raise
            return str(error)
        return None if checksum(*views) == record.checksum_of(place.index) else "the checksum is wrong"

    def check(self, record: Record, buffer: memoryview) -> str | None:
        """Reads the whole record into a buffer of at least `layout.record_bytes`. None if all of it is right."""
        whole = buffer[: self.layout.record_bytes]
        try:
            self.segments.read(record.slot, 0, [whole])
            if unpack_header(bytes(whole[: self.layout.header_bytes]), record.slot, self.layout, self.stamp) != record:
                return "the header is that of another block"
        except (OSError, EOFError, ValueError) as error:
            return str(error)
        for name, place in self.layout.places.items():
            if checksum(whole[place.offset : place.offset + place.nbytes]) != record.checksum_of(place.index):
                return f"the checksum of {name} is wrong"
        return None

    def where(self, record: Record, place: PartPlace | None = None) -> str:
        """A record's place, for people."""
        segment, offset = self.segments.where(record.slot)
        name = "" if place is None else f" part {place.name}"
        offset += 0 if place is None else place.offset
        return f"{self.segments.path(segment)}: block {record.key.hex()[:16]}{name} at byte {offset}"

    def place(self, key: bytes, parent: bytes, token_bytes: bytes, parts: Sequence[Sequence[memoryview]]) -> Record:
        """Writes a block into a free slot. It counts only after `segments.sync` and `commit`.

        parts: the buffers of each part, in the layout's order. Raises OSError; then the slot is as it was.
        """
        slot = self.segments.take()
        try:
            self.segments.allocate(slot)
            checksums = []
            for place, views in zip(self.layout.places.values(), parts, strict=True):
                checksums.append(checksum(*views))
                self.segments.write(slot, place.offset, views)
            record = Record(key, parent, token_bytes, slot, b"".join(checksums), time.time_ns())
            self.segments.write(slot, 0, [memoryview(pack_header(record, self.stamp))])
        except BaseException:
            self.give_back(slot)
            raise
        return record

    def give_back(self, slot: int) -> None:
        """Frees a slot whose block does not count. A slot that cannot even be cleared is not used again."""
        with contextlib.suppress(OSError):
            self.segments.free(slot)

    def commit(self, new: Sequence[Entry], changed: Sequence[Entry], doomed: Sequence[Entry]) -> None:
        """Writes the rows of entries and deletes those of doomed ones, durably; then frees the slots of the doomed.

        Raises sqlite3.Error or OSError; then nothing has changed.
        """
        rows, slots = (*new, *changed), [entry.record.slot for entry in doomed]
        try:
            self.file.write(rows, slots)
        except sqlite3.DatabaseError as error:
            if type(error) is not sqlite3.DatabaseError:  # the subclasses speak of the disk, this one of the content
                raise
            self.damage.report(str(self.file.path), f"{error}; set aside, and written again from memory")
            gone = {entry.record.slot for entry in doomed}
            with self.lock:
                kept = {entry.record.slot: entry for entry in (*self.catalog, *rows)}
            self.file.recreate([entry for slot, entry in kept.items() if slot not in gone])
        for slot in slots:
            self.give_back(slot)

    def close(self) -> None:
        """Closes all files."""
        self.file.close()
        self.segments.close()
