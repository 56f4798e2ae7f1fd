"""Files of facts: what people write down, one JSON object, checked before anything is made of it.

`docs/reference/disclosure.md` describes the format. Shipped files stand in `data`; a file of one's own may extend one.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from datetime import date, timedelta
from functools import cache
from typing import Any

from freehold.core.errors import GovernanceError
from freehold.governance.disclosure.catalogue import catalogue, read_data
from freehold.governance.disclosure.disclosure import HOSTED, SELF_HOSTED, VENDOR_API, Author, Disclosure
from freehold.governance.disclosure.plain import is_plain
from freehold.governance.disclosure.statement import (
    OPERATOR,
    STATUSES,
    UNKNOWN,
    Fact,
    NotFound,
    Source,
    Statement,
    check_members,
    parse_date,
    value_from_json,
    value_to_json,
)
from freehold.governance.disclosure.vendors import is_at, shipped_vendors

FORMAT = "freehold-facts/1"
LONGEST_VALIDITY = timedelta(days=366)
_KEY = re.compile(r"[a-z]+\.[a-z0-9_-]+")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,127}")
_ALIKE = {"LATIN", "CYRILLIC", "GREEK"}
_LAWS = "laws"
"""The part that every file extends, by way of others or by itself: laws are shown alike in all documents."""
_SILENCE = "This document says nothing about it."


def disclosure_of(entry: Any, where: str) -> Disclosure:
    """The disclosure that a file of facts makes; what it extends comes first, and its own facts replace those.

    Every field that it does not mention becomes "unknown", not stated. Raises GovernanceError, which begins with
    `where` and names the field, for what the format does not allow.
    """
    own = _object(_object(entry, where).get("facts", {}), f"{where}: facts")
    entry = _extended(entry, where)
    need = ("format", "name", "title", "author", "issued", "valid_until", "sources", "facts")
    check_members(entry, where, need=need, may=("vendors", "about", "other_paths"))
    check_members(entry["author"], f"{where}: author", need=("name", "third_party"), may=())
    author = Author(**entry["author"])
    if not isinstance(author.name, str) or not author.name or not isinstance(author.third_party, bool):
        raise GovernanceError(f"{where}: author: must have a name and third_party true or false")
    if not isinstance(entry["title"], str) or not entry["title"]:
        raise GovernanceError(f"{where}: title: must be a text")
    issued = parse_date(entry["issued"], f"{where}: issued")
    vendors = vendors_of(entry.get("vendors", {}), where)
    sources = _sources(entry["sources"], where)
    facts = {}
    for key, row in _object(entry["facts"], f"{where}: facts").items():
        facts[key] = _fact(key, row, sources, f"{where}: {key}")
    _check_inherited([fact for key, fact in facts.items() if key not in own], issued, where)
    disclosure = Disclosure(
        name=entry["name"],
        title=entry["title"],
        author=author,
        vendors=vendors,
        facts=facts | silent(facts, issued),
        issued=issued,
        valid_until=parse_date(entry["valid_until"], f"{where}: valid_until"),
        other_paths=_object(entry.get("other_paths", {}), f"{where}: other_paths"),
    )
    check(disclosure, where)
    return disclosure


def silent(facts: Mapping[str, Fact], on: date) -> dict[str, Fact]:
    """The fields that `facts` leaves out, as facts that are not stated."""
    statement = Statement(UNKNOWN, "not-stated", None, on, _SILENCE)
    missing = [field.key for field in catalogue().fields if not field.is_family and field.key not in facts]
    return {key: Fact(key, "not-stated", (statement,)) for key in missing}


def check(disclosure: Disclosure, where: str) -> None:
    """Raises GovernanceError unless the disclosure keeps the rules that hold for all of them, however it was made."""
    if not isinstance(disclosure.name, str) or not _NAME.fullmatch(disclosure.name):
        raise GovernanceError(
            f"{where}: name is {disclosure.name!r}; it may have letters, digits and . _ - /, and begins with one of the"
            " first two"
        )
    for text in (disclosure.title, disclosure.author.name):
        _check_text(text, where)
    if not isinstance(disclosure.author.third_party, bool):
        raise GovernanceError(f"{where}: third_party is {disclosure.author.third_party!r}; it must be true or false")
    kinds = (SELF_HOSTED, HOSTED, VENDOR_API)
    for name, kind in disclosure.other_paths.items():
        if not isinstance(name, str) or not _NAME.fullmatch(name) or kind not in kinds:
            raise GovernanceError(f"{where}: other_paths: {name!r} is {kind!r}; it must be one of {', '.join(kinds)}")
    if not timedelta(0) <= disclosure.valid_until - disclosure.issued <= LONGEST_VALIDITY:
        raise GovernanceError(
            f"{where}: valid_until is {disclosure.valid_until}; it must lie within {LONGEST_VALIDITY.days} days after"
            f" issued, {disclosure.issued}"
        )
    for key, fact in disclosure.facts.items():
        field = catalogue().field(key)
        if field is None or not _KEY.fullmatch(key):
            raise GovernanceError(f"{where}: {key!r}: no field has this name")
        for statement in fact.statements:
            try:
                field.check(key, statement.value)
                _check_statement(statement, disclosure)
            except GovernanceError as error:
                raise GovernanceError(f"{where}: {key}: {str(error).removeprefix(key + ': ')}") from None
    _check_laws(disclosure.facts, where)


def _check_inherited(facts: Iterable[Fact], issued: date, where: str) -> None:
    """What a file extends was read before the file was issued; the fault is the day of issue's."""
    last = max((statement.read for fact in facts for statement in fact.statements), default=issued)
    if last > issued:
        raise GovernanceError(
            f"{where}: issued is {issued}, but what the file extends was read on {last}; it can be issued on that day"
            " or later"
        )


