"""A price table out of the package genai-prices, for whoever wants a newer one than is shipped. Needs that package
(Python 3.11 or newer); it is asked for its data only, never to fetch any."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import date
from typing import Any

from freehold.core.errors import ConfigError
from freehold.governance.cost.prices import MAKERS, PriceEntry, PriceTable, Rate

_RATE_OF = {
    "input_mtok": "input",
    "cache_read_mtok": "cached",
    "cache_write_mtok": "cache_write",
    "output_mtok": "output",
}
# Prices of things that no count of text tokens covers: a model with one of them cannot be priced by its tokens.
_BEYOND_TOKENS = ("requests_kcount", "output_reasoning_mtok", "output_citation_mtok", "audio_hours", "input_mchars")
_DAY = re.compile(r"20\d\d-[01]\d-[0-3]\d")


def table_of_package(day: date) -> PriceTable:
    """The prices of the models' makers, and of every host of MiniMax's models. day: when this is done.

    Left out: models that are charged by anything but tokens, or by the hour of the day. Raises ConfigError without the
    package.
    """
    try:
        from genai_prices import __version__
        from genai_prices.data import providers
    except ImportError as error:
        raise ConfigError("genai-prices is not installed; install it with: pip install genai-prices") from error
    entries = [
        entry
        for provider in providers
        for model in provider.models
        if provider.id in MAKERS or "minimax-m" in model.id.lower()
        for entry in _entries(provider, model, day)
    ]
    entries.sort(key=lambda entry: (entry.provider, entry.model, entry.since or date.min))
    return PriceTable(day, f"genai-prices {__version__}", tuple(entries), _LICENCE)


def _entries(provider: Any, model: Any, day: date) -> Iterator[PriceEntry]:
    conditions = model.prices if isinstance(model.prices, list) else [None]
    names, dated = [], []
    for clause in _clauses(model.match):
        if getattr(clause, "equals", None):
            names.append(clause.equals.lower())
        elif getattr(clause, "starts_with", None):
            dated.append(clause.starts_with.lower())
    found = []
    for condition in conditions:
        prices = model.prices if condition is None else condition.prices
        constraint = None if condition is None else condition.constraint
        if constraint is not None and not hasattr(constraint, "start_date"):
            return
        rates = _rates(prices)
        if rates is None:
            return
        found.append(
            PriceEntry(
                provider=provider.id,
                model=model.id,
                rates=rates,
                names=tuple(sorted(set(names) - {model.id.lower()})),
                dated=tuple(sorted(set(dated) - {model.id.lower()})),
                since=None if constraint is None else constraint.start_date,
                checked=_checked(model.price_comments or "", day),
                source=(provider.pricing_urls or [""])[0],
            )
        )
    yield from found


def _clauses(match: Any) -> list[Any]:
    parts = getattr(match, "or_", None)
    return [match] if parts is None else [clause for part in parts for clause in _clauses(part)]


def _rates(prices: Any) -> dict[str, Rate] | None:
    given = {name: value for name, value in prices.__dict__.items() if value is not None}
    if any(name in given for name in _BEYOND_TOKENS) or not {"input_mtok", "output_mtok"} <= set(given):
        return None
    return {ours: _rate(given[theirs]) for theirs, ours in _RATE_OF.items() if theirs in given}


def _rate(value: Any) -> Rate:
    if hasattr(value, "tiers"):
        return Rate(value.base, tuple((tier.start, tier.price) for tier in value.tiers))
    return Rate(value)


def _checked(comment: str, day: date) -> date | None:
    """The newest day that a comment names and that has been."""
    days = [date.fromisoformat(text) for text in _DAY.findall(comment)]
    return max((found for found in days if found <= day), default=None)


_LICENCE = """\
Prices: Copyright (c) Pydantic Services Inc. 2025 to present. The MIT License: Permission is hereby granted, free of \
charge, to any person obtaining a copy of this software and associated documentation files (the "Software"), to deal \
in the Software without restriction, including without limitation the rights to use, copy, modify, merge, publish, \
distribute, sublicense, and/or sell copies of the Software, and to permit persons to whom the Software is furnished to \
do so, subject to the following conditions: The above copyright notice and this permission notice shall be included in \
all copies or substantial portions of the Software. THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, \
EXPRESS OR IMPLIED, INCLUDING BUT NOT LIMITED TO THE WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE \
AND NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS OR COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER \
LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR OTHERWISE, ARISING FROM, OUT OF OR IN CONNECTION WITH THE \
SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE."""
