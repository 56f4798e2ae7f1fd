"""List prices of models: a pinned, dated table, and what a request costs by it. Decimal throughout, no network.

A price is in US dollars for a million tokens. A rate may have tiers: above so many input tokens, cached ones among
them, the whole request is charged at the tier's rate. A model that the table does not know is unpriced, never free.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import date, datetime, timezone
from decimal import Decimal, InvalidOperation
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from freehold.core.errors import ConfigError, GovernanceError
from freehold.governance.ledger.record import TokenUsage
from freehold.governance.signing import canonical
from freehold.governance.toml import read_toml

FORMAT = 1
RATES = ("input", "cached", "cache_write", "output")
MILLION = Decimal(1_000_000)

MAKERS = (
    *("minimax", "anthropic", "openai", "google", "deepseek", "mistral"),
    *("moonshotai", "x-ai", "zai", "cohere", "meta"),
)
"""Whose price counts for a model that is named without a provider, in this order."""

# What names of dated releases end with: claude-opus-4-8-20260528, gpt-5.5-2026-04-23.
_DATED = re.compile(r"[-@](\d{8}|\d{4}-\d{2}-\d{2})|-latest")


@dataclass(frozen=True, slots=True)
class Rate:
    """A price for a million tokens. tiers: (input tokens, price): above so many, all tokens cost that; ascending."""

    base: Decimal
    tiers: tuple[tuple[int, Decimal], ...] = ()

    def at(self, input_tokens: int) -> Decimal:
        """The price that holds for a request with so many input tokens."""
        price = self.base
        for over, tier in self.tiers:
            if input_tokens > over:
                price = tier
        return price

    def body(self) -> Any:
        """As the table has it."""
        if not self.tiers:
            return str(self.base)
        return {"base": str(self.base), "over": [[over, str(price)] for over, price in self.tiers]}


@dataclass(frozen=True, slots=True)
class PriceEntry:
    """The price of one model at one provider.

    names: further names, in lower case. dated: beginnings of names that a date may follow. rates: by RATES; without
    "cached" or "cache_write", such tokens cost as any others of the prompt. since: first day, UTC; None: any.
    checked: when the source was last read, as far as it says. source: where the price stands.
    """

    provider: str
    model: str
    rates: Mapping[str, Rate]
    names: tuple[str, ...] = ()
    dated: tuple[str, ...] = ()
    since: date | None = None
    checked: date | None = None
    source: str = ""

    @property
    def id(self) -> str:
        """`provider:model`."""
        return f"{self.provider}:{self.model}"

    def fits(self, model: str) -> bool:
        """Whether a name, in lower case, is this model's."""
        if model == self.model.lower() or model in self.names:
            return True
        return any(model.startswith(d) and _DATED.fullmatch(model[len(d) :]) for d in (*self.dated, self.model.lower()))

    def body(self) -> dict[str, Any]:
        """As the table has it."""
        dates = {name: day.isoformat() for name in ("since", "checked") if (day := getattr(self, name)) is not None}
        lists = {name: list(found) for name in ("names", "dated") if (found := getattr(self, name))}
        rates = {name: self.rates[name].body() for name in RATES if name in self.rates}
        return {"provider": self.provider, "model": self.model, "source": self.source, **lists, **dates, **rates}

    def cost(self, usage: TokenUsage) -> Decimal:
        """What a request cost, exactly, in US dollars."""
        counts = {"cached": usage.cached_tokens, "cache_write": usage.cache_write_tokens, "output": usage.output_tokens}
        counts["input"] = usage.input_tokens - usage.cached_tokens - usage.cache_write_tokens
        total = Decimal(0)
        for name, count in counts.items():
            if name not in self.rates:
                name = "input"
            total += count * self.rates[name].at(usage.input_tokens)
        return total / MILLION


@dataclass(frozen=True, slots=True)
class Priced:
    """What a request cost. effective: the day from which the price is known to hold."""

    amount: Decimal
    entry: PriceEntry
    effective: date


