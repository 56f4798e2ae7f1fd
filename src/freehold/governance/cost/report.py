"""What a period's requests cost: charged by endpoints, and by list price where own hardware answered."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from freehold.governance.cost.traffic import Traffic
from freehold.governance.ledger.record import LedgerRecord


@dataclass(slots=True)
class CostLine:
    """One model at one endpoint. amounts: by basis, "charged" or "list". unpriced: requests with tokens and no price.
    estimated: requests whose tokens were counted on the way, because they broke off; estimated_amounts: theirs, by
    basis."""

    endpoint: str
    model: str
    outcomes: Counter[str] = field(default_factory=Counter)
    input_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    amounts: dict[str, Decimal] = field(default_factory=dict)
    unpriced: int = 0
    estimated: int = 0
    estimated_amounts: dict[str, Decimal] = field(default_factory=dict)

    @property
    def requests(self) -> int:
        """All of them, however they ended."""
        return self.outcomes.total()

    def add(self, record: LedgerRecord) -> None:
        """One more request."""
        self.outcomes[record.outcome or "unknown"] += 1
        usage, price = record.usage, record.price
        if usage is None:
            return
        self.input_tokens += usage.input_tokens
        self.cached_tokens += usage.cached_tokens
        self.output_tokens += usage.output_tokens
        self.estimated += usage.estimated
        if price is None or price.amount is None:
            self.unpriced += 1
            return
        amount = Decimal(price.amount)
        self.amounts[price.basis] = self.amounts.get(price.basis, Decimal(0)) + amount
        if usage.estimated:
            self.estimated_amounts[price.basis] = self.estimated_amounts.get(price.basis, Decimal(0)) + amount

    def amount(self, basis: str) -> Decimal | None:
        """The sum of one basis; None where nothing has a price of it, and something has none at all."""
        return None if self.unpriced and basis not in self.amounts else self.amounts.get(basis, Decimal(0))

    def body(self) -> dict[str, Any]:
        """As JSON; money as exact decimals in text, null where it is not known."""
        return {
            "endpoint": self.endpoint,
            "model": self.model,
            "requests": self.requests,
            "outcomes": dict(sorted(self.outcomes.items())),
            "input_tokens": self.input_tokens,
            "cached_tokens": self.cached_tokens,
            "output_tokens": self.output_tokens,
            "charged_usd": _text(self.amount("charged")),
            "list_usd": _text(self.amount("list")),
            "unpriced_requests": self.unpriced,
            "estimated_requests": self.estimated,
            "estimated_charged_usd": _text(self.estimated_amounts.get("charged", Decimal(0))),
            "estimated_list_usd": _text(self.estimated_amounts.get("list", Decimal(0))),
        }


@dataclass(frozen=True, slots=True)
class CostReport:
    """Lines by endpoint and model, the dearest first. tables: hashes of the price tables that the records name."""

    traffic: Traffic
    lines: tuple[CostLine, ...]
    tables: tuple[str, ...]

    def total(self, basis: str) -> Decimal:
        """The sum of one basis."""
        return sum((line.amounts.get(basis, Decimal(0)) for line in self.lines), Decimal(0))

    def estimated(self, basis: str) -> Decimal:
        """What of one basis's sum is of requests that broke off."""
        return sum((line.estimated_amounts.get(basis, Decimal(0)) for line in self.lines), Decimal(0))

    def known(self, basis: str) -> Decimal | None:
        """The sum of one basis; None where nothing has a price of it, and something has none at all."""
        return self.total(basis) if not self.unpriced or any(basis in line.amounts for line in self.lines) else None

    @property
    def unpriced(self) -> int:
        """Requests with tokens and without a price."""
        return sum(line.unpriced for line in self.lines)

    def body(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "begin": self.traffic.period.begin.isoformat(),
            "end": self.traffic.period.end.isoformat(),
            "requests": len(self.traffic.requests),
            "charged_usd": _text(self.known("charged")),
            "list_usd": _text(self.known("list")),
            "unpriced_requests": self.unpriced,
            "erased_records": self.traffic.erased,
            "price_tables": list(self.tables),
            "notes": list(self.traffic.notes),
            "lines": [line.body() for line in self.lines],
        }


def cost_report(traffic: Traffic) -> CostReport:
    """Add up what records say; prices are those that were known when each request ended."""
    lines: dict[tuple[str, str], CostLine] = {}
    tables = set()
    for record in traffic.requests:
        # What was refused before a model was chosen has only what the client asked for.
        where = (record.endpoint or "(none)", record.model or record.model_asked or "(none)")
        lines.setdefault(where, CostLine(*where)).add(record)
        if record.price is not None:
            tables.add(record.price.table)
    ordered = sorted(lines.values(), key=lambda line: (-sum(line.amounts.values()), line.endpoint, line.model))
    return CostReport(traffic, tuple(ordered), tuple(sorted(tables)))


def _text(amount: Decimal | None) -> str | None:
    return None if amount is None else f"{amount.normalize():f}"
