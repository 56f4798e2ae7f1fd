"""Archives: chains of blocks in one file that can be carried to another store of the same identity."""

from __future__ import annotations

import contextlib
import os
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import xxhash

from freehold.cache.identity import Identity
from freehold.cache.label import pack_label, unpack_label
from freehold.cache.layout import CHECKSUM_BYTES, RecordLayout
from freehold.cache.prefix import ROOT
from freehold.cache.record import Record, checksum, stamp_of, unpack_header
from freehold.cache.shelf import Shelf, shelf_path
from freehold.cache.store import BlockStore
from freehold.core.durable import sync
from freehold.core.errors import StoreError

_MAGIC = b"FHARCH01"
_START = struct.Struct("<8sQQ")  # magic, bytes of the label, number of records
_MOST_LABEL_BYTES = 1 << 24


def export_blocks(shelf: Shelf, records: Sequence[Record], target: Path) -> int:
    """Writes verified records, each after its parent, into a new file; returns its bytes.

    Raises StoreError if a block is damaged or was evicted meanwhile, OSError if the file cannot be written; then
    there is no file. One that was there is replaced.
    """
    label = pack_label(shelf.identity, shelf.layout)
    buffer = memoryview(bytearray(shelf.layout.record_bytes))
    state = xxhash.xxh3_128()
    partial = target.with_name(f".{target.name}.partial")
    try:
        with partial.open("wb") as file:
            os.chmod(partial, 0o600)
            for piece in (_START.pack(_MAGIC, len(label), len(records)), label):
                state.update(piece)
                file.write(piece)
            for record in records:
                problem = shelf.check(record, buffer)
                if problem is not None:
                    reason = problem if shelf.file.still_has(record) else "it was evicted meanwhile; export again"
                    raise StoreError(f"{shelf.where(record)}: {reason}. Nothing was exported")
                state.update(buffer)
                file.write(buffer)
            file.write(state.digest())
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, target)
        sync(target.absolute().parent)
    except BaseException:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise
    return target.stat().st_size


@dataclass(frozen=True, slots=True)
class Archive:
    """A verified archive: whose blocks, their layout, how many, and the offset of the first in the file."""

    path: Path
    identity: Identity
    layout: RecordLayout
    num_records: int
    start: int

    def blocks(self) -> Iterator[tuple[Record, dict[str, memoryview]]]:
        """Each record and its parts, in buffers of its own."""
        with self.path.open("rb") as file:
            file.seek(self.start)
            stamp = stamp_of(self.identity, self.layout)
            for _ in range(self.num_records):
                image = memoryview(_read(file, self.layout.record_bytes))
                record = unpack_header(bytes(image[: self.layout.header_bytes]), 0, self.layout, stamp)
                places = self.layout.places.items()
                yield record, {name: image[place.offset : place.offset + place.nbytes] for name, place in places}


def open_archive(path: Path) -> Archive:
    """Verifies a whole archive. Raises StoreError if anything in it is wrong, OSError if it cannot be read."""
    try:
        with path.open("rb") as file:
            head = _read(file, _START.size)
            magic, label_bytes, num_records = _START.unpack(head)
            if magic != _MAGIC or label_bytes > _MOST_LABEL_BYTES:
                raise ValueError("it is no archive of blocks, or of another version")
            label = _read(file, label_bytes)
            identity, layout = unpack_label(label)
            archive = Archive(path, identity, layout, num_records, file.tell())
            if path.stat().st_size != archive.start + num_records * layout.record_bytes + CHECKSUM_BYTES:
                raise ValueError("its size is not what its first bytes say")
            state = xxhash.xxh3_128(head + label)
            for _ in range(num_records):
                state.update(_read(file, layout.record_bytes))
            if _read(file, CHECKSUM_BYTES) != state.digest():
                raise ValueError("its checksum is wrong")
        _check_blocks(archive)
    except (ValueError, EOFError) as error:
        raise StoreError(f"{path} cannot be used: {error}. Nothing was imported; export or copy it again") from error
    return archive


def _check_blocks(archive: Archive) -> None:
    known = {ROOT}
    for record, parts in archive.blocks():
        if record.parent not in known:
            raise ValueError(f"block {record.key.hex()[:16]} comes without the block before it")
        for index, part in enumerate(parts.values()):
            if checksum(part) != record.checksum_of(index):
                raise ValueError(f"a part of block {record.key.hex()[:16]} has a wrong checksum")
        known.add(record.key)


def _read(file: BinaryIO, nbytes: int) -> bytes:
    content = file.read(nbytes)
    if len(content) != nbytes:
        raise EOFError("it ends too early")
    return content


def import_blocks(archive: Archive, directory: Path, *, add_identity: bool = False) -> tuple[int, int]:
    """Stores the blocks of a verified archive; returns (blocks in it, blocks that were new).

    add_identity: also if the directory has no blocks of that identity yet; otherwise that is refused.
    Raises StoreError if the identity is refused or a block cannot be stored, StoreLockedError if a process uses the
    directory. No limit is kept here; the next process that opens the store keeps its own.
    """
    if not add_identity and not shelf_path(directory, archive.identity).is_dir():
        raise StoreError(
            f"{archive.path} holds blocks of identity {archive.identity.short}, and {directory} has none of that"
            " identity: other weights, configuration, tokenizer or numerics made them. Start that model once with this"
            " store, or add the identity with --add-identity"
        )
    with BlockStore(directory, archive.identity, archive.layout, limit_bytes=None) as store:
        before, stored = store.stats().num_blocks, 0
        for record, parts in archive.blocks():
            while not store.put(record.parent, record.tokens, parts):
                store.flush()
                stored += sum(done.stored for done in store.completed())
        store.flush()
        stored += sum(done.stored for done in store.completed())
        if stored != archive.num_records:
            reasons = "; ".join(event.what for event in store.damage.events)
            raise StoreError(
                f"{archive.num_records - stored} of {archive.num_records} blocks were not stored: {reasons}"
            )
        return archive.num_records, store.stats().num_blocks - before


def chains_of(shelf: Shelf, leaves: Sequence[bytes]) -> list[Record]:
    """The records of all blocks that lead to the leaves, each once and after its parent."""
    records: dict[bytes, Record] = {}
    for leaf in leaves:
        for record in shelf.catalog.chain(leaf):
            records.setdefault(record.key, record)
    return list(records.values())
