"""Adds records to a ledger's files, a group at a time, and leaves nothing half done."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from freehold.core.durable import sync
from freehold.core.errors import GovernanceError
from freehold.governance.ledger.checkpoint import Checkpoint
from freehold.governance.ledger.files import LedgerFiles, Segment, held, read_leaf, write_whole
from freehold.governance.ledger.merkle import Frontier, leaf_hash
from freehold.governance.ledger.pending import Pending, write_pending
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

    def write(self, lines: bytes, salts: bytes, count: int, announce: Callable[[], None]) -> None:
        """Both files, durable; `count` records are in them already. On an error they are as they were before.

        announce: called before the first line.
        """
        at = count * SALT_BYTES
        try:
            # Salts first: a record without its salt could never be shown to fit its request.
            _write_at(self.salts, salts, at)
            os.fdatasync(self.salts)
            announce()
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


@dataclass(frozen=True, slots=True)
class _Mark:
    """As far as the records are signed. segment: where the last of them stands; None: there is no file yet.
    end: bytes of it up to there."""

    head: Checkpoint
    tree: Frontier
    segment: Segment | None
    end: int


class Appender:
    """The end of a ledger. Not thread-safe; several processes may have one of the same ledger.

    It signs what it has written itself, and nothing else: each group before its first byte is in the ledger. Opening it
    reads and hashes every record. Raises GovernanceError where they are not those that were signed, and where lines
    follow that nobody has signed, unless they are what a crash leaves: the beginning of a signed group, which was never
    acknowledged and is put aside.

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
        self._head: Checkpoint | None = None
        try:
            with held(files.path):
                self._catch_up()
                if files.head() != self.head:
                    self._write_head()
        except OSError as error:
            raise GovernanceError(f"The ledger {files.path} cannot be written: {error}") from error

    @property
    def size(self) -> int:
        """Signed records that were heard of so far."""
        return self._tree.size

    @property
    def head(self) -> Checkpoint:
        """What is signed of them."""
        assert self._head is not None
        return self._head

    def add(self, drafts: Sequence[Draft], *, new_file: bool = False) -> tuple[int, Checkpoint]:
        """Add records together: they are durable and signed when this returns. The first one's number, and the head.

        new_file: they begin another file, so that no process writes to the earlier ones any more.

        Raises OSError where the disk does not take them; then none of them is there. GovernanceError where the files
        were changed from outside.
        """
        with held(self._files.path):
            if self._grown():
                self._catch_up()
            first = self._tree.size
            segment = self._segment
            if segment is None or new_file or first - segment.first >= SEGMENT_RECORDS:
                segment = self._begin_segment(first)
            lines = [draft.record.line(first + i) for i, draft in enumerate(drafts)]
            salts = b"".join(draft.salt or ERASED for draft in drafts)
            tree = self._tree.copy()
            for line in lines:
                tree.append(leaf_hash(line))
            pending = Pending(self.head, Checkpoint.sign(self._files.origin, tree.size, tree.root(), self._key))
            whole = b"".join(line + b"\n" for line in lines)
            segment.write(whole, salts, first - segment.first, lambda: write_pending(self._files.path, pending))
            self._tree, self._head = tree, pending.after
            self._write_head()
            return first, self.head

    def close(self) -> None:
        """Close the files."""
        if self._segment is not None:
            self._segment.close()
            self._segment = None

    def _begin_segment(self, first: int) -> _Segment:
        folder = self._files.path / "records"
        segment = _Segment(Segment(first, folder / f"{first:012d}.jsonl"))
        try:
            sync(folder)
        except OSError:
            segment.close()
            raise
        self.close()
        self._segment = segment
        return segment

    def _grown(self) -> bool:
        """Whether somebody else wrote since. Raises GovernanceError where something was taken away."""
        segment = self._segment
        if segment is None:
            return self._next_file().exists()
        if self._next_file() != segment.path and self._next_file().exists():
            return True
        size = os.fstat(segment.records).st_size
        if size < segment.end or not segment.path.exists():
            raise GovernanceError(
                f"{segment.path} has become shorter while it was written: somebody changed it. Look at it with: "
                "freehold audit verify"
            )
        return size > segment.end

    def _next_file(self) -> Path:
        return self._files.path / "records" / f"{self._tree.size:012d}.jsonl"

    def _catch_up(self) -> None:
        """Hear of what others added, as far as it is signed, and put aside what a crash left."""
        try:
            signed = self._files.signed(self._key.public)
            reached = [*signed.reached, *([self._head] if self._head is not None else [])]
            mark = self._hear_all(reached or [self._exported_state()], signed.pending)
            self._settle(mark, signed.pending)
        except BaseException:
            # What was heard is not signed: the next try begins with the first record.
            self.close()
            self._tree = Frontier()
            raise
        self._head = mark.head

    def _hear_all(self, reached: Sequence[Checkpoint], pending: Pending | None) -> _Mark:
        """Every line into the tree; the last signed state on the way. reached: states that have to come by."""
        states = {state.size: state for state in (*([pending.after] if pending is not None else []), *reached)}
        sizes = {state.size for state in reached}
        mark: _Mark | None = None
        while True:
            for _ in self._hear():
                state = states.get(self._tree.size)
                if state is not None and state.root == self._tree.root():
                    segment = self._segment
                    place = None if segment is None else Segment(segment.first, segment.path)
                    mark = _Mark(state, self._tree.copy(), place, 0 if segment is None else segment.end)
                elif state is not None and state.size in sizes:
                    raise self._changed(state.size)
            if not self._open_next():
                break
        if (size := max(sizes)) > self._tree.size:
            raise GovernanceError(
                f"The ledger {self._files.path} has {self._tree.size} records, but {size} were signed: some were "
                "cut off. Look at it with: freehold audit verify"
            )
        if mark is None:
            raise self._changed(size)
        return mark

    def _hear(self) -> Iterator[None]:
        """Whole lines into the tree, one after the other; once before the first."""
        yield
        segment = self._segment
        if segment is None:
            return
        os.lseek(segment.records, segment.end, os.SEEK_SET)
        with os.fdopen(os.dup(segment.records), "rb") as file:
            for line in file:
                if not line.endswith(b"\n"):
                    return
                self._tree.append(read_leaf(self._tree.size, line[:-1]).leaf)
                segment.end += len(line)
                yield

    def _open_next(self) -> bool:
        """Go on to the file that begins where the last one ended, if there is one and it is not that one itself."""
        path = self._next_file()
        if (self._segment is not None and self._segment.path == path) or not path.exists():
            return False
        self.close()
        self._segment = _Segment(Segment(self._tree.size, path))
        return True

    def _settle(self, mark: _Mark, pending: Pending | None) -> None:
        """Put aside what is behind the last signed record. Raises GovernanceError unless a crash can have left it."""
        segment = self._segment
        lines = self._tree.size - mark.tree.size
        self._tree = mark.tree
        if segment is None:
            return
        begin = segment.end
        if lines:
            begin = 0 if mark.segment is None or mark.segment.path != segment.path else mark.end
            begun = (
                pending is not None
                and pending.before.root == mark.head.root
                and lines < (pending.after.size - pending.before.size)
            )
            if not begun or (begin == 0 and segment.first != mark.tree.size):
                raise GovernanceError(
                    f"In the ledger {self._files.path}, {lines} lines follow the {mark.tree.size} signed records, and "
                    "its key has not signed them; no crash leaves such, somebody added them. They begin at byte "
                    f"{begin} of {mark.segment.path if begin and mark.segment else self._next_file()}. Nothing is "
                    "added to it while they are there; look at it with: freehold audit verify"
                )
        rest = os.pread(segment.records, os.fstat(segment.records).st_size - begin, begin)
        segment.end = begin
        if rest:
            self._put_aside(segment, rest)

    def _put_aside(self, segment: _Segment, rest: bytes) -> None:
        """A group that was being written when its process ended was never acknowledged; it is kept."""
        place = self._files.path / "torn" / f"{self._tree.size:012d}.{time.time_ns()}"
        write_whole(place, rest, durable=True)
        os.ftruncate(segment.records, segment.end)
        os.fdatasync(segment.records)
        self._say(
            f"The ledger {self._files.path} ended in the middle of a group that begins with record {self._tree.size} "
            f"and was never acknowledged; its {len(rest)} bytes were moved to {place}."
        )

    def _exported_state(self) -> Checkpoint:
        """The newest exported state that can be read. Raises GovernanceError where there is none."""
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

    def _changed(self, size: int) -> GovernanceError:
        return GovernanceError(
            f"The first {size} records of the ledger {self._files.path} are not those that were signed: they "
            "were changed. Nothing is added to it; look at it with: freehold audit verify"
        )

    def _write_head(self) -> None:
        try:
            # Outlives a killed process; after a loss of power `pending` tells what came after the one that is there.
            write_whole(self._files.path / "head", self.head.text.encode(), durable=False)
        except OSError as error:
            self._say(f"The head of the ledger {self._files.path} could not be written: {error}")


def _write_at(descriptor: int, data: bytes, at: int) -> None:
    view = memoryview(data)
    while view:
        done = os.pwrite(descriptor, view, at)
        view, at = view[done:], at + done
