"""A disclosure laid out for people: what a page and a text have in common."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache

from freehold.governance.disclosure.catalogue import COUNTRIES, COUNTRY, DAYS, Field, catalogue, read_data
from freehold.governance.disclosure.disclosure import EU, PLACES, Disclosure
from freehold.governance.disclosure.statement import OPERATOR, STATUSES, UNKNOWN, NotFound, Source, Statement, Value

MEANINGS = {
    "vendor-reported": "read at one of the vendor's own addresses",
    "verified-here": "computed or checked by who wrote this document",
    "third-party": "read elsewhere or said by others; also what a vendor is reported to have said",
    "not-stated": "looked for and not found, or left to whoever runs the weights",
    "conflicting": "statements differ; all stand side by side, and none is preferred",
}
assert tuple(MEANINGS) == STATUSES

COVERAGE = (
    "What was looked up is uneven: it surveys no jurisdiction's law, and a longer table does not mean more law."
    ' "Not read" means that nobody looked, under secrecy for nearly all rows.'
)
"""What has to be known before tables of laws are compared."""

GLANCE = (
    "path.kind",
    "path.recipients",
    "provider.name",
    "provider.country",
    "provider.headquarters_country",
    "data.locations",
    "data.inference_locations",
    "data.retention_days",
    "data.training_use",
    "licence.name",
)
"""What the beginning of a page shows."""

_PATHS = {
    "self-hosted": "self-hosted: the reader runs the weights",
    "hosted": "hosted: a third party runs the weights",
    "vendor-api": "vendor's API: the vendor runs the weights",
}


@dataclass(frozen=True, slots=True)
class Line:
    """One statement as shown. parts: label and text of a record's members, else one with an empty label."""

    parts: tuple[tuple[str, str], ...]
    status: str
    source: Source | None
    read: str
    note: str

    @property
    def text(self) -> str:
        """The parts in one line."""
        return "; ".join(f"{label}: {text}" if label else text for label, text in self.parts)


@dataclass(frozen=True, slots=True)
class Row:
    """A fact as shown. lines: its statements, at least one."""

    key: str
    label: str
    about: str
    status: str
    lines: tuple[Line, ...]


@dataclass(frozen=True, slots=True)
class Jurisdiction:
    """One country's table of laws. named_by: labels of this disclosure's facts that name the country.

    coverage: what was looked up of its law, and what was not.
    """

    code: str
    name: str
    named_by: tuple[str, ...]
    rows: tuple[Row, ...]
    coverage: str


@dataclass(frozen=True, slots=True)
class Section:
    """key, title: of the catalogue. rows: in the catalogue's order. jurisdictions: of laws alone."""

    key: str
    title: str
    rows: tuple[Row, ...] = ()
    jurisdictions: tuple[Jurisdiction, ...] = ()


def sections_of(disclosure: Disclosure) -> tuple[Section, ...]:
    """All that the disclosure states, in the order of the catalogue; sections that it says nothing of are left out."""
    found = []
    for key, title in catalogue().sections.items():
        fields = [field for field in catalogue().fields if field.section == key]
        rows = tuple(row for field in fields for row in rows_of(disclosure, field))
        if key == "law":
            found.append(Section(key, title, jurisdictions=_jurisdictions(disclosure, rows)))
        elif rows:
            found.append(Section(key, title, rows))
    return tuple(found)


def glance_of(disclosure: Disclosure) -> tuple[Row, ...]:
    """The facts that decide most, for the beginning."""
    fields = [catalogue().field(key) for key in GLANCE]
    return tuple(row for field in fields if field is not None for row in rows_of(disclosure, field))


def rows_of(disclosure: Disclosure, field: Field) -> list[Row]:
    """The facts of a field as shown."""
    rows = []
    for fact in disclosure.of(field):
        label = field.label
        lines = tuple(_line(field, statement) for statement in fact.statements)
        if field.is_family and not isinstance(fact.value, Mapping):
            label = fact.key.partition(".")[2].replace("-", " ").capitalize()
        elif field.is_family and field.section != "law" and len({line.parts[0] for line in lines}) == 1:
            # A record is known by its first member, such as a holder's name.
            label = lines[0].parts[0][1]
            lines = tuple(replace(line, parts=line.parts[1:]) for line in lines)
        rows.append(Row(fact.key, label, field.about, fact.status, lines))
    return rows


def country(code: str) -> str:
    """A country's name with its letters; the letters alone where the name is not known here."""
    name = _countries().get(code)
    return code if name is None else f"{name} ({code})"


def shown(value: Value, field: Field) -> str:
    """A value in words; a record's parts are joined."""
    if value == UNKNOWN:
        return "unknown"
    if value == OPERATOR:
        return "decided by whoever runs the weights"
    if isinstance(value, NotFound):
        return str(value)
    if field.kind in (COUNTRY, COUNTRIES):
        return ", ".join(country(code) for code in (value if isinstance(value, tuple) else (str(value),)))
    if isinstance(value, tuple):
        return ", ".join(value)
    if isinstance(value, Mapping):
        return "; ".join(f"{label}: {text}" for label, text in _parts(value, field))
    if field.kind == DAYS:
        return f"{value} days"
    if type(value) is int:
        return f"{value:,}"
    return _PATHS.get(str(value), str(value))


@cache
def _countries() -> Mapping[str, str]:
    names: dict[str, str] = read_data("countries.json")
    return names


def _line(field: Field, statement: Statement) -> Line:
    value = statement.value
    parts = _parts(value, field) if isinstance(value, Mapping) else (("", shown(value, field)),)
    return Line(parts, statement.status, statement.source, statement.read.isoformat(), statement.note)


def _parts(value: Mapping[str, str], field: Field) -> tuple[tuple[str, str], ...]:
    columns = field.columns or {}
    texts = {name: country(text) if name == "country" else text for name, text in value.items()}
    return tuple((columns[name], texts[name]) for name in columns if name in texts)


def _jurisdictions(disclosure: Disclosure, rows: tuple[Row, ...]) -> tuple[Jurisdiction, ...]:
    """All countries that have laws here or that a fact names; the same table for each."""
    by_country: dict[str, list[Row]] = {}
    for row in rows:
        by_country.setdefault(row.lines[0].parts[0][1], []).append(row)
    named = [code for code in disclosure.jurisdictions if code not in (UNKNOWN, OPERATOR)]
    found = []
    for code in sorted({*by_country, *named}, key=country):
        labels = tuple(_label(key) for key in PLACES if code in _with_union(disclosure.countries(key)))
        rows_here = tuple(by_country.get(code, ()))
        found.append(Jurisdiction(code, country(code), labels, rows_here, _coverage(code, rows_here)))
    return tuple(found)


def _coverage(code: str, rows: tuple[Row, ...]) -> str:
    if not rows:
        return "No provision of this jurisdiction was looked up."
    looked_up: Mapping[str, str] = read_data("law-coverage.json")
    return looked_up.get(code, "These provisions were added by who wrote the facts; others were not looked up.")


def _with_union(countries: tuple[str, ...]) -> set[str]:
    return {*countries} | ({"EU"} if EU & {*countries} else set())


def _label(key: str) -> str:
    field = catalogue().field(key)
    assert field is not None, key
    return f"{field.label.lower()} ({catalogue().sections[field.section].lower()})"
