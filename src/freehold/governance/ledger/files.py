"""A ledger's directory, as it is read.

    ledger.json                  its name (origin) and public key, signed
    records/000000000000.jsonl   one record a line; the file's name is the number of its first
    records/000000000000.salts   32 bytes for each of them; zeros: none, or erased
    head                         the newest signed checkpoint, replaced with every group before it is acknowledged
    pending                      signed before a group is written: the ledger before it, and with all of it
    checkpoints/000000001000     signed checkpoints that were exported, as they were
    torn/                        what a crash left behind the last whole record
    lock                         held while records are added

An erased record's line is `{"erased":"<its leaf hash>","seq":n}`, so that the tree stays what it was.
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import json
import os
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from freehold.core.durable import sync
from freehold.core.errors import GovernanceError
from freehold.governance.ledger.checkpoint import Checkpoint
from freehold.governance.ledger.merkle import EMPTY_ROOT, HASH_BYTES, leaf_hash
from freehold.governance.ledger.pending import NAME as PENDING
from freehold.governance.ledger.pending import Pending, read_pending
from freehold.governance.ledger.record import LedgerRecord, now_text, read_line
from freehold.governance.ledger.salted import ERASED
from freehold.governance.signing import PublicKey, SigningKey, canonical, signed, signer

FORMAT = 1
_STUB = b'{"erased":"'


@dataclass(frozen=True, slots=True)
class Leaf:
    """One line. position: counted from the ledger's first. leaf: its hash in the tree, 32 bytes.

    line: without its line break; None: the record was erased, only its hash stands there.
    """

    position: int
    leaf: bytes
    line: bytes | None

    def record(self) -> LedgerRecord | None:
        """What the line says; None where it was erased. Raises GovernanceError for what is no record."""
        return None if self.line is None else read_line(self.line)[1]


@dataclass(frozen=True, slots=True)
class Segment:
    """One file of records. first: the number of its first record."""

    first: int
    path: Path

    @property
    def salts(self) -> Path:
        """The file of the same records' salts."""
        return self.path.with_suffix(".salts")


@dataclass(frozen=True, slots=True)
class Signed:
    """What a key has signed about the newest records. head: None: none that can be read. pending: None: likewise."""

    head: Checkpoint | None
    pending: Pending | None

    @property
    def reached(self) -> list[Checkpoint]:
        """States that the records were in, durably: they have to fit all of them."""
        before = None if self.pending is None else self.pending.before
        return [state for state in (self.head, before) if state is not None]