@dataclass(frozen=True)
class PriceTable:
    """Entries, and the `day` on which they were put together. source: from where. Later entries of one model and
    provider with a later `since` take the place of earlier ones from that day on."""

    day: date
    source: str
    entries: tuple[PriceEntry, ...]
    licence: str = ""

    @cached_property
    def hash(self) -> str:
        """SHA-256 of the canonical form, in hex: it names exactly these prices."""
        return hashlib.sha256(canonical(self.body())).hexdigest()

    def body(self) -> dict[str, Any]:
        """The table as JSON."""
        entries = [entry.body() for entry in self.entries]
        head = {"format": FORMAT, "date": self.day.isoformat(), "source": self.source, "licence": self.licence}
        return {**head, "unit": "US dollars for a million tokens", "entries": entries}

    def find(self, name: str, when: datetime | None = None) -> PriceEntry | None:
        """The entry of `model` or `provider:model` that holds at a time; None where the table has none.

        Without a provider, the price of the model's maker counts, not that of any host. when: None: now.
        """
        moment = datetime.now(timezone.utc) if when is None else when.astimezone(timezone.utc)
        provider, _, model = name.partition(":") if ":" in name else ("", "", name)
        found = self._find(provider.lower(), model.lower(), moment.date())
        # Some models have a colon in their own name.
        return found or (self._find("", name.lower(), moment.date()) if provider else None)

    def _find(self, provider: str, model: str, day: date) -> PriceEntry | None:
        best: PriceEntry | None = None
        for entry in self.entries:
            if provider != entry.provider and (provider or entry.provider not in MAKERS):
                continue
            if not entry.fits(model) or (entry.since is not None and entry.since > day):
                continue
            if best is None or _rank(entry, model) > _rank(best, model):
                best = entry
        return best

    def price(self, name: str, usage: TokenUsage, when: datetime | None = None) -> Priced | None:
        """What a request to a model cost; None: unpriced."""
        entry = self.find(name, when)
        if entry is None:
            return None
        return Priced(entry.cost(usage), entry, entry.since or entry.checked or self.day)

    def require(self, name: str) -> PriceEntry:
        """The entry of a model now. Raises ConfigError that names similar ones."""
        entry = self.find(name)
        if entry is None:
            word = name.partition(":")[2] or name
            word = word.rpartition("/")[2].lower()
            similar = sorted({e.id for e in self.entries if word and word in e.model.lower()})[:8]
            raise ConfigError(
                f"the price table of {self.day} does not know the model {name!r}; "
                + (f"it has {', '.join(similar)}" if similar else "add it with its source and date (--prices)")
            )
        return entry

    def with_overrides(self, path: Path) -> PriceTable:
        """The table with the entries of a TOML file, which come before its own. Raises ConfigError.

        Each `[[price]]` has provider, model, input, output, source and date, and perhaps cached, cache_write, names and
        since. A price is a number as text or `{ base = "0.30", over = [[512000, "0.60"]] }`.
        """
        document = read_toml(path, "the price file")
        unknown = set(document) - {"price"}
        if unknown:
            raise ConfigError(f"the price file {path} has {sorted(unknown)}; it holds [[price]] entries only")
        given = document.get("price", [])
        if not isinstance(given, list) or not all(isinstance(entry, Mapping) for entry in given):
            raise ConfigError(f"the price file {path}: price is {given!r:.80}; entries begin with [[price]]")
        added = tuple(_override(path, number, entry) for number, entry in enumerate(given, 1))
        # A price that holds from a day on leaves what held before it.
        first: dict[str, date] = {}
        for entry in added:
            first[entry.id] = min(entry.since or date.min, first.get(entry.id, date.max))
        kept = tuple(entry for entry in self.entries if (entry.since or date.min) < first.get(entry.id, date.max))
        return replace(self, entries=added + kept, source=f"{self.source}; {len(added)} entries of {path.name}")


def _rank(entry: PriceEntry, model: str) -> tuple[int, bool, date]:
    """The maker first, then a name that fits as it is, then the newest price."""
    maker = -MAKERS.index(entry.provider) if entry.provider in MAKERS else -len(MAKERS)
    exact = model == entry.model.lower() or model in entry.names
    return maker, exact, entry.since or date.min


@lru_cache(maxsize=1)
def shipped_table() -> PriceTable:
    """The table that comes with this release."""
    return read_table(Path(__file__).with_name("prices.json"))


