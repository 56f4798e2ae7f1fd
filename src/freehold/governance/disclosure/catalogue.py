"""The fields that every disclosure has, and what each maps to in other people's lists.

`data/catalogue.json` holds them. A key that ends in `.*` is a family: any number of facts, named by what follows.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from functools import cache
from importlib.resources import files
from typing import Any

from freehold.core.errors import GovernanceError
from freehold.governance.disclosure.statement import OPERATOR, UNKNOWN, NotFound, Value, parse_date

DATA = files("freehold.governance.disclosure") / "data"
TEXT, TEXTS, COUNT, COUNTRY, COUNTRIES = "text", "texts", "count", "country", "countries"
DAY, DAYS, CHOICE, DIGEST, RECORD = "date", "days", "choice", "digest", "record"

_FORMS = {DIGEST: re.compile(r"[0-9a-f]{64}"), COUNTRY: re.compile(r"[A-Z]{2}")}
_WORDS = {
    TEXT: "a text",
    TEXTS: "a list of texts",
    COUNT: "a whole number from 0",
    COUNTRY: "a country's two capital letters (ISO 3166-1)",
    COUNTRIES: "a list of countries' two capital letters (ISO 3166-1)",
    DAY: "a day such as 2026-11-29",
    DAYS: "a whole number of days from 0",
    DIGEST: "64 hexadecimal digits in small letters",
}


@dataclass(frozen=True, slots=True)
class Field:
    """key: its name. section: which part of a page it stands in. label: its name for people.

    about: what it means. kind: of its values. choices: of a choice's values. columns: a record's members and their
    labels, of which those in `optional` may be left out.
    target: "model" or "path", what it says something about. g7: the cluster of the G7's minimum elements for an
    SBOM for AI. eu: the item of the EU's model documentation form; "" where it has none.
    """

    key: str
    section: str
    label: str
    about: str
    kind: str
    target: str
    g7: str
    eu: str
    choices: tuple[str, ...] = ()
    columns: Mapping[str, str] | None = None
    optional: tuple[str, ...] = ()

    @property
    def is_family(self) -> bool:
        """Whether the key stands for any number of facts."""
        return self.key.endswith(".*")

    def check(self, key: str, value: Value) -> None:
        """Raises GovernanceError unless a fact `key` of this field may have the value."""
        if isinstance(value, NotFound) or value in (UNKNOWN, OPERATOR) or self._fits(value):
            return
        wanted = _WORDS.get(self.kind)
        if self.kind == CHOICE:
            wanted = f"one of {', '.join(self.choices)}"
        if self.kind == RECORD:
            wanted = f"a record of {', '.join(self.columns or {})}"
        raise GovernanceError(f"{key}: the value is {value!r}, and must be {wanted}, or {UNKNOWN!r}")

    def _fits(self, value: Value) -> bool:
        if self.kind in (COUNT, DAYS):
            return type(value) is int and 0 <= value < 2**53
        if self.kind in (TEXTS, COUNTRIES):
            form = _FORMS[COUNTRY] if self.kind == COUNTRIES else re.compile(".*", re.S)
            return isinstance(value, tuple) and all(form.fullmatch(text) for text in value)
        if self.kind == RECORD:
            columns = set(self.columns or {})
            return isinstance(value, Mapping) and columns - {*self.optional} <= {*value} <= columns
        if not isinstance(value, str):
            return False
        if self.kind == CHOICE:
            return value in self.choices
        if self.kind == DAY:
            return isinstance(parse_date(value, self.key), date)
        return self.kind not in _FORMS or _FORMS[self.kind].fullmatch(value) is not None


@dataclass(frozen=True, slots=True)
class Catalogue:
    """sections: key -> title, in the order of pages. clusters: code -> name. fields: in order."""

    sections: Mapping[str, str]
    clusters: Mapping[str, str]
    fields: tuple[Field, ...]

    def field(self, key: str) -> Field | None:
        """The field that a fact of this key belongs to; None for a key that nothing describes."""
        family = key.partition(".")[0] + ".*"
        return next((field for field in self.fields if field.key in (key, family)), None)


def read_data(name: str) -> Any:
    """A JSON file of the package's own data."""
    return json.loads((DATA / name).read_text("utf-8"))


@cache
def catalogue() -> Catalogue:
    """The fields, read once."""
    entry = read_data("catalogue.json")
    fields = tuple(
        Field(**{**row, "choices": tuple(row.get("choices", ())), "optional": tuple(row.get("optional", ()))})
        for row in entry["fields"]
    )
    return Catalogue(entry["sections"], entry["g7_clusters"], fields)