def _check_laws(facts: Mapping[str, Fact], where: str) -> None:
    """Every law that is known here stands there, for its jurisdiction; what is added is a law of a jurisdiction too."""
    for key, jurisdiction in shipped_laws().items():
        if key not in facts:
            raise GovernanceError(f"{where}: {key}: is missing; every disclosure holds all laws that are known here")
        for statement in facts[key].statements:
            stated = statement.value["jurisdiction"] if isinstance(statement.value, Mapping) else statement.value
            if stated != jurisdiction:
                raise GovernanceError(f"{where}: {key}: is a law of {jurisdiction}, and here of {stated!r}")
    for key, fact in facts.items():
        for statement in fact.statements if key.startswith("law.") else ():
            stated = statement.value["jurisdiction"] if isinstance(statement.value, Mapping) else statement.value
            if not isinstance(stated, str) or not re.fullmatch("[A-Z]{2}", stated):
                raise GovernanceError(
                    f"{where}: {key}: its jurisdiction is {stated!r}; it must be two capital letters, such as EU"
                )


@cache
def shipped_laws() -> Mapping[str, str]:
    """The laws that are known here: key -> jurisdiction."""
    found = {}
    for key, row in read_data(read_data("index.json")["parts"][_LAWS])["facts"].items():
        first = row["statements"][0] if "statements" in row else row
        found[key] = first["value"]["jurisdiction"]
    return found


def _check_text(text: Any, where: str) -> None:
    if not isinstance(text, str):
        raise GovernanceError(f"{where}: must be a text, and is {text!r}")
    if not is_plain(text):
        raise GovernanceError(
            f"{where}: the text {text[:200]!r} has a character that controls how others are shown, such as a line break"
            " or an escape; leave it out"
        )


def _check_statement(statement: Statement, disclosure: Disclosure) -> None:
    said = statement.value in (UNKNOWN, OPERATOR) or isinstance(statement.value, NotFound)
    if statement.status not in STATUSES or statement.status == "conflicting":
        raise GovernanceError(f"a single statement's status cannot be {statement.status!r}")
    for text in _texts_of(statement):
        _check_text(text, statement.status)
    days = [statement.read, *([statement.value.on] if isinstance(statement.value, NotFound) else [])]
    if max(days) > disclosure.issued:
        raise GovernanceError(f"was read on {max(days)}, after the document's day of issue, {disclosure.issued}")
    if statement.status == "not-stated":
        if not said:
            raise GovernanceError(f"the value {statement.value!r} is stated, but its status is 'not-stated'")
        return
    if statement.source is None:
        raise GovernanceError(f"a {statement.status} statement needs a source")
    if statement.status == "verified-here" and statement.source.url is not None:
        raise GovernanceError(
            f"is verified-here, but was read at {statement.source.url}; what is computed or checked has a source"
            " without an address, whose title says how, and what is read elsewhere is third-party"
        )
    if statement.status == "vendor-reported":
        places = [place for listed in disclosure.vendors.values() for place in listed]
        if statement.source.url is None or not is_at(statement.source.url, places):
            raise GovernanceError(
                f"is vendor-reported, but its source {statement.source.url} is at none of the vendor's addresses"
                f" ({', '.join(places) or 'none'}); call it third-party"
            )


def _texts_of(statement: Statement) -> Iterator[str]:
    """All texts that a statement shows."""
    value = value_to_json(statement.value)
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else [value]
    yield from (part for part in parts if isinstance(part, str))
    yield statement.note
    if statement.source is not None:
        yield from statement.source.to_json().values()


