"""What is known about an endpoint when a policy decides. Nothing is ever left out: what is not known says so."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from datetime import date
from typing import Any

from freehold.core.errors import ConfigError
from freehold.governance.disclosure.disclosure import EU, Disclosure
from freehold.governance.disclosure.loading import load_disclosure

UNKNOWN = "unknown"
OPERATOR = "operator"
"""What whoever runs the weights decides, on hardware of their own."""

NONE_LISTED = "none-listed"
"""Of the laws, where the table has none for the jurisdictions that are known."""

SELF_HOSTED = "self-hosted"
PATHS = (SELF_HOSTED, "hosted", "vendor-api", UNKNOWN)
"""Own hardware; the weights on a third party's host; the API of who made the model."""

AVAILABLE = "available"
STATES = (AVAILABLE, "withdrawn", "unreachable")
RETENTIONS = ("days", OPERATOR, UNKNOWN)
TRAINING_USES = ("no", "yes", "opt-in", "opt-out", OPERATOR, UNKNOWN)
SOURCES = ("signed-disclosure", "disclosure", "operator", "expired-disclosure", "none")

NO_DAYS = 2**53 - 1
"""retention_days where no number of days is known: longer than any that a policy could allow."""

_WORDS = {"path": PATHS, "retention": RETENTIONS, "training_use": TRAINING_USES, "source": SOURCES}
_SETS = ("jurisdictions", "data_countries", "laws")
_ELEMENT = re.compile(r"[A-Za-z0-9][A-Za-z0-9.:-]{0,79}")
_GIVEN = ("jurisdictions", "data_countries", "laws", "retention_days", "training_use")


@dataclass(frozen=True, slots=True)
class EndpointFacts:
    """Facts about one endpoint, as a policy sees them.

    path: one of PATHS.
    jurisdictions: countries (ISO 3166 alpha-2, and EU) whose laws may compel access: those of the contracting
        entity, its parent, its headquarters, and of where data lies and is computed with.
    data_countries: the last two alone. laws: identifiers of such laws, or "none-listed".
    retention_days: 0 for none; NO_DAYS where retention is not "days".
    training_use: whether prompts are trained on. source: who says all this, one of SOURCES.

    Every set has an element, if only "unknown" or "operator". Raises ConfigError for anything else.
    """

    path: str = UNKNOWN
    jurisdictions: frozenset[str] = frozenset({UNKNOWN})
    data_countries: frozenset[str] = frozenset({UNKNOWN})
    laws: frozenset[str] = frozenset({UNKNOWN})
    retention: str = UNKNOWN
    retention_days: int = NO_DAYS
    training_use: str = UNKNOWN
    source: str = "none"

    def __post_init__(self) -> None:
        for name, words in _WORDS.items():
            if getattr(self, name) not in words:
                raise ConfigError(f"{name} is {getattr(self, name)!r}; it must be one of {', '.join(words)}")
        for name in _SETS:
            value = getattr(self, name)
            if not isinstance(value, frozenset) or not value:
                raise ConfigError(f"{name} is {value!r}; it must have an element, if only {UNKNOWN!r}")
            for element in value:
                if not isinstance(element, str) or not _ELEMENT.fullmatch(element):
                    raise ConfigError(f"{name} holds {element!r}; elements are short names like 'DE'")
        days = self.retention_days
        if not isinstance(days, int) or isinstance(days, bool) or not 0 <= days <= NO_DAYS:
            raise ConfigError(f"retention_days is {days!r}; it must be a whole number of days, 0 for none")
        if (self.retention == "days") != (days < NO_DAYS):
            raise ConfigError(f"retention is {self.retention!r} and retention_days {days}; they contradict each other")

    @property
    def boundary(self) -> tuple[object, ...]:
        """What has to be equal for one endpoint to stand in for another without crossing a boundary."""
        return (self.path, self.jurisdictions, self.data_countries, self.laws)

    def attributes(self) -> dict[str, Any]:
        """As a JSON value; sets are sorted lists."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: sorted(value) if isinstance(value, frozenset) else value for name, value in values.items()}

    def filled(self, table: Mapping[str, Any]) -> EndpointFacts:
        """With what an operator states where nothing was known before.

        table: some of jurisdictions, data_countries, laws (lists), retention_days, training_use. Raises ConfigError
        for other names, and where a disclosure says something else: what is known is not overruled.
        """
        for name in table:
            if name not in _GIVEN:
                raise ConfigError(f"facts have no {name!r}; an operator can state {', '.join(_GIVEN)}")
        new: dict[str, Any] = {}
        for name, value in table.items():
            given = _given_set(name, value) if name in _SETS else value
            before = getattr(self, name)
            if before != given and not _is_open(before):
                shown = sorted(before) if isinstance(before, frozenset) else before
                raise ConfigError(f"{name} is {value!r}, but the disclosure says {shown!r}, which counts")
            new[name] = given
        if "retention_days" in new:
            new["retention"] = "days"
        if "jurisdictions" in new and "laws" not in new:
            new["laws"] = laws_of(new["jurisdictions"])
        return replace(self, source="operator", **new) if new else self


def _given_set(name: str, value: Any) -> frozenset[str]:
    if not isinstance(value, list) or not all(isinstance(element, str) for element in value):
        raise ConfigError(f"{name} is {value!r}; it must be a list of names")
    found = frozenset(value)
    return found | {"EU"} if name == "jurisdictions" and found & EU else found


def _is_open(value: object) -> bool:
    """Whether nothing definite is known: a set that holds anything else is, even beside "unknown"."""
    if isinstance(value, frozenset):
        return value <= {UNKNOWN, OPERATOR}
    return value in (UNKNOWN, OPERATOR, NO_DAYS)


def laws_of(jurisdictions: Iterable[str]) -> frozenset[str]:
    """The laws of these jurisdictions that the shipped disclosures know; "unknown" for an unknown one."""
    wanted = frozenset(jurisdictions)
    return _laws(load_disclosure("minimax-m3/api"), wanted)


def _laws(disclosure: Disclosure, jurisdictions: frozenset[str]) -> frozenset[str]:
    found = set()
    for key, fact in disclosure.facts.items():
        if (
            key.startswith("law.")
            and isinstance(fact.value, Mapping)
            and fact.value.get("jurisdiction") in jurisdictions
        ):
            found.add(key.removeprefix("law."))
    found |= jurisdictions & {UNKNOWN, OPERATOR}
    return frozenset(found or {NONE_LISTED})


def facts_of(disclosure: Disclosure, on: date) -> EndpointFacts:
    """The facts that a disclosure states. One that has expired is known of, and states nothing."""
    path = disclosure.data_path
    if disclosure.expired(on):
        return EndpointFacts(path=path, source="expired-disclosure")
    days = disclosure.retention_days
    jurisdictions = frozenset(disclosure.jurisdictions)
    return EndpointFacts(
        path=path,
        jurisdictions=jurisdictions,
        data_countries=frozenset((*disclosure.data_locations, *disclosure.inference_locations)),
        laws=_laws(disclosure, jurisdictions),
        retention="days" if isinstance(days, int) else days,
        retention_days=days if isinstance(days, int) else NO_DAYS,
        training_use=disclosure.training_use,
        source="disclosure" if disclosure.signed_by is None else "signed-disclosure",
    )
