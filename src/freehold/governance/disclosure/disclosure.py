"""A disclosure: every fact about one model on one path, and plain attributes for those who decide by them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import date, timedelta

from freehold.core.errors import GovernanceError
from freehold.governance.disclosure.catalogue import COUNTRIES, COUNTRY, Field, catalogue
from freehold.governance.disclosure.statement import OPERATOR, UNKNOWN, Fact, NotFound, Value
from freehold.governance.signing import PublicKey

SELF_HOSTED, HOSTED, VENDOR_API = "self-hosted", "hosted", "vendor-api"

# Member states of the European Union, whose own laws stand beside the Union's.
EU = frozenset("AT BE BG CY CZ DE DK EE ES FI FR GR HR HU IE IT LT LU LV MT NL PL PT RO SE SI SK".split())

PLACES = (
    "provider.country",
    "provider.parent_country",
    "provider.headquarters_country",
    "data.locations",
    "data.inference_locations",
)
"""The facts whose countries' laws bear on what is sent along the path."""


@dataclass(frozen=True, slots=True)
class Author:
    """Who wrote the facts down. third_party: whether that is somebody else than the provider it speaks of."""

    name: str
    third_party: bool


@dataclass(frozen=True, slots=True)
class Disclosure:
    """What is known of one model on one path.

    name: such as "minimax-m3/api". facts: key -> Fact, each field of the catalogue among them. vendors: whose own
    words count as vendor-reported -> addresses. issued, valid_until: the days on which the facts were put together, and
    after which they should be read again. other_paths: names of disclosures of the same model on other paths -> their
    kind. signed_by: the key of a signed document; None for a file of facts.

    The attributes below give an unknown value as the word "unknown", one that whoever runs the weights decides as
    "operator"; they are never missing and never empty. Where statements conflict, countries of all of them count, the
    longest retention, and of other attributes "unknown".
    """

    name: str
    title: str
    author: Author
    vendors: Mapping[str, tuple[str, ...]]
    facts: Mapping[str, Fact]
    issued: date
    valid_until: date
    other_paths: Mapping[str, str] = field(default_factory=dict)
    signed_by: PublicKey | None = None

    @property
    def model(self) -> str:
        """The model's name."""
        return self._single("model.name")

    @property
    def publisher_country(self) -> tuple[str, ...]:
        """Countries of who made the weights, which is not who runs them."""
        return self.countries("model.publisher_country")

    @property
    def data_path(self) -> str:
        """ "self-hosted", "hosted" (the weights on a third party's host), "vendor-api" or "unknown"."""
        return self._single("path.kind")

    @property
    def endpoints(self) -> tuple[str, ...]:
        """Addresses that requests go to; ("unknown",) or ("operator",) where there is none."""
        return self._texts("path.endpoints")

    @property
    def availability(self) -> str:
        """ "available", "withdrawn", "unreachable", "operator" or "unknown"; the fact's note says why."""
        return self._single("path.availability")

    @property
    def contracting_country(self) -> tuple[str, ...]:
        """Countries of the entity that a user of the path contracts with."""
        return self.countries("provider.country")

    @property
    def parent_country(self) -> tuple[str, ...]:
        """Countries of that entity's parent."""
        return self.countries("provider.parent_country")

    @property
    def headquarters_country(self) -> tuple[str, ...]:
        """Countries that the provider is led from."""
        return self.countries("provider.headquarters_country")

    @property
    def data_locations(self) -> tuple[str, ...]:
        """Countries where prompts and answers are kept."""
        return self.countries("data.locations")

    @property
    def inference_locations(self) -> tuple[str, ...]:
        """Countries where prompts are computed with."""
        return self.countries("data.inference_locations")

    @property
    def jurisdictions(self) -> tuple[str, ...]:
        """Whose laws may compel access: the countries of `PLACES`, "EU" beside each of its members, sorted.

        "unknown" and "operator" are among them where one of those facts is. Which of these laws reaches what in a
        given case is a legal question that no attribute answers.
        """
        found = {country for key in PLACES for country in self.countries(key)}
        return tuple(sorted(found | ({"EU"} if found & EU else set())))

    @property
    def retention_days(self) -> int | str:
        """Days for which the provider keeps prompts or answers; "unknown"; "operator" on own hardware."""
        values = [statement.value for statement in self.facts["data.retention_days"].statements]
        days = [value for value in values if isinstance(value, int)]
        if len(days) == len(values):
            return max(days)
        return OPERATOR if set(values) == {OPERATOR} else UNKNOWN

    @property
    def training_use(self) -> str:
        """Whether prompts are trained on: "no", "yes", "opt-in", "opt-out", "operator" or "unknown"."""
        return self._single("data.training_use")

    @property
    def weights_digest(self) -> str:
        """SHA-256 of the weights' content in hexadecimal, or "unknown"."""
        return self._single("weights.digest")

    def expired(self, on: date) -> bool:
        """Whether the facts are past the day until which they count, or were issued on a day that has not begun yet.

        on: a day of UTC, before which the same day has begun elsewhere.
        """
        return on > self.valid_until or self.issued - on > timedelta(days=1)

    def countries(self, key: str) -> tuple[str, ...]:
        """All countries that any statement of the fact names, sorted; "unknown" and "operator" among them."""
        field = catalogue().field(key)
        if field is None or field.kind not in (COUNTRY, COUNTRIES):
            raise GovernanceError(f"{key} is no field of countries")
        return tuple(sorted({text for statement in self.facts[key].statements for text in _words(statement.value)}))

    def of(self, field: Field) -> Iterator[Fact]:
        """The facts of a field: one, or those of a family in the order of their file."""
        if not field.is_family:
            yield self.facts[field.key]
            return
        yield from (fact for key, fact in self.facts.items() if catalogue().field(key) is field)

    def _single(self, key: str) -> str:
        fact = self.facts[key]
        values = {" ".join(_words(statement.value)) for statement in fact.statements}
        return values.pop() if len(values) == 1 else UNKNOWN

    def _texts(self, key: str) -> tuple[str, ...]:
        return tuple(
            dict.fromkeys(text for statement in self.facts[key].statements for text in _words(statement.value))
        )


def _words(value: Value) -> tuple[str, ...]:
    """A value as words; what was looked for and not found is unknown."""
    if isinstance(value, NotFound):
        return (UNKNOWN,)
    return value if isinstance(value, tuple) else (str(value),)
