"""The same traffic elsewhere: what it would have cost at other models' list prices, what it cost here, and the load
from which own hardware is cheaper."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from freehold.core.errors import ConfigError
from freehold.governance.cost.hardware import HOURS_PER_MONTH, Hardware, OwnCost
from freehold.governance.cost.prices import PriceEntry, PriceTable
from freehold.governance.cost.traffic import Traffic
from freehold.governance.ledger.record import TokenUsage

_SHORT_HOURS = 7 * 24


@dataclass(frozen=True, slots=True)
class Alternative:
    """One model's list price of the whole traffic. amount: with the cached tokens that were found here, at its price
    for cached ones. uncached: the same if it had found nothing. own: of the requests that were answered here."""

    entry: PriceEntry
    amount: Decimal
    uncached: Decimal
    own: Decimal


@dataclass(frozen=True, slots=True)
class BreakEven:
    """load: where own hardware and an alternative cost the same, as a multiple of the one that was measured here; None:
    there is none, since an own token's power alone costs more, or nothing was answered here.
    tokens_per_month: input and output then.
    reachable: whether the machines can carry it, if a machine that is busy all the time carries in proportion."""

    alternative: str
    load: Decimal | None
    tokens_per_month: Decimal | None
    reachable: bool


@dataclass(frozen=True, slots=True)
class Here:
    """Own hardware. per_month: the same load for an average month. utilisation: busy hours of all hours."""

    cost: OwnCost
    per_month: OwnCost
    busy_hours: Decimal
    utilisation: Decimal


@dataclass(frozen=True, slots=True)
class Comparison:
    """here: None without hardware. break_even: one for each alternative, if there is a load at all."""

    traffic: Traffic
    table: PriceTable
    alternatives: tuple[Alternative, ...]
    here: Here | None
    break_even: tuple[BreakEven, ...]

    @property
    def tokens(self) -> tuple[int, int, int]:
        """Input, cached among them, and output."""
        usages = [usage for _, usage in self.traffic.used]
        return (
            sum(usage.input_tokens for usage in usages),
            sum(usage.cached_tokens for usage in usages),
            sum(usage.output_tokens for usage in usages),
        )

    @property
    def notes(self) -> list[str]:
        """What a reader of the figures has to know."""
        notes = list(self.traffic.notes)
        if self.here is None:
            return notes
        if elsewhere := len(self.traffic.used) - len(self.traffic.own):
            notes.append(f"{elsewhere:,} of the requests were answered elsewhere; break-even counts the others only")
        if self.traffic.period.hours < _SHORT_HOURS:
            hours = f"{self.traffic.period.hours:,.2f}"
            notes.append(f"the period has {hours} hours; what is said of a month is extrapolated from it")
        return notes

    @property
    def estimated(self) -> int:
        """Requests whose tokens were counted on the way."""
        return sum(usage.estimated for _, usage in self.traffic.used)

    def body(self) -> dict[str, Any]:
        """As JSON; money as decimals in text, those of alternatives exact."""
        given, cached, made = self.tokens
        body: dict[str, Any] = {
            "begin": self.traffic.period.begin.isoformat(),
            "end": self.traffic.period.end.isoformat(),
            "requests": len(self.traffic.used),
            "estimated_requests": self.estimated,
            "input_tokens": given,
            "cached_tokens": cached,
            "output_tokens": made,
            "notes": self.notes,
            "price_table": self.table.hash,
            "price_table_date": self.table.day.isoformat(),
            "alternatives": [
                {
                    "model": found.entry.id,
                    "usd": f"{found.amount.normalize():f}",
                    "usd_uncached": f"{found.uncached.normalize():f}",
                    "effective": (found.entry.since or found.entry.checked or self.table.day).isoformat(),
                    "source": found.entry.source,
                }
                for found in self.alternatives
            ],
        }
        if self.here is not None:
            body["here"] = _here_body(self.here)
            body["break_even"] = [
                {
                    "model": found.alternative,
                    "load": None if found.load is None else float(round(found.load, 4)),
                    "tokens_per_month": None if found.tokens_per_month is None else int(found.tokens_per_month),
                    "reachable": found.reachable,
                }
                for found in self.break_even
            ]
        return body


def compare(traffic: Traffic, table: PriceTable, names: Sequence[str], hardware: Hardware | None) -> Comparison:
    """Price every request of the traffic at every alternative; each request's own length decides on its tier.

    Raises ConfigError for a model that the table does not know, and where hardware is to be compared and the period
    has no length.
    """
    entries = [table.require(name) for name in names]
    alternatives = tuple(_alternative(traffic, entry) for entry in entries)
    if hardware is None:
        return Comparison(traffic, table, alternatives, None, ())
    hours = traffic.period.hours
    if not hours > 0:
        raise ConfigError("the ledger has no requests in this period, so that nothing can be compared")
    busy = traffic.busy_hours
    cost = hardware.cost(hours, busy)
    months = hours / HOURS_PER_MONTH
    here = Here(cost, hardware.cost(HOURS_PER_MONTH, busy / months), busy, busy / hours)
    break_even = tuple(_break_even(traffic, here, found, months) for found in alternatives)
    return Comparison(traffic, table, alternatives, here, break_even)


def _alternative(traffic: Traffic, entry: PriceEntry) -> Alternative:
    amount = uncached = Decimal(0)
    own = sum((entry.cost(usage) for usage in traffic.own), Decimal(0))
    for _, usage in traffic.used:
        amount += entry.cost(usage)
        uncached += entry.cost(TokenUsage(input_tokens=usage.input_tokens, output_tokens=usage.output_tokens))
    return Alternative(entry, amount, uncached, own)


def _break_even(traffic: Traffic, here: Here, found: Alternative, months: Decimal) -> BreakEven:
    """Where fixed + load x energy = load x price, both of the tokens that were computed here."""
    gained = found.own / months - here.per_month.energy_busy
    if gained <= 0 or not traffic.own:
        return BreakEven(found.entry.id, None, None, False)
    load = here.per_month.fixed / gained
    tokens = sum(usage.input_tokens + usage.output_tokens for usage in traffic.own)
    return BreakEven(found.entry.id, load, load * tokens / months, load * here.utilisation <= 1)


def _here_body(here: Here) -> dict[str, Any]:
    return {
        "usd": f"{here.cost.total:.2f}",
        "amortisation_usd": f"{here.cost.amortisation:.2f}",
        "operation_usd": f"{here.cost.operation:.2f}",
        "energy_usd": f"{here.cost.energy_idle + here.cost.energy_busy:.2f}",
        "usd_per_month": f"{here.per_month.total:.2f}",
        "busy_hours": float(round(here.busy_hours, 4)),
        "utilisation": float(round(here.utilisation, 6)),
    }