class LedgerFiles:
    """An existing ledger. Raises GovernanceError where there is none, or where its name was tampered with."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            document = json.loads((path / "ledger.json").read_bytes())
            self.key: PublicKey = signer(document)
            self.origin = str(document["origin"])
            found = document["format"]
        except OSError as error:
            raise GovernanceError(f"There is no ledger in {path}: {error.strerror} (ledger.json).") from error
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise GovernanceError(f"{path / 'ledger.json'} does not name a ledger.") from error
        if found != FORMAT:
            raise GovernanceError(f"The ledger {path} has format {found}; this release reads {FORMAT}.")

    @staticmethod
    def create(path: Path, key: SigningKey) -> LedgerFiles:
        """Begin a ledger, mode 0700. One that another process began meanwhile is taken as it is."""
        (path / "records").mkdir(mode=0o700, parents=True, exist_ok=True)
        path.chmod(0o700)
        for name in ("checkpoints", "torn"):
            (path / name).mkdir(mode=0o700, exist_ok=True)
        with held(path):
            if not (path / "ledger.json").exists():
                origin = f"freehold/ledger/{secrets.token_hex(8)}"
                document = signed({"format": FORMAT, "origin": origin, "created": now_text()}, key)
                head = Checkpoint.sign(origin, 0, EMPTY_ROOT, key)
                write_whole(path / "head", head.text.encode(), durable=True)
                write_whole(path / "ledger.json", canonical(document), durable=True)
        return LedgerFiles(path)

    def segments(self) -> list[Segment]:
        """All files of records, the first ones first."""
        found = [path for path in (self.path / "records").glob("*.jsonl") if path.stem.isdecimal()]
        return sorted((Segment(int(path.stem), path) for path in found), key=lambda segment: segment.first)

    def leaves(self) -> Iterator[Leaf]:
        """All records that the ledger's key has signed, in order; whether they still fit is `verify`'s matter.

        Raises GovernanceError for gaps between files, for files that cannot be read, and without a signed state.
        """
        reached = self.signed(self.key).reached
        if not reached:
            raise GovernanceError(
                f"The ledger {self.path} has no signed head that can be read: freehold audit verify says more."
            )
        return itertools.islice(self.lines(), max(state.size for state in reached))

    def lines(self) -> Iterator[Leaf]:
        """All whole lines, signed or not; a torn end is passed over. Raises GovernanceError as `leaves`."""
        try:
            yield from self._lines()
        except OSError as error:
            raise GovernanceError(f"The ledger {self.path} cannot be read: {error}.") from error

    def _lines(self) -> Iterator[Leaf]:
        position = 0
        for segment in self.segments():
            if segment.first != position:
                raise GovernanceError(
                    f"Records {position} to {segment.first - 1} are missing, or too many: {segment.path.name} begins "
                    f"with record {segment.first}."
                )
            with segment.path.open("rb") as file:
                for line in file:
                    if not line.endswith(b"\n"):
                        break
                    yield read_leaf(position, line[:-1])
                    position += 1

    def torn_bytes(self) -> int:
        """Bytes behind the last whole line of the last file: of a crash, or of a writer at work. Raises OSError."""
        segments = self.segments()
        if not segments:
            return 0
        data = segments[-1].path.read_bytes()
        return len(data) - (data.rfind(b"\n") + 1)

    def salt(self, position: int) -> bytes | None:
        """The salt of a record; zeros where it was erased; None where the file does not reach."""
        segment = next((found for found in reversed(self.segments()) if found.first <= position), None)
        if segment is None or not segment.salts.exists():
            return None
        try:
            with segment.salts.open("rb") as file:
                file.seek((position - segment.first) * len(ERASED))
                salt = file.read(len(ERASED))
        except OSError as error:
            raise GovernanceError(f"The salts of the ledger {self.path} cannot be read: {error}.") from error
        return salt if len(salt) == len(ERASED) else None

    def head(self) -> Checkpoint | None:
        """The newest signed checkpoint; None where there is none that can be read."""
        try:
            return Checkpoint.parse((self.path / "head").read_text())
        except (OSError, ValueError, GovernanceError):
            return None

    def signed(self, key: PublicKey) -> Signed:
        """The states of the newest records that `key` has signed."""
        head = self.head()
        if head is not None and (head.origin != self.origin or not head.signed_by(key)):
            head = None
        return Signed(head, read_pending(self.path, self.origin, key))

    def marks(self) -> tuple[bytes | None, ...]:
        """Bytes that change with each group of records."""
        found: list[bytes | None] = []
        for name in ("head", PENDING):
            try:
                found.append((self.path / name).read_bytes())
            except OSError:
                found.append(None)
        return tuple(found)

    def own_checkpoints(self) -> list[Path]:
        """Checkpoints that were exported, as they stand beside the records, the smallest first."""
        found = (path for path in (self.path / "checkpoints").glob("*") if path.name.isdecimal())
        return sorted(found, key=lambda path: int(path.name))


class SaltReader:
    """Salts in the order of their records, each file read once."""

    def __init__(self, files: LedgerFiles) -> None:
        self._segments = files.segments()
        self._index, self._data = -1, b""

    def read(self, position: int) -> bytes | None:
        """The salt of a record; None where the file does not reach. Positions ascend."""
        while self._index + 1 < len(self._segments) and self._segments[self._index + 1].first <= position:
            self._index += 1
            salts = self._segments[self._index].salts
            try:
                self._data = salts.read_bytes() if salts.exists() else b""
            except OSError as error:
                raise GovernanceError(f"The salts {salts} cannot be read: {error}.") from error
        at = (position - self._segments[self._index].first) * len(ERASED)
        salt = self._data[at : at + len(ERASED)]
        return salt if len(salt) == len(ERASED) else None


def read_leaf(position: int, line: bytes) -> Leaf:
    """A line without its line break, as a leaf of the tree."""
    if line.startswith(_STUB):
        try:
            stub = json.loads(line)
            leaf = bytes.fromhex(stub["erased"])
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise GovernanceError(f"Record {position} was neither kept nor erased properly.") from error
        if len(leaf) != HASH_BYTES or line != stub_line(position, leaf):
            raise GovernanceError(f"Record {position} was neither kept nor erased properly.")
        return Leaf(position, leaf, None)
    return Leaf(position, leaf_hash(line), line)


def stub_line(position: int, leaf: bytes) -> bytes:
    """What stands for an erased record."""
    return canonical({"erased": leaf.hex(), "seq": position})


@contextlib.contextmanager
def held_to_read(path: Path) -> Iterator[None]:
    """As `held`, for whoever may only read; without a lock to be had (a copy on a disk for reading), nothing."""
    try:
        descriptor = os.open(path / "lock", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        yield
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def held(path: Path) -> Iterator[None]:
    """Inside it, no other process adds records to the ledger or takes them away."""
    descriptor = os.open(path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def write_whole(path: Path, data: bytes, *, durable: bool) -> None:
    """Put a file in its place at once. durable: it outlives a loss of power; otherwise only a killed process."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            if durable:
                os.fsync(file.fileno())
        os.replace(draft, path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
    if durable:
        sync(path.parent)
