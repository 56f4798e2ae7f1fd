"""Whether a signed disclosure can be relied on as far as a machine can tell, one named check after another."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import date, datetime, timedelta, timezone
from typing import Any, Literal

from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from freehold.core.errors import FreeholdError
from freehold.governance.disclosure.catalogue import catalogue
from freehold.governance.disclosure.cyclonedx import NAMESPACE, text_of
from freehold.governance.disclosure.reading import disclosure_from, statement_in
from freehold.governance.disclosure.references import resolve, wrong_pointers, wrong_references
from freehold.governance.disclosure.statement import Statement, parse_date, value_to_json
from freehold.governance.disclosure.weights import MeasuredWeights
from freehold.governance.signing import PublicKey, canonical, signer

State = Literal["holds", "fails", "not checked"]

_CLOCKS = timedelta(hours=1)
"""How far the clocks of two machines may be apart."""


@dataclass(frozen=True, slots=True)
class Check:
    """name: what was looked at. faults: what is wrong, or why it was not checked; empty if it holds."""

    name: str
    state: State
    faults: tuple[str, ...] = ()


def verify(
    document: Any, *, now: datetime, keys: Collection[PublicKey], weights: MeasuredWeights | None = None
) -> tuple[Check, ...]:
    """All checks, in the same order for every document; none raises, whatever the document is.

    keys: those that are known here; a document that none of them signed fails. weights: what was computed from the
    files that the document is said to speak of; without them, that check is not made.
    """
    checks: dict[str, Callable[[], Iterable[str]]] = {
        "schema": lambda: _schema(document),
        "references": lambda: wrong_references(document),
        "pointers": lambda: wrong_pointers(document),
        "facts": lambda: _facts(document),
        "agreement": lambda: _agreement(document),
        "signature": lambda: _signature(document),
        "key": lambda: _key(document, keys),
        "expiry": lambda: _expiry(document, now),
    }
    done = [_run(name, check) for name, check in checks.items()]
    if weights is None:
        return (*done, Check("weights", "not checked", ("no weights were given",)))
    return (*done, _run("weights", lambda: _weights(document, weights)))


def _run(name: str, check: Callable[[], Iterable[str]]) -> Check:
    """A check's result. A document whose shape breaks a check fails it: the schema says what is wrong with it."""
    try:
        faults = tuple(check())
    except FreeholdError as error:
        faults = (str(error),)
    except (LookupError, TypeError, AttributeError, ValueError, RecursionError) as error:
        faults = (f"cannot be looked at, the document lacks or mistypes what is needed: {error!r}",)
    return Check(name, "fails" if faults else "holds", faults)


def _schema(document: Any) -> list[str]:
    text = canonical(document).decode()
    error = JsonStrictValidator(SchemaVersion.V1_7).validate_str(text)
    if error is None:
        return []
    place = "/".join(str(part) for part in getattr(error.data, "absolute_path", ()))
    return [f"/{place}: {str(getattr(error.data, 'message', error))[:300]}"]


def _facts(document: Any) -> list[str]:
    """The rules of statements hold: sources, vendors' addresses, values. The signature is another check's."""
    disclosure_from(document, "the document", check_signature=False)
    return []


def _agreement(document: Any) -> list[str]:
    """What other tools read says what the evidence says, and nothing of ours stands there without evidence."""
    evidence = {row["bom-ref"]: row for row in document["declarations"]["evidence"]}
    publishers = {row["bom-ref"]: row["name"] for row in document["declarations"]["targets"]["organizations"]}
    found, cited = [], set()
    for citation in document["citations"]:
        ref = citation["bom-ref"].removeprefix("citation:")
        if f"evidence:{ref}" not in evidence:
            found.append(f"the citation of {ref} has no evidence")
            continue
        row = evidence.pop(f"evidence:{ref}")
        statement = statement_in(row, ref)
        publisher = statement.source.publisher if statement.source else None
        if publisher is not None and publishers.get(citation["attributedTo"]) != publisher:
            found.append(f"{ref}: is attributed to {citation['attributedTo']}, and its source is {publisher}")
        if not citation["note"].startswith(statement.status) or not row["description"].startswith(statement.status):
            found.append(f"{ref}: its status is {statement.status}, and its citation or evidence says another")
        if not citation["timestamp"].startswith(statement.read.isoformat()):
            found.append(f"{ref}: was read on {statement.read}, and its citation says {citation['timestamp']}")
        for pointer in citation["pointers"]:
            cited.add(pointer)
            wrong = _leaves(resolve(document, pointer)) - _words(statement) - {row["propertyName"]}
            found += [f"{pointer}: says {word!r}, and the evidence of {ref} does not" for word in sorted(wrong)]
    found += [f"{ref} is cited nowhere" for ref in evidence]
    uncited = [pointer for pointer in _own_properties(document, "") if pointer not in cited]
    return found + [f"{pointer}: stands there without a citation" for pointer in uncited]


