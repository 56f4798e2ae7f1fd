"""A ledger that is being written: any thread hands in records, one thread makes them durable in groups.

A record is acknowledged when it is on the disk. Those that arrive while the disk is busy share the next wait, so that
many requests at once cost hardly more than one.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path

from freehold.core.errors import GovernanceError
from freehold.governance.ledger.appender import Appender, Draft
from freehold.governance.ledger.checkpoint import Checkpoint
from freehold.governance.ledger.export import Exports
from freehold.governance.ledger.files import LedgerFiles
from freehold.governance.ledger.record import LedgerRecord, now_text
from freehold.governance.ledger.salted import salt_commitment
from freehold.governance.signing import SigningKey

RETRY_SECONDS = 2.0
_MOST_LATE = 10_000

Waiting = tuple[Draft, "Future[int]"]


def _hush(_text: str) -> None:
    """Nobody listens."""


class Ledger:
    """Thread-safe. A context manager: leaving it writes what is waiting, exports a last checkpoint, and closes.

    Where the disk takes nothing, `append` fails and `check` raises, so that a server can refuse new requests. What had
    to be recorded meanwhile is kept in memory and written first when the disk takes it, with a record of the gap.

    path: the ledger's directory; made where there is none. key: signs its head and checkpoints.
    exports: where checkpoints go, elsewhere. say: told what was repaired or went wrong.

    Raises GovernanceError for a ledger of another key, or one that was changed since it was signed.
    """

    def __init__(
        self, path: Path, key: SigningKey, *, exports: Exports | None = None, say: Callable[[str], None] = _hush
    ) -> None:
        self._say, self._exports = say, exports
        try:
            self.files = LedgerFiles.create(path, key)
            self._appender = Appender(self.files, key, say)
        except OSError as error:
            raise GovernanceError(f"The ledger {path} cannot be written: {error}") from error
        self._changed = threading.Condition()
        self._queue: list[Waiting] = []
        self._closing = False
        self._failure: str | None = None
        self._failed_since = ""
        self._tried_at = 0.0
        self._retry = False
        self._late: list[Draft] = []
        self._num_lost = 0
        self._thread = threading.Thread(target=self._work, name="freehold-ledger", daemon=True)
        self._thread.start()
        if exports is not None:
            exports.start(self.files)

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    @property
    def size(self) -> int:
        """Records that are durable."""
        return self._appender.size

    def append(self, record: LedgerRecord, salt: bytes | None = None) -> Future[int]:
        """Hand in a record. The future has its number once it is on the disk, or GovernanceError.

        salt: of the record's hashes. Raises GovernanceError after `close`, and for a record that JSON cannot hold.
        """
        if salt is not None:
            record = replace(record, salt_hash=salt_commitment(salt))
        record.line(0)  # one that cannot be written must not keep the others of its group from it
        promise: Future[int] = Future()
        with self._changed:
            if self._closing:
                raise GovernanceError(f"The ledger {self.files.path} is closed.")
            self._queue.append((Draft(record, salt), promise))
            self._changed.notify()
        return promise

    async def record(self, record: LedgerRecord, salt: bytes | None = None) -> int:
        """`append`, for a coroutine. Once it was called, the record is written even if nobody waits any more."""
        return await asyncio.shield(asyncio.wrap_future(self.append(record, salt)))

    def check(self) -> None:
        """Raises GovernanceError while the ledger cannot be written. Returns at once; what failed is tried again
        every few seconds as long as somebody asks."""
        if self._failure is None:
            return
        with self._changed:
            failure = self._failure
            if failure is not None and time.monotonic() - self._tried_at >= RETRY_SECONDS:
                self._retry = True
                self._changed.notify()
        if failure is not None:
            raise GovernanceError(failure)

    def close(self) -> None:
        """Write what is waiting, export the last checkpoint, and close the files. Again: nothing."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()
        self._appender.close()
        if self._exports is not None:
            self._exports.close()

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._queue or self._closing or self._retry)
                group, self._queue, self._retry = self._queue, [], False
                if not group and self._closing and (not self._late or self._failure is None):
                    return
                closing = self._closing
            self._commit(group)
            if closing and self._failure is not None and not self._queue:
                self._say(f"{len(self._late) + self._num_lost} records could not be written: {self._failure}")
                return

    def _commit(self, group: list[Waiting]) -> None:
        """Write a group, with what earlier failures left; then fulfil its promises, or fail them."""
        drafts = [draft for draft, _ in group]
        before = [*self._late]
        if self._failure is not None:
            before.append(Draft(self._gap()))
        self._tried_at = time.monotonic()
        try:
            first, head = self._appender.add([*before, *drafts])
        except Exception as error:
            self._fail(drafts, error)
            for _, promise in group:
                promise.set_exception(GovernanceError(self._failure))
            return
        if self._failure is not None:
            self._say(f"The ledger {self.files.path} is written again; {len(self._late)} records came late.")
            self._failure, self._late, self._num_lost = None, [], 0
        for number, (_, promise) in enumerate(group, first + len(before)):
            promise.set_result(number)
        self._offer(head)

    def _offer(self, head: Checkpoint) -> None:
        if self._exports is not None:
            self._exports.offer(head)

    def _fail(self, drafts: list[Draft], error: Exception) -> None:
        if self._failure is None:
            self._failed_since = now_text()
        self._failure = (
            f"The ledger {self.files.path} cannot be written, and nothing is answered without a record: {error}. "
            "Free space on its disk, or look at it with: freehold audit verify"
        )
        self._say(self._failure)
        room = max(0, _MOST_LATE - len(self._late))
        self._late += drafts[:room]
        self._num_lost += len(drafts[room:])

    def _gap(self) -> LedgerRecord:
        """What is said about the time in which nothing could be written."""
        now = now_text()
        details = {"since": self._failed_since, "late": len(self._late), "lost": self._num_lost}
        return LedgerRecord(id=f"gap-{time.time_ns():x}", time=now, kind="gap", details=details)