def _extended(entry: Any, where: str) -> dict[str, Any]:
    """The entry with what it extends merged in, without the member `extends`."""
    entry = _object(entry, where)
    if entry.get("format") != FORMAT:
        raise GovernanceError(f"{where}: format is {entry.get('format')!r}; this Freehold reads {FORMAT!r}")
    parts = read_data("index.json")["parts"]
    name = entry.get("extends", _LAWS)
    if name not in parts:
        raise GovernanceError(f"{where}: extends {name!r}; what can be extended is {', '.join(parts)}")
    base = read_data(parts[name]) if name == _LAWS else _extended(read_data(parts[name]), name)
    merged = base | {key: value for key, value in entry.items() if key != "extends"}
    for member in ("facts", "sources", "vendors"):
        own = _object(entry.get(member, {}), f"{where}: {member}")
        if member == "facts" and not own.keys().isdisjoint(shipped_laws()):
            replaced = ", ".join(key for key in own if key in shipped_laws())
            raise GovernanceError(f"{where}: {replaced}: comes with Freehold, alike in all disclosures; add others")
        known = base.get(member, {})
        if member == "sources" and (changed := [key for key in own if known.get(key, own[key]) != own[key]]):
            raise GovernanceError(
                f"{where}: sources: {', '.join(changed)}: what is extended has others of this name; rename them"
            )
        merged[member] = {**known, **own}
    return merged


def _object(entry: Any, where: str) -> dict[str, Any]:
    if not isinstance(entry, dict):
        raise GovernanceError(f"{where}: must be an object")
    return entry


def vendors_of(entry: Any, where: str) -> dict[str, tuple[str, ...]]:
    """Vendor -> addresses, checked. Those of vendors that are shipped cannot be widened, nor their names imitated."""
    vendors = {}
    shipped = {_sound(name): name for name in shipped_vendors()}
    for name, places in _object(entry, f"{where}: vendors").items():
        if not isinstance(places, list) or not all(isinstance(place, str) and place for place in places):
            raise GovernanceError(f"{where}: vendors: {name!r}: must be a list of domains")
        for text in (name, *places):
            _check_text(text, f"{where}: vendors")
        scripts = {unicodedata.name(letter, "").partition(" ")[0] for letter in name if letter.isalpha()}
        if len(scripts & _ALIKE) > 1:
            raise GovernanceError(f"{where}: vendors: {name!a} mixes scripts whose letters look alike")
        like = next((other for sound, other in shipped.items() if sound in _sound(name)), name)
        if like != name:
            raise GovernanceError(f"{where}: vendors: {name!r} can be taken for {like!r}; name it so, or otherwise")
        known = shipped_vendors().get(name, tuple(places))
        if not set(places) <= set(known):
            raise GovernanceError(f"{where}: vendors: {name}: its addresses are {', '.join(known)} and no others")
        vendors[name] = tuple(places)
    return vendors


def _sound(name: str) -> str:
    """A name without case, spaces and marks, and with letters of one look in one form."""
    return "".join(letter for letter in unicodedata.normalize("NFKC", name).casefold() if letter.isalnum())


def _sources(entry: Any, where: str) -> dict[str, Source]:
    rows = _object(entry, f"{where}: sources").items()
    return {
        key: Source.from_json({"id": key, **_object(row, f"{where}: sources: {key}")}, f"{where}: sources: {key}")
        for key, row in rows
    }


def _fact(key: str, row: Any, sources: Mapping[str, Source], where: str) -> Fact:
    row = _object(row, where)
    if "statements" in row:
        check_members(row, where, need=("status", "statements"), may=())
        if not isinstance(row["statements"], list):
            raise GovernanceError(f"{where}: statements must be a list")
        statements = tuple(_statement(part, sources, where) for part in row["statements"])
        if row["status"] not in STATUSES:
            raise GovernanceError(f"{where}: the status is {row['status']!r}; it must be one of {', '.join(STATUSES)}")
        return Fact(key, row["status"], statements)
    statement = _statement(row, sources, where)
    return Fact(key, statement.status, (statement,))


def _statement(row: Any, sources: Mapping[str, Source], where: str) -> Statement:
    check_members(row, where, need=("value", "status", "read"), may=("source", "note"))
    if row["status"] not in STATUSES:
        raise GovernanceError(f"{where}: the status is {row['status']!r}; it must be one of {', '.join(STATUSES)}")
    if "source" in row and row["source"] not in sources:
        raise GovernanceError(f"{where}: names the source {row['source']!r}, which `sources` does not have")
    if not isinstance(row.get("note", ""), str):
        raise GovernanceError(f"{where}: note must be a text")
    return Statement(
        value_from_json(row["value"], where),
        row["status"],
        sources[row["source"]] if "source" in row else None,
        parse_date(row["read"], f"{where}: read"),
        row.get("note", ""),
    )
