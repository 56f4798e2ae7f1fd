"""What can be said about a ledger, in separate answers: whether it fits itself, whether it fits a checkpoint that was
kept elsewhere, how far it is complete, and what none of that proves."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from freehold.core.errors import GovernanceError
from freehold.governance.ledger.checkpoint import Checkpoint
from freehold.governance.ledger.files import Leaf, LedgerFiles, SaltReader
from freehold.governance.ledger.merkle import EMPTY_ROOT, Frontier
from freehold.governance.ledger.record import LedgerRecord, read_line
from freehold.governance.ledger.salted import ERASED
from freehold.governance.signing import PublicKey

_MOST_FINDINGS = 20


@dataclass(frozen=True, slots=True)
class AgainstCheckpoint:
    """What one checkpoint shows. name: its file.

    problem: why it cannot be used, or what it shows to be wrong; "" where the ledger fits it.
    """

    name: str
    size: int
    problem: str = ""

    @property
    def consistent(self) -> bool:
        """Whether the ledger begins with the records of the checkpoint."""
        return not self.problem


@dataclass(slots=True)
class Report:
    """The separate answers. findings: what is wrong inside of the ledger. notes: what is worth knowing.

    size: whole records. root: of all of them. erased: numbers of records of which only the hash is left.
    """

    path: Path
    origin: str = ""
    key_id: str = ""
    key_given: bool = False
    size: int = 0
    root: bytes = EMPTY_ROOT
    erased: int = 0
    salts_erased: int = 0
    signed_size: int = 0
    findings: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    checkpoints: list[AgainstCheckpoint] = field(default_factory=list)

    @property
    def internally_consistent(self) -> bool:
        """Whether records, numbers, erasures and the ledger's own signatures fit each other."""
        return not self.findings

    @property
    def proven_size(self) -> int:
        """Records that a given checkpoint covers: none of them was changed, added, taken away or moved since."""
        return max((found.size for found in self.checkpoints if found.consistent), default=0)

    @property
    def holds(self) -> bool:
        """Whether nothing was found to be wrong."""
        return self.internally_consistent and all(found.consistent for found in self.checkpoints)

    def not_proven(self) -> list[str]:
        """What a reader might take for proven and is not."""
        lines = []
        if not self.checkpoints:
            lines.append(
                "completeness: without a checkpoint from elsewhere (--checkpoint), whoever holds the signing key could "
                "have rewritten the whole ledger, or cut its end off"
            )
        elif self.size > self.proven_size:
            lines.append(
                f"records {self.proven_size} to {self.size - 1}: they came after the largest checkpoint given; whoever "
                "holds the signing key could have changed them"
            )
        if not self.key_given:
            lines.append(
                f"whose key {self.key_id or '(unknown)'} is: the ledger names it itself (give the one you know: --key)"
            )
        if self.checkpoints:
            lines.append(
                "where the checkpoints were kept: one that the ledger's keeper could replace is the keeper's own word"
            )
        lines.append("that every request was recorded, and truly: a ledger shows changes after writing, not before")
        return lines

    def body(self) -> dict[str, Any]:
        """The report as JSON."""
        return {
            "ledger": str(self.path),
            "origin": self.origin,
            "key": self.key_id,
            "key_given": self.key_given,
            "records": self.size,
            "root": self.root.hex(),
            "erased": self.erased,
            "salts_erased": self.salts_erased,
            "signed_by_head": self.signed_size,
            "internally_consistent": self.internally_consistent,
            "findings": self.findings[:_MOST_FINDINGS],
            "checkpoints": [
                {"name": c.name, "size": c.size, "consistent": c.consistent, "problem": c.problem or None}
                for c in self.checkpoints
            ],
            "complete_up_to": self.proven_size,
            "notes": self.notes,
            "not_proven": self.not_proven(),
            "holds": self.holds,
        }


def verify(path: Path, checkpoints: Sequence[tuple[str, str]] = (), key: PublicKey | None = None) -> Report:
    """Read a whole ledger and say what can be said.

    checkpoints: names and texts of those that were kept elsewhere. key: the one that is known to be the ledger's; None:
    the one that it names itself. Nothing in the ledger makes this raise; what is wrong stands in the report.
    """
    report = Report(path, key_given=key is not None)
    try:
        files = LedgerFiles(path)
    except GovernanceError as error:
        report.findings.append(str(error))
        report.checkpoints = [AgainstCheckpoint(name, 0, "there is no ledger to compare") for name, _ in checkpoints]
        return report
    report.origin, report.key_id = files.origin, (key or files.key).id
    if key is not None and files.key != key:
        report.findings.append(f"ledger.json is signed by the key {files.key.id}, not by {key.id}")
    trusted = key or files.key
    given = [_read(name, text, files.origin, trusted) for name, text in checkpoints]
    own = _own_checkpoints(files, trusted, report)
    roots = _walk(files, {found.size for found in (*own, *given) if isinstance(found, Checkpoint)}, report)
    for checkpoint in own:
        _compare_own(checkpoint, roots, report)
    for (name, _), found in zip(checkpoints, given, strict=True):
        report.checkpoints.append(_compare(name, found, roots, report))
    return report


def _read(name: str, text: str, origin: str, key: PublicKey) -> Checkpoint | str:
    """A checkpoint from elsewhere, or why it cannot be used."""
    try:
        found = Checkpoint.parse(text)
        if found.origin != origin:
            return f"it is of another ledger, {found.origin}"
        found.require(key, name)
    except GovernanceError as error:
        return str(error)
    return found