def read_table(path: Path) -> PriceTable:
    """A table from its file. Raises GovernanceError for what is none."""
    try:
        body = json.loads(path.read_text("utf-8"))
        if body["format"] != FORMAT:
            raise GovernanceError(f"The price table {path} has format {body['format']}; this release reads {FORMAT}.")
        entries = tuple(_entry(given) for given in body["entries"])
        return PriceTable(date.fromisoformat(body["date"]), body["source"], entries, body["licence"])
    except OSError as error:
        raise GovernanceError(f"The price table {path} cannot be read: {error.strerror}.") from error
    except (ValueError, KeyError, TypeError, InvalidOperation) as error:
        raise GovernanceError(f"{path} is no price table: {error!r}.") from error


def _entry(given: Mapping[str, Any]) -> PriceEntry:
    return PriceEntry(
        provider=given["provider"],
        model=given["model"],
        rates={name: _rate(given[name]) for name in RATES if name in given},
        names=tuple(given.get("names", ())),
        dated=tuple(given.get("dated", ())),
        since=date.fromisoformat(given["since"]) if "since" in given else None,
        checked=date.fromisoformat(given["checked"]) if "checked" in given else None,
        source=given["source"],
    )


def _rate(given: Any) -> Rate:
    if not isinstance(given, Mapping):
        return Rate(_dollars(given))
    if unknown := set(given) - {"base", "over"}:
        raise ValueError(f"a rate has base and over, and no {', '.join(sorted(unknown))}")
    tiers = sorted((_border(over), _dollars(price)) for over, price in given.get("over", ()))
    if len({over for over, _ in tiers}) < len(tiers):
        raise ValueError("two tiers of a rate begin at the same number of tokens")
    return Rate(_dollars(given["base"]), tuple(tiers))


def _border(given: Any) -> int:
    if isinstance(given, bool) or not isinstance(given, int) or not 0 < given < 10**12:
        raise ValueError(f"a tier begins above {str(given)[:40]} input tokens; it must be a whole number above 0")
    return given


def _dollars(given: Any) -> Decimal:
    if isinstance(given, bool) or not isinstance(given, (str, int, Decimal)):
        raise ValueError(f"{given!r} is no price")
    price = Decimal(given)
    if not price.is_finite() or not 0 <= price <= MILLION or (price and price < Decimal("1e-15")):
        raise ValueError(f"{str(given)[:40]} is no price in US dollars for a million tokens")
    return price


_OVERRIDE = {"provider", "model", "names", "since", "date", "source", *RATES}


def _override(path: Path, number: int, given: Mapping[str, Any]) -> PriceEntry:
    where = f"the price file {path}, entry {number}"
    missing = {"provider", "model", "input", "output", "source", "date"} - set(given)
    unknown = set(given) - _OVERRIDE
    if missing or unknown:
        raise ConfigError(f"{where}: {f'it lacks {sorted(missing)}' if missing else f'unknown: {sorted(unknown)}'}")
    try:
        days = {name: _day(given[name]) for name in ("date", "since") if name in given}
        return PriceEntry(
            provider=_name(given["provider"]).lower(),
            model=_name(given["model"]),
            rates={name: _rate(given[name]) for name in RATES if name in given},
            names=_names(given.get("names", [])),
            since=days.get("since"),
            checked=days["date"],
            source=str(given["source"]),
        )
    except (ValueError, KeyError, TypeError, InvalidOperation) as error:
        raise ConfigError(f"{where}: {error}") from error


def _name(given: Any) -> str:
    if not isinstance(given, str) or not given.strip():
        raise ValueError(f"{str(given)[:40]!r} is no name")
    return given.strip()


def _names(given: Any) -> tuple[str, ...]:
    if not isinstance(given, list):
        raise ValueError(f'names is {str(given)[:40]!r}; it must be a list, such as ["a", "b"]')
    return tuple(_name(name).lower() for name in given)


def _day(given: Any) -> date:
    return given if isinstance(given, date) and not isinstance(given, datetime) else date.fromisoformat(str(given))


def table_text(table: PriceTable) -> str:
    """The table's file: one entry a line, so that changes of prices can be read."""
    body = table.body()
    entries = ",\n".join(json.dumps(entry) for entry in body.pop("entries"))
    head = json.dumps(body, indent=0)[1:-2]
    return f'{{{head},\n"entries": [\n{entries}\n]}}\n'
