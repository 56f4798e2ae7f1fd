"""Cost reports for people."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal

from freehold.core.printable import printable
from freehold.governance.cost.compare import BreakEven, Comparison, Here
from freehold.governance.cost.prices import RATES, PriceEntry
from freehold.governance.cost.report import CostLine, CostReport
from freehold.governance.cost.traffic import Period


def dollars(amount: Decimal) -> str:
    """To the cent; below ten dollars to four digits after the point."""
    if 0 < amount < Decimal("0.0001"):
        return "<0.0001"
    return f"{amount:,.2f}" if amount >= 10 or amount == 0 else f"{amount:,.4f}"


def report_text(report: CostReport) -> str:
    """A table of lines, sums, and what they leave out."""
    rows = [
        ("endpoint", "model", "requests", "input", "cached", "output", "charged $", "list $"),
        *map(_row, report.lines),
    ]
    sums = [report.known(basis) for basis in ("charged", "list")]
    rows.append(("all", "", *_sums(report.lines), *("unpriced" if known is None else dollars(known) for known in sums)))
    lines = [f"{_period(report.traffic.period)}", "", *_table(rows, left=2), ""]
    ends: dict[str, int] = {}
    for line in report.lines:
        for outcome, count in line.outcomes.items():
            ends[outcome] = ends.get(outcome, 0) + count
    lines.append(f"Ended: {', '.join(f'{count} {name}' for name, count in sorted(ends.items())) or 'none'}.")
    if estimated := sum(line.estimated for line in report.lines):
        amounts = [(basis, report.estimated(basis)) for basis in ("charged", "list")]
        parts = ", ".join(f"{basis} ${dollars(amount)}" for basis, amount in amounts if amount) or "unpriced"
        lines.append(f"Estimated: {estimated} requests broke off; their tokens so far are in the sums ({parts}).")
    if report.unpriced:
        lines.append(f"Unpriced: {report.unpriced} requests to models that the price table does not know, in no sum.")
    lines += [f"Note: {note}." for note in report.traffic.notes]
    if report.traffic.erased:
        lines.append(f"Erased: {report.traffic.erased} records of the ledger say nothing any more, in no sum.")
    lines += [f"Price table: {printable(table)}" for table in report.tables]
    lines.append("Charged: by endpoints. List: what the model's own API takes for what own hardware answered.")
    return "\n".join(lines) + "\n"


def comparison_text(found: Comparison) -> str:
    """Alternatives, own hardware, break-even, and what was assumed."""
    given, cached, made = found.tokens
    lines = [
        _period(found.traffic.period),
        f"{len(found.traffic.used):,} requests with tokens ({found.estimated:,} broke off and are estimated): "
        f"{given:,} input ({cached:,} cached), {made:,} output",
        "",
    ]
    rows = [("at list prices", "$", "$ without cache", "price of", "$ for a million: in, cached, out")]
    for other in found.alternatives:
        effective = other.entry.since or other.entry.checked or found.table.day
        rates = ", ".join(_rate(other.entry, name) for name in ("input", "cached", "output"))
        rows.append((other.entry.id, dollars(other.amount), dollars(other.uncached), str(effective), rates))
    lines += [*_table(rows, left=1), ""]
    if found.here is not None:
        lines += [*_here(found.here), "", *(_even(even, found) for even in found.break_even), ""]
    lines += [f"Note: {note}." for note in found.notes]
    written = sum(usage.cache_write_tokens for _, usage in found.traffic.used)
    writing = f"{written:,} written to one at the price for that" if written else "nothing for writing to a cache"
    lines += [
        f"Prices: {found.table.source}, of {found.table.day}, SHA-256 {found.table.hash[:16]}...",
        "Assumed: the same tokens at every model, though tokenizers and lengths of answers differ; cached tokens at",
        f"the price for cached ones, as many as were found here, {writing}; no discounts.",
    ]
    return "\n".join(lines) + "\n"


def entry_text(entry: PriceEntry) -> str:
    """One model's prices, with their source."""
    rates = ", ".join(f"{name} {_rate(entry, name)}" for name in RATES if name in entry.rates)
    day = f"since {entry.since}" if entry.since else f"checked {entry.checked}" if entry.checked else "undated"
    return f"{entry.id}  {rates}  ({day}; {entry.source})"


def _row(line: CostLine) -> tuple[str, ...]:
    amounts = [dollars(line.amounts[basis]) if basis in line.amounts else "-" for basis in ("charged", "list")]
    if line.unpriced and not line.amounts:
        amounts = ["unpriced", "unpriced"]
    return (printable(line.endpoint), printable(line.model), *_sums([line]), *amounts)


def _sums(lines: Sequence[CostLine]) -> tuple[str, ...]:
    counts = ("requests", "input_tokens", "cached_tokens", "output_tokens")
    return tuple(f"{sum(getattr(line, name) for line in lines):,}" for name in counts)


def _here(here: Here) -> list[str]:
    cost = here.cost
    energy = cost.energy_idle + cost.energy_busy
    return [
        f"here                ${dollars(cost.total)}: write-off {dollars(cost.amortisation)}, power {dollars(energy)}, "
        f"operation {dollars(cost.operation)}",
        f"                    busy {here.busy_hours:,.1f} hours, {here.utilisation * 100:.1f} % of the time; "
        f"${dollars(here.per_month.total)} for an average month",
    ]


def _even(even: BreakEven, found: Comparison) -> str:
    head = f"break-even with {even.alternative}: "
    if not found.traffic.own:
        return head + "not known: no request with tokens was answered here"
    if even.load is None or even.tokens_per_month is None:
        return head + "at no load: at the measured rate, power alone costs more than the tokens do there"
    text = head + f"{even.load:,.2f} times this load, {even.tokens_per_month / 1_000_000:,.1f} million tokens a month"
    assert found.here is not None
    if even.reachable:
        return text + f" ({even.load * found.here.utilisation * 100:,.1f} % of the time busy)"
    return text + f": {even.load * found.here.utilisation:,.1f} times what these machines carry at the measured rate"


def _rate(entry: PriceEntry, name: str) -> str:
    rate = entry.rates.get(name, entry.rates["input"])
    return str(rate.base) + "".join(f" (>{over:,}: {price})" for over, price in rate.tiers)


def _period(period: Period) -> str:
    return f"{period.begin:%Y-%m-%d %H:%M} to {period.end:%Y-%m-%d %H:%M} UTC"


def _table(rows: Sequence[Sequence[str]], *, left: int) -> list[str]:
    """Columns of one width; the first `left` of them, and the last where its head is long, begin at the left."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join(
            cell.ljust(width) if column < left or "," in rows[0][column] else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
