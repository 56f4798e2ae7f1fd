"""What is known about an endpoint when a policy decides. Nothing is ever left out: what is not known says so."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from freehold.core.errors import ConfigError

UNKNOWN = "unknown"
"""Nobody looked, or there is no disclosure."""

NOT_STATED = "not-stated"
"""Somebody looked, and the provider does not say."""

PATHS = ("self-hosted", "third-party-host", "vendor-api", UNKNOWN)
"""Where the data goes: own hardware; the weights on another company's host; the maker of the model."""

STATES = ("available", "withdrawn", "unreachable")
RETENTIONS = ("none", "days", "indefinite", NOT_STATED, UNKNOWN)
TRAINING_USES = ("never", "opt-out", "always", NOT_STATED, UNKNOWN)
SOURCES = ("signed-disclosure", "disclosure", "operator", "none")

NO_DAYS = 2**53 - 1
"""retention_days where no number of days is known: longer than any that a policy could allow."""

_WORDS = {"path": PATHS, "retention": RETENTIONS, "training_use": TRAINING_USES, "source": SOURCES}
_SETS = ("seats", "places", "laws")
_ELEMENT = re.compile(r"[A-Za-z0-9][A-Za-z0-9 .:/()-]{0,79}")


@dataclass(frozen=True, slots=True)
class EndpointFacts:
    """Facts about one endpoint, as a policy sees them.

    path: one of PATHS. provider: the contracting entity.
    seats: countries (ISO 3166 alpha-2) of the contracting entity, its parent and its headquarters.
    places: countries in which data lies or is computed on. laws: identifiers of laws that compel access to it.
    retention: one of RETENTIONS; retention_days: 0 with "none", NO_DAYS unless it is "days".
    training_use: one of TRAINING_USES. source: who says all this, one of SOURCES.

    Every set has an element, if only "unknown" or "not-stated". Raises ConfigError for anything else.
    """

    path: str = UNKNOWN
    provider: str = UNKNOWN
    seats: frozenset[str] = frozenset({UNKNOWN})
    places: frozenset[str] = frozenset({UNKNOWN})
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
        if not isinstance(self.provider, str) or not self.provider.strip():
            raise ConfigError(f"provider is {self.provider!r}; it must be a name, if only {UNKNOWN!r}")
        days = self.retention_days
        if not isinstance(days, int) or isinstance(days, bool) or not 0 <= days <= NO_DAYS:
            raise ConfigError(f"retention_days is {days!r}; it must be a whole number of days")
        if (self.retention == "none") != (days == 0) or (self.retention == "days") != (0 < days < NO_DAYS):
            raise ConfigError(
                f"retention is {self.retention!r} and retention_days is {days}; 'none' is 0 days, and a number of "
                "days belongs to 'days' alone"
            )

    @classmethod
    def of(cls, table: Mapping[str, Any], *, path: str, source: str) -> EndpointFacts:
        """From a table as endpoints.toml has it; what is left out stays unknown. Raises ConfigError."""
        known = {field.name for field in fields(cls)} - {"path", "source"}
        for name in table:
            if name not in known:
                raise ConfigError(f"facts have no {name!r}; there are {', '.join(sorted(known))}")
        values: dict[str, Any] = dict(table)
        for name in _SETS:
            if name in values:
                if not isinstance(values[name], list) or not all(isinstance(e, str) for e in values[name]):
                    raise ConfigError(f"{name} is {values[name]!r}; it must be a list of names")
                values[name] = frozenset(values[name])
        if "retention_days" in values and "retention" not in values:
            values["retention"] = "none" if values["retention_days"] == 0 else "days"
        if values.get("retention") == "none":
            values.setdefault("retention_days", 0)
        return cls(path=path, source=source, **values)

    def on_path(self, path: str) -> EndpointFacts:
        """The same facts on another data path."""
        return replace(self, path=path)

    @property
    def boundary(self) -> tuple[object, ...]:
        """What has to be equal for one endpoint to stand in for another without crossing a boundary."""
        return (self.path, self.provider, self.seats, self.places, self.laws)

    def attributes(self) -> dict[str, Any]:
        """As a JSON value; sets are sorted lists."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: sorted(value) if isinstance(value, frozenset) else value for name, value in values.items()}
