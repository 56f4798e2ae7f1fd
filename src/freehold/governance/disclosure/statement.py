"""One fact: its value, who says so, where it was read and when, and other values beside it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from typing import Any, Literal, get_args

from freehold.core.errors import GovernanceError

Status = Literal["vendor-reported", "verified-here", "third-party", "not-stated", "conflicting"]
STATUSES: tuple[str, ...] = get_args(Status)

UNKNOWN = "unknown"
"""A value that nobody states."""
OPERATOR = "operator"
"""A value that whoever runs the weights decides; a shipped document cannot know it."""

_DATE = re.compile(r"\d{4}-\d{2}-\d{2}")


@dataclass(frozen=True, slots=True)
class NotFound:
    """A value too: it was looked for in `searched` on `on`, and is not there."""

    searched: str
    on: date

    def __str__(self) -> str:
        return f"not found; searched on {self.on.isoformat()} in {self.searched}"


Scalar = str | int | float | bool
Value = Scalar | tuple[str, ...] | Mapping[str, str] | NotFound
"""A text, a number, texts, a record of named texts, or what was not found."""


@dataclass(frozen=True, slots=True)
class Source:
    """Where something was read. url: None for what has no address, such as a computation, whose `title` says how."""

    id: str
    title: str
    publisher: str
    url: str | None = None

    def to_json(self) -> dict[str, str]:
        """The form that files have; `from_json` takes it back."""
        entry = {"id": self.id, "title": self.title, "publisher": self.publisher}
        return entry if self.url is None else entry | {"url": self.url}

    @staticmethod
    def from_json(entry: Any, where: str) -> Source:
        """Raises GovernanceError, which begins with `where`, for what is no source."""
        check_members(entry, where, need=("id", "title", "publisher"), may=("url",))
        if not all(isinstance(text, str) and text for text in entry.values()):
            raise GovernanceError(f"{where}: a source's members must be texts, and are {entry!r}")
        if "url" in entry and not re.fullmatch(r"https?://[^\s]+", entry["url"]):
            raise GovernanceError(f"{where}: the source's url {entry['url']!r} is no http(s) address")
        return Source(**entry)


@dataclass(frozen=True, slots=True)
class Statement:
    """A value that somebody states. status: any but "conflicting", which only several statements can be.

    read: the day on which it was read at the source, or on which it was measured. note: what has to be known with it.
    """

    value: Value
    status: Status
    source: Source | None
    read: date
    note: str = ""

    def to_json(self) -> dict[str, Any]:
        """The statement with its source, so that it stands alone."""
        entry: dict[str, Any] = {"value": value_to_json(self.value), "status": self.status}
        if self.source is not None:
            entry["source"] = self.source.to_json()
        entry["read"] = self.read.isoformat()
        return entry | {"note": self.note} if self.note else entry


@dataclass(frozen=True, slots=True)
class Fact:
    """What is stated of one field. statements: at least one; several stand side by side, the first first.

    status: the first statement's, or "conflicting", which it has to be where two of a vendor's own statements differ.
    """

    key: str
    status: Status
    statements: tuple[Statement, ...]

    def __post_init__(self) -> None:
        if not self.statements:
            raise GovernanceError(f"{self.key}: has no statement")
        if self.status not in STATUSES:
            raise GovernanceError(f"{self.key}: the status is {self.status!r}; it must be one of {', '.join(STATUSES)}")
        if self.status == "conflicting":
            if len({repr(value_to_json(statement.value)) for statement in self.statements}) < 2:
                raise GovernanceError(f"{self.key}: is conflicting, but its statements do not differ")
            return
        if self.status != self.statements[0].status:
            raise GovernanceError(
                f"{self.key}: its status is {self.status!r} and that of its first statement"
                f" {self.statements[0].status!r}"
            )
        for status in ("vendor-reported", "verified-here"):
            stated = {repr(value_to_json(part.value)) for part in self.statements if part.status == status}
            if len(stated) > 1:
                raise GovernanceError(f"{self.key}: its {status} statements differ; its status must be 'conflicting'")

    @property
    def value(self) -> Value:
        """The first statement's value."""
        return self.statements[0].value

    @property
    def settled(self) -> Value | None:
        """The value, where one is stated and no statement is in conflict with it; else None.

        What has a place for a value but none for its status may hold this alone.
        """
        silent = self.value in (UNKNOWN, OPERATOR) or isinstance(self.value, NotFound)
        return None if silent or self.status in ("conflicting", "not-stated") else self.value


def value_to_json(value: Value) -> Any:
    """The form that files have; `value_from_json` takes it back."""
    if isinstance(value, NotFound):
        return {"not_found_in": value.searched, "on": value.on.isoformat()}
    if isinstance(value, tuple):
        return list(value)
    return dict(value) if isinstance(value, Mapping) else value


def value_from_json(value: Any, where: str) -> Value:
    """A value from its form in files. Raises GovernanceError, which begins with `where`."""
    if isinstance(value, (bool, int, float)) or (isinstance(value, str) and value):
        return value
    if isinstance(value, list) and value and all(isinstance(text, str) and text for text in value):
        return tuple(value)
    if isinstance(value, dict) and "not_found_in" in value:
        check_members(value, where, need=("not_found_in", "on"), may=())
        if isinstance(value["not_found_in"], str) and value["not_found_in"]:
            return NotFound(value["not_found_in"], parse_date(value["on"], f"{where}.on"))
    elif isinstance(value, dict) and value and all(isinstance(text, str) and text for text in value.values()):
        return value
    raise GovernanceError(
        f"{where}: the value {value!r} is none of: text, number, list of texts, record of texts,"
        ' {"not_found_in": ..., "on": ...}'
    )


def parse_date(text: Any, where: str) -> date:
    """A day, written 2026-11-29. Raises GovernanceError, which begins with `where`."""
    try:
        if isinstance(text, str) and _DATE.fullmatch(text):
            return date.fromisoformat(text)
    except ValueError:
        pass
    raise GovernanceError(f"{where}: {text!r} is no day; write it like 2026-11-29")


def check_members(entry: Any, where: str, *, need: tuple[str, ...], may: tuple[str, ...]) -> None:
    """Raises GovernanceError unless `entry` is an object with the members `need`, and of others at most `may`."""
    if not isinstance(entry, dict):
        raise GovernanceError(f"{where}: must be an object, and is {entry!r}")
    missing = [name for name in need if name not in entry]
    unknown = [name for name in entry if name not in need + may]
    if missing or unknown:
        faults = [f"lacks {', '.join(missing)}"] * bool(missing) + [f"has the unknown {', '.join(unknown)}"] * bool(
            unknown
        )
        raise GovernanceError(f"{where}: {' and '.join(faults)}; its members are {', '.join(need + may)}")
