"""What can be said about a ledger, in separate answers: whether it fits itself, whether it fits a checkpoint that was
kept elsewhere, how far it is complete, and what none of that proves."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from freehold.core.errors import GovernanceError
from freehold.governance.ledger.checkpoint import Checkpoint
from freehold.governance.ledger.files import Leaf, LedgerFiles, SaltReader, Signed, held_to_read
from freehold.governance.ledger.merkle import EMPTY_ROOT, Frontier
from freehold.governance.ledger.record import LedgerRecord, read_line
from freehold.governance.ledger.salted import ERASED, salt_commitment
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

    size: signed records; all lines where they do not fit what was signed. root: of all of them. erased: how many
    of them are only a hash. unsigned: lines behind them that the key has not signed.
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
    unsigned: int = 0
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
                "completeness: without a checkpoint from elsewhere (--checkpoint), whoever can write to the files "
                "could have cut the end off and put back an older head, and whoever holds the signing key could have "
                "rewritten the whole ledger"
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
            "signed": self.signed_size,
            "unsigned": self.unsigned,
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
    """Read a whole ledger and say what can be said. Others may write to it meanwhile.

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
    before = files.marks()
    report = _verify(files, checkpoints, key)
    if report.holds or files.marks() == before:
        return report
    # It was written while it was read. Once more, while nobody writes.
    with held_to_read(path):
        return _verify(files, checkpoints, key)


def _verify(files: LedgerFiles, checkpoints: Sequence[tuple[str, str]], key: PublicKey | None) -> Report:
    trusted = key or files.key
    report = Report(files.path, files.origin, trusted.id, key is not None)
    if files.key != trusted:
        report.findings.append(f"ledger.json is signed by the key {files.key.id}, not by {trusted.id}")
    given = [_read(name, text, files.origin, trusted) for name, text in checkpoints]
    signed = files.signed(trusted)
    own = _own_checkpoints(files, signed, trusted, report)
    asked: list[Checkpoint] = [*own, *(found for found in given if isinstance(found, Checkpoint))]
    if signed.pending is not None:
        asked.append(signed.pending.after)
    walk = _Walk()
    walk.read(files, {found.size for found in asked})
    for checkpoint in own:
        walk.compare(checkpoint, report)
    walk.tell(report, signed, own)
    _tell_torn(files, report)
    for (name, _), found in zip(checkpoints, given, strict=True):
        report.checkpoints.append(_compare(name, found, walk.roots, report))
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


def _own_checkpoints(files: LedgerFiles, signed: Signed, key: PublicKey, report: Report) -> list[Checkpoint]:
    """Those that stand in the ledger itself: its head, and copies of what was exported."""
    found = signed.reached
    if signed.head is None:
        missing = files.head() is None
        report.findings.append(
            "the signed head is missing or cannot be read" if missing else f"the head is not signed by the key {key.id}"
        )
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


