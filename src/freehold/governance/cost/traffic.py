"""What a ledger says about a period: who asked what, how it ended, how many tokens, how long the machine was busy."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from decimal import Decimal

from freehold.core.errors import ConfigError
from freehold.governance.ledger.files import LedgerFiles
from freehold.governance.ledger.record import LedgerRecord, TokenUsage, parse_time

LOCAL = "local"
"""The endpoint of records whose tokens were computed here."""


@dataclass(frozen=True, slots=True)
class Period:
    """From `begin` on, up to but without `end`; both with a time zone."""

    begin: datetime
    end: datetime

    @property
    def hours(self) -> Decimal:
        """How long it is."""
        return Decimal(str((self.end - self.begin).total_seconds())) / 3600

    @staticmethod
    def month(text: str) -> Period:
        """`2026-11`, in UTC. Raises ConfigError for what is no month."""
        if not re.fullmatch(r"(19[7-9]|[2-8]\d\d)\d-(0[1-9]|1[0-2])", text, re.ASCII):
            raise ConfigError(f"the month is {text!r}; it must be like 2026-11")
        year, month = int(text[:4]), int(text[5:])
        begin = datetime(year, month, 1, tzinfo=timezone.utc)
        return Period(begin, datetime(year + month // 12, month % 12 + 1, 1, tzinfo=timezone.utc))


@dataclass(frozen=True, slots=True)
class Traffic:
    """The requests of a period, in the order of the ledger. erased: records of the whole ledger that say nothing any
    more, whatever their time was. notes: what makes the period shorter than was asked for."""

    period: Period
    requests: tuple[LedgerRecord, ...]
    erased: int
    notes: tuple[str, ...] = ()

    @property
    def used(self) -> list[tuple[LedgerRecord, TokenUsage]]:
        """Those for which there were tokens, however they ended."""
        return [(record, record.usage) for record in self.requests if record.usage is not None]

    @property
    def own(self) -> list[TokenUsage]:
        """Those tokens that were computed here."""
        return [usage for record, usage in self.used if record.endpoint == LOCAL]

    @property
    def busy_hours(self) -> Decimal:
        """How long at least one request with tokens was under way here."""
        spans = []
        for record, _ in self.used:
            if record.endpoint == LOCAL and record.seconds:
                end = parse_time(record.time)
                begin = max(self.period.begin, end - timedelta(seconds=record.seconds))
                spans.append((begin, min(end, self.period.end)))
        return Decimal(str(round(_union(spans), 6))) / 3600


def read_traffic(
    files: LedgerFiles,
    period: Period | None,
    keep: Callable[[LedgerRecord], bool] = lambda _record: True,
    now: datetime | None = None,
) -> Traffic:
    """The requests that ended in a period; None: from the first one's beginning to the last one's end.

    now: a period that is not over yet ends there; None: now. One in which the ledger began begins with its first
    record. Raises GovernanceError for lines that are no records, ConfigError for a period that is still to come.
    """
    now = datetime.now(timezone.utc) if now is None else now
    if period is not None and period.begin > now:
        raise ConfigError(f"{period.begin:%Y-%m} has not begun; there is nothing to be counted")
    requests, erased = [], 0
    began: datetime | None = None
    for leaf in files.leaves():
        record = leaf.record()
        if record is None:
            erased += 1
            continue
        begin = parse_time(record.time) - timedelta(seconds=record.seconds or 0)
        # Of an erased record nobody knows when it was: the ledger then has no known beginning.
        began = min(begin, began or begin) if not erased or began is not None else None
        if record.kind == "request" and _ended_in(period, record) and keep(record):
            requests.append(record)
    if period is None:
        return Traffic(_spanned(requests), tuple(requests), erased)
    period, notes = _covered(period, began, now)
    return Traffic(period, tuple(requests), erased, notes)


def _covered(period: Period, began: datetime | None, now: datetime) -> tuple[Period, tuple[str, ...]]:
    """The part of a period of which the ledger can tell."""
    begin, end, notes = period.begin, period.end, []
    if began is not None and period.begin < began:
        notes.append(f"the ledger began at {began:%Y-%m-%d %H:%M} UTC, so that only the time since then counts")
        begin = min(began, period.end)
    if now < period.end:
        notes.append(f"{period.begin:%Y-%m} is not over, so that only the time until now counts")
        end = max(now, begin)
    return Period(begin, end), tuple(notes)


def _ended_in(period: Period | None, record: LedgerRecord) -> bool:
    return period is None or period.begin <= parse_time(record.time) < period.end


def _spanned(requests: list[LedgerRecord]) -> Period:
    if not requests:
        now = datetime.now(timezone.utc)
        return Period(now, now)
    ends = [parse_time(record.time) for record in requests]
    begins = [end - timedelta(seconds=record.seconds or 0) for end, record in zip(ends, requests, strict=True)]
    return Period(min(begins), max(ends))


def _union(spans: Iterable[tuple[datetime, datetime]]) -> float:
    """Seconds that lie in at least one span."""
    seconds = 0.0
    until: datetime | None = None
    for begin, end in sorted(spans):
        if until is not None and begin < until:
            begin = until
        if end > begin:
            seconds += (end - begin).total_seconds()
            until = end
    return seconds