def _own_checkpoints(files: LedgerFiles, key: PublicKey, report: Report) -> list[Checkpoint]:
    """Those that stand in the ledger itself: its head, and copies of what was exported."""
    found = []
    head = files.head()
    if head is None:
        report.findings.append("the signed head is missing or cannot be read")
    elif head.origin != files.origin or not head.signed_by(key):
        report.findings.append(f"the head is not signed by the key {key.id}")
    else:
        report.signed_size = head.size
        found.append(head)
    for path in files.own_checkpoints():
        try:
            checkpoint = Checkpoint.parse(path.read_text())
        except (OSError, ValueError, GovernanceError):
            report.findings.append(f"checkpoints/{path.name} cannot be read")
            continue
        if checkpoint.origin != files.origin or not checkpoint.signed_by(key):
            report.findings.append(f"checkpoints/{path.name} is not signed by the key {key.id}")
        else:
            found.append(checkpoint)
    return found


@dataclass(slots=True)
class _Erasures:
    """What records say was erased, and what is gone."""

    bodies_told: list[tuple[int, int]] = field(default_factory=list)
    salts_told: list[tuple[int, int]] = field(default_factory=list)
    bodies_gone: list[int] = field(default_factory=list)
    salts_gone: list[int] = field(default_factory=list)

    def hear(self, record: LedgerRecord) -> None:
        told = self.bodies_told if record.details.get("what") == "records" else self.salts_told
        try:
            told += [(int(first), int(last)) for first, last in record.details["ranges"]]
        except (KeyError, TypeError, ValueError):
            return

    def unexplained(self) -> list[str]:
        everything = self.salts_told + self.bodies_told
        found = [f"record {n} was erased, and no record says so" for n in _outside(self.bodies_gone, self.bodies_told)]
        return found + [
            f"the salt of record {n} is gone, and no record says so" for n in _outside(self.salts_gone, everything)
        ]


def _outside(numbers: Sequence[int], ranges: Sequence[tuple[int, int]]) -> Iterator[int]:
    """Those of some ascending numbers that no range holds."""
    merged = sorted(ranges)
    index, end = 0, -1
    for number in numbers:
        while index < len(merged) and merged[index][0] <= number:
            end = max(end, merged[index][1])
            index += 1
        if number > end:
            yield number


def _walk(files: LedgerFiles, sizes: set[int], report: Report) -> dict[int, bytes]:
    """Read every record; the roots at the sizes that somebody asks for."""
    tree, erasures = Frontier(), _Erasures()
    roots = {0: EMPTY_ROOT}
    try:
        salts = SaltReader(files)
        for leaf in files.leaves():
            tree.append(leaf.leaf)
            if tree.size in sizes:
                roots[tree.size] = tree.root()
            _look_at(leaf, salts, erasures, report)
    except (GovernanceError, OSError) as error:
        report.findings.append(str(error))
    report.size, report.root = tree.size, tree.root()
    report.erased, report.salts_erased = len(erasures.bodies_gone), len(erasures.salts_gone)
    report.findings += erasures.unexplained()
    if torn := files.torn_bytes():
        report.notes.append(
            f"{torn} bytes behind the last record are of one being written, or of a crash; it was not acknowledged"
        )
    if report.signed_size < tree.size and not report.findings:
        report.notes.append(
            f"records {report.signed_size} to {tree.size - 1} are newer than the signed head: of a crash"
        )
    return roots


def _look_at(leaf: Leaf, salts: SaltReader, erasures: _Erasures, report: Report) -> None:
    salt = salts.read(leaf.position)
    if leaf.line is None:
        erasures.bodies_gone.append(leaf.position)
        return
    try:
        seq, record = read_line(leaf.line)
    except GovernanceError as error:
        report.findings.append(f"record {leaf.position}: {error}")
        return
    if seq != leaf.position:
        report.findings.append(f"record {leaf.position} says that it is number {seq}")
    if record.kind == "erasure":
        erasures.hear(record)
    if record.request_hash is None and record.answer_hash is None:
        return
    if salt is None:
        report.findings.append(f"the salt of record {leaf.position} is missing")
    elif salt == ERASED:
        erasures.salts_gone.append(leaf.position)


def _compare_own(checkpoint: Checkpoint, roots: dict[int, bytes], report: Report) -> None:
    root = roots.get(checkpoint.size)
    if root is None:
        report.findings.append(f"{checkpoint.size} records were signed, and only {report.size} are here")
    elif root != checkpoint.root:
        report.findings.append(f"the first {checkpoint.size} records are not those that the ledger itself has signed")


def _compare(name: str, found: Checkpoint | str, roots: dict[int, bytes], report: Report) -> AgainstCheckpoint:
    if isinstance(found, str):
        return AgainstCheckpoint(name, 0, f"it cannot be used: {found}")
    root = roots.get(found.size)
    if root is None:
        missing = (
            f"it covers {found.size} records and only {report.size} can be read: the end was cut off, or is damaged"
        )
        return AgainstCheckpoint(name, found.size, missing)
    if root != found.root:
        wrong = (
            f"the first {found.size} records are not those of the checkpoint: some were changed, moved, added or cut"
        )
        return AgainstCheckpoint(name, found.size, wrong)
    return AgainstCheckpoint(name, found.size)