def _signature(document: Any) -> list[str]:
    signer(document)
    return []


def _key(document: Any, keys: Collection[PublicKey]) -> list[str]:
    key = signer(document)
    if key in keys:
        return []
    known = f"none of those known here ({', '.join(known.id for known in keys)})" if keys else "not compared with any"
    return [f"is signed with the key {key.id}, which is {known}; give the signer's public key with --key"]


def _expiry(document: Any, now: datetime) -> list[str]:
    about = {row["name"]: row["value"] for row in document["metadata"]["properties"]}
    until = parse_date(about.get(f"{NAMESPACE}valid-until"), "valid-until")
    signed_at = datetime.fromisoformat(document["metadata"]["timestamp"].replace("Z", "+00:00"))
    found = []
    today: date = now.astimezone(timezone.utc).date()
    if today > until:
        found.append(f"was valid until {until}, and today is {today}; read its sources again")
    if signed_at > now + _CLOCKS:
        found.append(f"was signed at {signed_at.isoformat()}, which is in the future")
    return found


def _weights(document: Any, weights: MeasuredWeights) -> list[str]:
    facts = disclosure_from(document, "the document", check_signature=False).facts
    stated = facts["weights.digest"].value
    if facts["weights.digest"].status == "not-stated":
        return ["the document states no digest of weights"]
    if stated == weights.digest:
        return []
    found = [f"the digest of the content is {weights.digest}, and the document says {stated}"]
    records = [fact.value for key, fact in facts.items() if key.startswith("file.")]
    named = {record["name"]: record["sha256"] for record in records if isinstance(record, Mapping)}
    here = {file.name: file.sha256 for file in weights.files}
    for name in sorted(named.keys() | here.keys() if named else ()):
        if name not in here or name not in named:
            found.append(f"{name} is {'not among the files' if name not in here else 'not in the document'}")
        elif here[name] != named[name]:
            found.append(f"{name}: its SHA-256 is {here[name]}, and the document says {named[name]}")
    return found


def _words(statement: Statement) -> set[str]:
    """The texts that a statement may put into a document."""
    value = value_to_json(statement.value)
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return {text_of(statement.value), *parts}


def _leaves(value: Any) -> set[str]:
    if isinstance(value, (dict, list)):
        parts = value.values() if isinstance(value, dict) else value
        return {leaf for part in parts for leaf in _leaves(part)}
    return {value if isinstance(value, str) else repr(value)}


def _own_properties(value: Any, pointer: str) -> Iterable[str]:
    """The pointers of all properties that carry a field of the catalogue."""
    if isinstance(value, dict):
        name = value.get("name")
        if isinstance(name, str) and name.startswith(NAMESPACE) and catalogue().field(name[len(NAMESPACE) :]):
            yield pointer
        for key, part in value.items():
            yield from _own_properties(part, f"{pointer}/{key.replace('~', '~0').replace('/', '~1')}")
    elif isinstance(value, list):
        for number, part in enumerate(value):
            yield from _own_properties(part, f"{pointer}/{number}")


def all_hold(checks: Iterable[Check]) -> bool:
    """Whether no check fails; those that were not made are not counted."""
    return all(check.state != "fails" for check in checks)
