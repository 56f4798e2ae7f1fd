"""The reader: parts of stored blocks into buffers, each verified."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass

from freehold.cache.layout import PartPlace
from freehold.cache.record import Record
from freehold.cache.shelf import Shelf
from freehold.core.errors import DamagedBlockError, LostBlockError, StoreError

_LITTLE_BYTES = 1 << 20  # fewer are not worth the threads
_AHEAD = 32  # parts of which the disk knows in each thread: with one at a time it is idle most of the time


@dataclass(frozen=True, slots=True)
class ReadTarget:
    """A part of a record, and the buffers that it fills one after another."""

    record: Record
    place: PartPlace
    views: Sequence[memoryview]


class StoreReader:
    """Reads from a shelf, in any thread. A block that turns out damaged is removed and reported once."""

    def __init__(self, shelf: Shelf, *, threads: int) -> None:
        self._shelf = shelf
        self._threads = threads
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="freehold-read")

    def read(self, targets: Sequence[ReadTarget]) -> dict[bytes, LostBlockError]:
        """Fills all buffers, in the order of the disk; returns the blocks for which it could not. Raises StoreError."""
        ordered = sorted(targets, key=lambda target: (target.record.slot, target.place.offset))
        if self._threads == 1 or sum(target.place.nbytes for target in ordered) < _LITTLE_BYTES:
            return self._read_in_turn(ordered)
        length = -(-len(ordered) // self._threads)
        pieces = [ordered[first : first + length] for first in range(0, len(ordered), length)]
        done = [self._pool.submit(self._read_in_turn, piece) for piece in pieces]
        wait(done)  # for all of them, also if one fails: the buffers are the caller's again
        return {key: error for future in done for key, error in future.result().items()}

    def _read_in_turn(self, targets: Sequence[ReadTarget]) -> dict[bytes, LostBlockError]:
        lost: dict[bytes, LostBlockError] = {}
        for coming in targets[1:_AHEAD]:
            self._shelf.announce(coming.record, coming.place)
        for number, target in enumerate(targets):
            for coming in targets[number + _AHEAD : number + _AHEAD + 1]:
                self._shelf.announce(coming.record, coming.place)
            try:
                problem = self._shelf.read(target.record, target.place, target.views)
            except OSError as error:
                where = self._shelf.where(target.record, target.place)
                raise StoreError(f"{where} cannot be read now: {error}; close files or free memory") from error
            if problem is not None:
                lost[target.record.key] = self._lose(target, problem)
        return lost

    def _lose(self, target: ReadTarget, problem: str) -> LostBlockError:
        shelf, record = self._shelf, target.record
        where = shelf.where(record, target.place)
        with shelf.lock:
            entry = shelf.catalog.get(record.key)
            if entry is None or entry.record is not record:
                return LostBlockError(f"{where}: evicted or removed since it was found; compute it again")
            shelf.drop(record.key)
            shelf.lock.notify_all()
        shelf.damage.report(where, f"{problem}; the block is removed")
        return DamagedBlockError(f"{where}: {problem}; it is removed, compute it again")

    def close(self) -> None:
        """Waits for reads that are running, and ends the threads."""
        self._pool.shutdown()
