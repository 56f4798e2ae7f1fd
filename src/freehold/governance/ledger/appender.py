"""Adds records to a ledger's files, a group at a time, and leaves nothing half done."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from freehold.core.errors import GovernanceError
from freehold.governance.ledger.checkpoint import Checkpoint
from freehold.governance.ledger.files import LedgerFiles, Segment, held, read_leaf, sync_directory, write_whole
from freehold.governance.ledger.merkle import Frontier, leaf_hash
from freehold.governance.ledger.record import LedgerRecord
from freehold.governance.ledger.salted import ERASED, SALT_BYTES
from freehold.governance.signing import SigningKey

SEGMENT_RECORDS = 50_000


@dataclass(frozen=True, slots=True)
class Draft:
    """A record that is to be added. salt: of its hashes, 32 bytes; None: it has none."""

    record: LedgerRecord
    salt: bytes | None = None


class _Segment:
    """The file that grows, and its salts. end: bytes up to the last whole line that was heard."""

    def __init__(self, segment: Segment) -> None:
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
        self.first, self.path, self.end = segment.first, segment.path, 0
        self.records = os.open(segment.path, flags, 0o600)
        try:
            self.salts = os.open(segment.salts, flags, 0o600)
        except OSError:
            os.close(self.records)
            raise

    def write(self, lines: bytes, salts: bytes, count: int) -> None:
        """Both files, durable; `count` records are in them already. On an error they are as they were before."""
        at = count * SALT_BYTES
        try:
            # Salts first: a record without its salt could never be shown to fit its request.
            _write_at(self.salts, salts, at)
            os.fdatasync(self.salts)
            _write_at(self.records, lines, self.end)
            os.fdatasync(self.records)
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(self.records, self.end)
                os.ftruncate(self.salts, at)
                os.fdatasync(self.records)
            raise
        self.end += len(lines)

    def close(self) -> None:
        os.close(self.records)
        os.close(self.salts)


class Appender:
    """The end of a ledger. Not thread-safe; several processes may have one of the same ledger.

    Opening it reads and hashes every record. Raises GovernanceError where they are not those that were signed.

    say: told what was repaired.
    """

    def __init__(self, files: LedgerFiles, key: SigningKey, say: Callable[[str], None]) -> None:
        if files.key != key.public:
            raise GovernanceError(
                f"The ledger {files.path} belongs to the key {files.key.id}; this one is {key.public.id}. Give its "
                "own key, or begin another ledger in an empty directory."
            )
        self._files, self._key, self._say = files, key, say
        self._tree = Frontier()
        self._segment: _Segment | None = None
        with held(files.path):
            known = self._signed_state()
            self._catch_up(known)
            if known is not None and known.size > self._tree.size:
                raise GovernanceError(
                    f"The ledger {files.path} has {self._tree.size} records, but {known.size} were signed: some were "
                    "cut off. Look at it with: freehold audit verify"
                )
            self._sign_head()

    @property
    def size(self) -> int:
        """Records that were heard of so far."""
        return self._tree.size

    def add(self, drafts: Sequence[Draft], *, new_file: bool = False) -> tuple[int, Checkpoint]:
        """Add records together: they are durable when this returns. The first one's number, and the head then.

        new_file: they begin another file, so that no process writes to the earlier ones any more.

        Raises OSError where the disk does not take them; then none of them is there. GovernanceError where the files
        were changed from outside.
        """
        with held(self._files.path):
            self._catch_up(None)
            first = self._tree.size
            segment = self._segment
            if segment is None or new_file or first - segment.first >= SEGMENT_RECORDS:
                segment = self._begin_segment(first)
            lines = [draft.record.line(first + i) for i, draft in enumerate(drafts)]
            salts = b"".join(draft.salt or ERASED for draft in drafts)
            segment.write(b"".join(line + b"\n" for line in lines), salts, first - segment.first)
            for line in lines:
                self._tree.append(leaf_hash(line))
            return first, self._sign_head()

    def close(self) -> None:
        """Close the files."""
        if self._segment is not None:
            self._segment.close()
            self._segment = None

    def _begin_segment(self, first: int) -> _Segment:
        folder = self._files.path / "records"
        segment = _Segment(Segment(first, folder / f"{first:012d}.jsonl"))
        try:
            sync_directory(folder)
        except OSError:
            segment.close()
            raise
        self.close()
        self._segment = segment
        return segment

    def _catch_up(self, known: Checkpoint | None) -> None:
        """Hear of what other processes added, and cut off what a crash left. known: a state that has to come by."""
        if self._segment is None:
            if known is not None and known.size == 0:
                self._check(known)
            if not self._open_segment():
                return
        while True:
            self._hear(known)
            if not self._open_segment():
                return

    def _open_segment(self) -> bool:
        """Go on to the file that begins where the last one ended, if there is one and it is not that one itself."""
        path = self._files.path / "records" / f"{self._tree.size:012d}.jsonl"
        if (self._segment is not None and self._segment.path == path) or not path.exists():
            return False
        self.close()
        self._segment = _Segment(Segment(self._tree.size, path))
        return True

    def _hear(self, known: Checkpoint | None) -> None:
        segment = self._segment
        assert segment is not None
        size = os.fstat(segment.records).st_size
        if size < segment.end:
            raise GovernanceError(
                f"{segment.path} has become shorter while it was written: somebody changed it. Look at it with: "
                "freehold audit verify"
            )
        if size == segment.end:
            return
        os.lseek(segment.records, segment.end, os.SEEK_SET)
        with os.fdopen(os.dup(segment.records), "rb") as file:
            for line in file:
                if not line.endswith(b"\n"):
                    self._cut_off(segment, line)
                    break
                self._tree.append(read_leaf(self._tree.size, line[:-1]).leaf)
                segment.end += len(line)
                if known is not None and self._tree.size == known.size:
                    self._check(known)

    def _cut_off(self, segment: _Segment, rest: bytes) -> None:
        """A record that was being written when its process ended was never acknowledged; it is kept aside."""
        place = self._files.path / "torn" / f"{self._tree.size:012d}.{time.time_ns()}"
        write_whole(place, rest, durable=True)
        os.ftruncate(segment.records, segment.end)
        os.fdatasync(segment.records)
        self._say(
            f"The ledger {self._files.path} ended in the middle of record {self._tree.size}, which was never "
            f"acknowledged; its {len(rest)} bytes were moved to {place}."
        )

    def _signed_state(self) -> Checkpoint | None:
        """The newest state that the key has signed and that can be read. Raises GovernanceError where there is none."""
        head = self._files.head()
        if head is not None and head.origin == self._files.origin and head.signed_by(self._key.public):
            return head
        for path in reversed(self._files.own_checkpoints()):
            with contextlib.suppress(OSError, ValueError, GovernanceError):
                found = Checkpoint.parse(path.read_text())
                if found.origin == self._files.origin and found.signed_by(self._key.public):
                    self._say(f"The head of the ledger {self._files.path} cannot be read; it is checked by {path}.")
                    return found
        raise GovernanceError(
            f"The ledger {self._files.path} has neither a signed head nor a signed checkpoint that can be read: it was "
            "changed. Look at it with: freehold audit verify"
        )

    def _check(self, known: Checkpoint) -> None:
        if self._tree.root() != known.root:
            raise GovernanceError(
                f"The first {known.size} records of the ledger {self._files.path} are not those that were signed: they "
                "were changed. Nothing is added to it; look at it with: freehold audit verify"
            )

    def _sign_head(self) -> Checkpoint:
        head = Checkpoint.sign(self._files.origin, self._tree.size, self._tree.root(), self._key)
        try:
            # Outlives a killed process; after a loss of power the one before it may be there, and that is said.
            write_whole(self._files.path / "head", head.text.encode(), durable=False)
        except OSError as error:
            self._say(f"The head of the ledger {self._files.path} could not be written: {error}")
        return head


def _write_at(descriptor: int, data: bytes, at: int) -> None:
    view = memoryview(data)
    while view:
        done = os.pwrite(descriptor, view, at)
        view, at = view[done:], at + done
