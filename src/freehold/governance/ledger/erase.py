"""Erasure that keeps the proofs: salts, so that hashes tell nothing any more, or whole records but for their hash."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from typing import Literal

from freehold.core.errors import GovernanceError
from freehold.governance.ledger.appender import Appender, Draft
from freehold.governance.ledger.files import LedgerFiles, SaltReader, Segment, held, read_leaf, stub_line, write_whole
from freehold.governance.ledger.record import LedgerRecord, now_text, parse_time
from freehold.governance.ledger.salted import ERASED
from freehold.governance.signing import SigningKey

What = Literal["salts", "records"]
_ERASABLE = ("request", "decision")


def older_than(files: LedgerFiles, moment: datetime, what: What) -> list[int]:
    """Numbers of records that ended before a moment and still have what is to be erased. Erasures themselves stay."""
    found = []
    salts = SaltReader(files)
    for leaf in files.leaves():
        salt, record = salts.read(leaf.position), leaf.record()
        if record is None or record.kind not in _ERASABLE or parse_time(record.time) >= moment:
            continue
        if what == "records" or salt not in (None, ERASED):
            found.append(leaf.position)
    return found


def _hush(_text: str) -> None:
    """Nobody listens."""


def erase(
    files: LedgerFiles,
    key: SigningKey,
    numbers: Iterable[int],
    what: What,
    why: str,
    say: Callable[[str], None] = _hush,
) -> int:
    """Erase the salts of some records, or the records; how many. What is erased already does not count, and is not
    recorded again. say: told what was repaired in the ledger.

    The erasure is recorded first, so that what is gone is always told. Servers may go on writing to the ledger
    meanwhile. Bytes are overwritten or replaced in their files; what a disk or a backup keeps of old blocks is beyond
    this. Raises GovernanceError for numbers that the ledger does not have, and as Appender does.
    """
    asked = sorted(set(numbers))
    size, wanted = _check(files, set(asked), what)
    if asked and not 0 <= asked[0] <= asked[-1] < size:
        raise GovernanceError(f"The ledger {files.path} has records 0 to {size - 1}, and no number {asked[-1]}.")
    if not wanted:
        return 0
    details = {"what": what, "ranges": [list(pair) for pair in _ranges(wanted)], "why": why}
    record = LedgerRecord(id=f"erasure-{time.time_ns():x}", time=now_text(), kind="erasure", details=details)
    appender = Appender(files, key, say)
    try:
        # In a file of its own, so that nobody writes to those that are about to be replaced.
        appender.add([Draft(record)], new_file=what == "records")
    finally:
        appender.close()
    for segment, inside in _by_segment(files, wanted):
        with held(files.path):
            _erase_salts(segment, inside)
            if what == "records":
                _erase_records(segment, inside)
    return len(wanted)


def _check(files: LedgerFiles, asked: set[int], what: What) -> tuple[int, list[int]]:
    """How many records there are, and those of the asked that still have what is to be erased. Raises GovernanceError
    where one of them tells of an erasure or a gap: what is gone would no longer be told."""
    size, left = 0, []
    salts = SaltReader(files)
    for leaf in files.leaves():
        size += 1
        salt = salts.read(leaf.position)
        if leaf.position not in asked:
            continue
        record = leaf.record()
        if record is not None and record.kind not in _ERASABLE:
            raise GovernanceError(f"Record {leaf.position} tells of another event ({record.kind}); such records stay.")
        if salt not in (None, ERASED) or (what == "records" and record is not None):
            left.append(leaf.position)
    return size, left


def _ranges(numbers: Sequence[int]) -> list[tuple[int, int]]:
    """Ascending numbers as ranges, both ends included."""
    ranges: list[tuple[int, int]] = []
    for number in numbers:
        if ranges and number == ranges[-1][1] + 1:
            ranges[-1] = (ranges[-1][0], number)
        else:
            ranges.append((number, number))
    return ranges


def _by_segment(files: LedgerFiles, numbers: Sequence[int]) -> list[tuple[Segment, list[int]]]:
    segments = files.segments()
    ends = [segment.first for segment in segments[1:]] + [numbers[-1] + 1]
    grouped = [
        (segment, [number for number in numbers if segment.first <= number < end])
        for segment, end in zip(segments, ends, strict=True)
    ]
    return [(segment, inside) for segment, inside in grouped if inside]


def _erase_salts(segment: Segment, numbers: Sequence[int]) -> None:
    descriptor = os.open(segment.salts, os.O_WRONLY | os.O_CLOEXEC)
    try:
        for number in numbers:
            os.pwrite(descriptor, ERASED, (number - segment.first) * len(ERASED))
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _erase_records(segment: Segment, numbers: Sequence[int]) -> None:
    gone = set(numbers)
    lines = []
    with segment.path.open("rb") as file:
        for position, line in enumerate(file, segment.first):
            if position in gone:
                line = stub_line(position, read_leaf(position, line[:-1]).leaf) + b"\n"
            lines.append(line)
    write_whole(segment.path, b"".join(lines), durable=True)