@dataclass(slots=True)
class _Walk:
    """What stands in the lines, with the number of each. told: erasures, (number of the record, what, ranges)."""

    tree: Frontier = field(default_factory=Frontier)
    roots: dict[int, bytes] = field(default_factory=lambda: {0: EMPTY_ROOT})
    wrong: list[tuple[int, str]] = field(default_factory=list)
    bodies_gone: list[int] = field(default_factory=list)
    salts_gone: list[int] = field(default_factory=list)
    told: list[tuple[int, str, list[tuple[int, int]]]] = field(default_factory=list)
    stopped: str = ""

    def read(self, files: LedgerFiles, sizes: set[int]) -> None:
        """Every line. sizes: where somebody asks for the root."""
        try:
            salts = SaltReader(files)
            for leaf in files.lines():
                self.tree.append(leaf.leaf)
                if self.tree.size in sizes:
                    self.roots[self.tree.size] = self.tree.root()
                self._look_at(leaf, salts)
        except GovernanceError as error:
            self.stopped = str(error)

    def compare(self, checkpoint: Checkpoint, report: Report) -> None:
        """With a state that the ledger says it was in."""
        root = self.roots.get(checkpoint.size)
        if root is None:
            report.findings.append(f"{checkpoint.size} records were signed, and only {self.tree.size} are here")
        elif root != checkpoint.root:
            report.findings.append(
                f"the first {checkpoint.size} records are not those that the ledger itself has signed"
            )

    def tell(self, report: Report, signed: Signed, own: Sequence[Checkpoint]) -> None:
        """Into the report, as far as the lines are signed: what stands behind that says nothing."""
        last = self._last_signed(signed, own)
        size = self.tree.size if last is None else last.size
        report.size, report.root = size, self.tree.root() if last is None else last.root
        report.signed_size = 0 if last is None else last.size
        report.unsigned = self.tree.size - size
        report.findings += [text for number, text in self.wrong if number < size]
        if self.stopped:
            report.findings.append(self.stopped)
        bodies = [number for number in self.bodies_gone if number < size]
        salts = [number for number in self.salts_gone if number < size]
        report.erased, report.salts_erased = len(bodies), len(salts)
        # An erasure tells of records before itself.
        told = [
            (what, (first, min(until, number - 1)))
            for number, what, ranges in self.told
            if number < size
            for first, until in ranges
        ]
        whole = [pair for what, pair in told if what == "records"]
        report.findings += [f"record {n} was erased, and no record says so" for n in _outside(bodies, whole)]
        report.findings += [
            f"the salt of record {n} is gone, and no record says so"
            for n in _outside(salts, [pair for _, pair in told])
        ]
        if report.unsigned:
            self._tell_unsigned(report, signed, last)

    def _last_signed(self, signed: Signed, own: Sequence[Checkpoint]) -> Checkpoint | None:
        """The largest state that the lines fit; None where they do not fit one that they have to."""
        if not own or any(self.roots.get(state.size) != state.root for state in own):
            return None
        states = list(own)
        if signed.pending is not None and self.roots.get(signed.pending.after.size) == signed.pending.after.root:
            states.append(signed.pending.after)
        return max(states, key=lambda state: state.size)

    def _tell_unsigned(self, report: Report, signed: Signed, last: Checkpoint | None) -> None:
        pending = signed.pending
        begun = (
            last is not None
            and pending is not None
            and pending.before.root == last.root
            and self.tree.size < pending.after.size
        )
        lines = f"{report.unsigned} lines behind the {report.size} signed records"
        if begun:
            report.notes.append(
                f"{lines} are the beginning of a group that is being written, or that a crash left; they were not "
                "acknowledged and are no records"
            )
        else:
            report.findings.append(
                f"{lines} are not signed, and no crash leaves such: somebody without the key added them"
            )

    def _look_at(self, leaf: Leaf, salts: SaltReader) -> None:
        position = leaf.position
        salt = salts.read(position)
        if leaf.line is None:
            self.bodies_gone.append(position)
            return
        try:
            seq, record = read_line(leaf.line)
        except GovernanceError as error:
            self.wrong.append((position, f"record {position}: {error}"))
            return
        if seq != position:
            self.wrong.append((position, f"record {position} says that it is number {seq}"))
        if record.kind == "erasure":
            self._hear_erasure(position, record)
        if record.request_hash is None and record.answer_hash is None:
            return
        if salt is None:
            self.wrong.append((position, f"the salt of record {position} is missing"))
        elif salt == ERASED:
            self.salts_gone.append(position)
        elif record.salt_hash != salt_commitment(salt):
            self.wrong.append((position, f"the salt of record {position} is not the one it was written with"))

    def _hear_erasure(self, position: int, record: LedgerRecord) -> None:
        try:
            ranges = [(int(first), int(last)) for first, last in record.details["ranges"]]
        except (KeyError, TypeError, ValueError, OverflowError):
            self.wrong.append((position, f"record {position} does not say what was erased"))
            return
        self.told.append((position, str(record.details.get("what")), ranges))


def _tell_torn(files: LedgerFiles, report: Report) -> None:
    try:
        torn = files.torn_bytes()
    except OSError:
        return
    if torn:
        report.notes.append(
            f"{torn} bytes behind the last line are of one being written, or of a crash; it was not acknowledged"
        )


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
