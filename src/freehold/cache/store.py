"""The block store: blocks that outlive the process, whole and verified, or not there at all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, cast

from freehold.cache.damage import DamageLog
from freehold.cache.identity import Identity
from freehold.cache.layout import RecordLayout
from freehold.cache.prefix import ROOT, block_hash
from freehold.cache.record import KEY_BYTES, Record, pack_tokens
from freehold.cache.recovery import open_own_shelf
from freehold.cache.shelf import shelf_path, shelf_paths
from freehold.cache.shelves import Shelves
from freehold.cache.store_lock import StoreLock
from freehold.cache.store_reader import ReadTarget, StoreReader
from freehold.cache.store_writer import Completion, PendingBlock, StoreWriter, release
from freehold.core.errors import ArgumentError, StoreError

if TYPE_CHECKING:
    from typing_extensions import Buffer

    Buffers = Buffer | Sequence[Buffer]


@dataclass(frozen=True, slots=True)
class StoreStats:
    """num_blocks, nbytes: what is stored for this identity. inflight_bytes: on the way to the disk.
    Since the start: evicted (blocks of any identity), given_up (puts that were not stored), num_damaged (events)."""

    num_blocks: int
    nbytes: int
    inflight_bytes: int
    evicted: int
    given_up: int
    num_damaged: int


class BlockStore:
    """Blocks of one identity in a directory, which other identities may share.

    directory: made if it is not there. identity, layout: whose blocks, and their parts; see `Identity` and
        `RecordLayout`.
    limit_bytes: most bytes of all identities' records; the least recently used leaves go first. None: until the
        disk is full.
    inflight_bytes: most bytes that `put` takes before they are on the disk.
    read_threads: threads of `read_many`.

    A directory that cannot be written is no error: its blocks are read, what is put is given up, and `damage` says
    so. Damage is never an error at the start. Raises StoreLockedError if another process has the directory,
    ArgumentError if limit_bytes is less than one record.

    `put` and `completed` are for one thread; everything may be called from any.
    """

    def __init__(
        self,
        directory: Path,
        identity: Identity,
        layout: RecordLayout,
        *,
        limit_bytes: int | None,
        inflight_bytes: int = 256 << 20,
        read_threads: int = 4,
    ) -> None:
        if limit_bytes is not None and limit_bytes < layout.record_bytes:
            raise ArgumentError(f"limit_bytes is {limit_bytes}; one block takes {layout.record_bytes} bytes")
        self.layout = layout
        self.damage = DamageLog()
        self._lock_file: StoreLock | None = None
        try:
            self._lock_file = StoreLock(directory)
        except OSError as error:
            self.damage.report(str(directory), f"cannot be written ({error}); no block is stored")
        self._writer: StoreWriter | None = None
        try:
            self._shelf = open_own_shelf(directory, identity, layout, self.damage, writable=self._lock_file is not None)
            if self._shelf.writable:
                own = shelf_path(directory, identity)
                self._others = Shelves([path for path in shelf_paths(directory) if path != own], self.damage)
                self._writer = StoreWriter(
                    self._shelf, self._others, limit_bytes=limit_bytes, inflight_bytes=inflight_bytes
                )
        except BaseException:
            self._unlock()
            raise
        self._refused: list[Completion] = []
        self._reader = StoreReader(self._shelf, threads=read_threads)
        self._closed = False

    # Writing.

    def put(self, parent: bytes, tokens: Sequence[int], parts: Mapping[str, Buffers]) -> bool:
        """Hands over a block; it is written behind the caller's back and found once it is durable.

        parent: key of the block before it, or ROOT. tokens: its `block_tokens` token ids. parts: for each part of
            the layout a buffer, or several that make it up one after another; C-contiguous, together of exactly the
            part's size.
        Returns False if too many bytes are on their way: nothing was taken, try later. True: the buffers must stay
        as they are until `completed` names the block's key. A block whose parent is neither stored nor on its way
        is given up. Raises ArgumentError for sizes or names that are not the layout's, StoreError after `close`.
        """
        self._check_open()
        if parent != ROOT and len(parent) != KEY_BYTES:
            raise ArgumentError(f"parent is {parent!r}; it must be the key of a block (32 bytes) or ROOT")
        if len(tokens) != self.layout.block_tokens:
            raise ArgumentError(f"the block has {len(tokens)} tokens; a block has {self.layout.block_tokens}")
        if parts.keys() != self.layout.places.keys():
            wrong = sorted(parts.keys() ^ self.layout.places.keys())
            raise ArgumentError(f"parts {wrong} are missing or unknown; a record has {', '.join(self.layout.places)}")
        views = [_views(parts[name], name, nbytes) for name, nbytes in self.layout.parts]
        key = block_hash(parent, tokens)
        if self._writer is None:
            self._refused.append(Completion(key, stored=False))
            return True
        return self._writer.submit(PendingBlock(key, parent, pack_tokens(tuple(tokens)), views))

    def completed(self) -> list[Completion]:
        """The blocks whose buffers are free again, since the last call; each block taken by `put` comes once."""
        refused, self._refused = self._refused, []
        return refused + (self._writer.completed() if self._writer is not None else [])

    def flush(self) -> None:
        """Waits until all blocks handed over, and all marks, are on the disk or given up."""
        if self._writer is not None:
            self._writer.flush()

    # Finding.

    def find(self, key: bytes) -> Record | None:
        """The stored block of that key; it costs a look-up in memory."""
        with self._shelf.lock:
            entry = self._shelf.catalog.get(key)
            return None if entry is None else entry.record

    def children(self, parent: bytes = ROOT) -> list[Record]:
        """The stored blocks that follow `parent`."""
        with self._shelf.lock:
            return self._shelf.catalog.children(parent)

    # Reading.

    def read(self, record: Record, part: str, into: Buffers) -> None:
        """Fills a writable buffer, or several one after another, with a part, and verifies its checksum.

        Raises DamagedBlockError if the bytes are not those that were stored: the block is removed and reported.
        Raises LostBlockError if the block was evicted, or found damaged, after `record` was found. In both cases
        what is in the buffer means nothing. Raises StoreError if the process has no file descriptors or memory left;
        the block stays. Raises ArgumentError for a part that is unknown or a buffer of another size.
        """
        self._check_open()
        for error in self._reader.read([self._target(record, part, into)]).values():
            raise error

    def read_many(self, reads: Sequence[tuple[Record, str, Buffers]]) -> set[bytes]:
        """Many (record, part, into) at once, in the order of the disk and in several threads.

        Returns the keys of the blocks that are lost: damaged (removed and reported) or evicted. The buffers of all
        others hold verified bytes. Raises ArgumentError before anything is read, StoreError as `read`.
        """
        self._check_open()
        return set(self._reader.read([self._target(record, part, into) for record, part, into in reads]))

    def _target(self, record: Record, part: str, into: Buffers) -> ReadTarget:
        place = self.layout.place(part)
        views = _views(into, part, place.nbytes)
        if any(view.readonly for view in views):
            raise ArgumentError(f"the buffer for part {part!r} is read-only")
        return ReadTarget(record, place, views)

    # Keeping.

    def touch(self, key: bytes) -> bool:
        """Marks a block and all before it as used now; False if it is not stored. Written to the disk later."""
        used = self._shelf.tick()
        with self._shelf.lock:
            return self._mark(key, used=used)

    def pin(self, key: bytes) -> bool:
        """From now on, also after a restart, the block and all before it are evicted only when nothing else is left.
        False if it is not stored. Durable after `flush`."""
        with self._shelf.lock:
            return self._mark(key, pinned=True)

    def unpin(self, key: bytes) -> bool:
        """Takes back `pin` of the same key; False if it is not stored. Where a pinned block was lost, the one before
        it is pinned in its place."""
        with self._shelf.lock:
            return self._mark(key, pinned=False)

    def _mark(self, key: bytes, *, used: int | None = None, pinned: bool | None = None) -> bool:
        if not self._shelf.changed:
            self._shelf.lock.notify_all()
        return self._shelf.mark(key, used=used, pinned=pinned)

    def hold(self, key: bytes) -> bool:
        """The block and all before it are not evicted until `release`, or the end of the process. Counted. False,
        and nothing is held, if it is not stored."""
        with self._shelf.lock:
            if self._shelf.catalog.get(key) is None:
                return False
            self._shelf.catalog.holds[key] += 1
            return True

    def release(self, key: bytes) -> None:
        """Takes back one `hold`."""
        with self._shelf.lock:
            release(self._shelf, key)

    # The whole.

    def stats(self) -> StoreStats:
        """Counts for monitoring."""
        writer = self._writer
        return StoreStats(
            num_blocks=len(self._shelf.catalog),
            nbytes=self._shelf.nbytes,
            inflight_bytes=0 if writer is None else writer.inflight_bytes,
            evicted=0 if writer is None else writer.evicted,
            given_up=0 if writer is None else writer.given_up,
            num_damaged=self.damage.num_events,
        )

    def check_integrity(self) -> None:
        """Recounts what is in memory. Raises AssertionError on any disagreement."""
        with self._shelf.lock:
            self._shelf.catalog.check_integrity()

    def close(self) -> None:
        """Flushes, closes the files and lets other processes in. Nothing may be reading. Again: nothing happens."""
        if self._closed:
            return
        self._closed = True
        self._reader.close()
        if self._writer is not None:
            self._writer.stop()
            self._others.close()
        self._shelf.close()
        self._unlock()

    def _unlock(self) -> None:
        if self._lock_file is not None:
            self._lock_file.close()

    def _check_open(self) -> None:
        if self._closed:
            raise StoreError(f"the block store {self._shelf.path} is closed")

    def __enter__(self) -> BlockStore:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _views(buffers: Buffers, part: str, nbytes: int) -> list[memoryview]:
    """The buffers as bytes. Raises ArgumentError if they are not of `nbytes` together."""
    pieces: Sequence[Buffer] = buffers if isinstance(buffers, (list, tuple)) else [cast("Buffer", buffers)]
    try:
        views = [memoryview(piece).cast("B") for piece in pieces]
    except TypeError as error:
        raise ArgumentError(f"part {part!r}: {error}; give C-contiguous buffers") from error
    total = sum(map(len, views))
    if total != nbytes:
        raise ArgumentError(f"part {part!r} got {total} bytes; the layout says {nbytes}")
    return views
