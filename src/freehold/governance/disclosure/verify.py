"""Whether a signed disclosure can be relied on as far as a machine can tell, one named check after another."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import Any, Literal

from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from freehold.core.errors import FreeholdError
from freehold.governance.disclosure.cyclonedx import unsigned
from freehold.governance.disclosure.disclosure import Disclosure
from freehold.governance.disclosure.plain import plain
from freehold.governance.disclosure.reading import disclosure_from
from freehold.governance.disclosure.references import wrong_pointers, wrong_references
from freehold.governance.disclosure.weights import MeasuredWeights
from freehold.governance.signing import PublicKey, canonical, signer

State = Literal["holds", "fails", "not checked"]

_CLOCKS = timedelta(hours=1)
"""How far the clocks of two machines may be apart."""
_ZONES = timedelta(hours=14)
"""How long before midnight in UTC a day begins where it begins first."""


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
    except (LookupError, TypeError, AttributeError, ValueError, ArithmeticError, RecursionError) as error:
        faults = (f"cannot be looked at, the document lacks or mistypes what is needed: {error!r}",)
    # Faults quote the document, which may hold what moves a cursor.
    return Check(name, "fails" if faults else "holds", tuple(plain(fault) for fault in faults))


def _schema(document: Any) -> list[str]:
    text = canonical(document).decode()
    error = JsonStrictValidator(SchemaVersion.V1_7).validate_str(text)
    if error is None:
        return []
    place = "/".join(str(part) for part in getattr(error.data, "absolute_path", ()))
    return [f"/{place}: {str(getattr(error.data, 'message', error))[:300]}"]


def _facts(document: Any) -> list[str]:
    """The rules of statements hold: sources, vendors' addresses, values. The signature is another check's."""
    _read(document)
    return []


def _agreement(document: Any) -> list[str]:
    """The document is the one that its claims and evidence make, to the byte: nothing was added, dropped or reworded.

    What is free is the signature, the time of signing and the version of the tool.
    """
    made = unsigned(_read(document), _signed_at(document), document["metadata"]["tools"]["components"][0]["version"])
    there = {name: value for name, value in document.items() if name != "signature"}
    if canonical(made) == canonical(there):
        return []
    return [f"{pointer} is not what the claims and their evidence make of it" for pointer in _differences(made, there)]


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
    """The order of days is: read, issued, signed, today; and today is not past the last day."""
    disclosure = _read(document)
    signed_at = _signed_at(document)
    today = now.astimezone(timezone.utc).date()
    found = []
    if today > disclosure.valid_until:
        found.append(f"was valid until {disclosure.valid_until}, and today is {today}; read its sources again")
    if disclosure.issued > (now + _ZONES).astimezone(timezone.utc).date():
        found.append(f"was issued on {disclosure.issued}, which is in the future: today is {today}")
    if signed_at > now + _CLOCKS:
        found.append(f"was signed at {signed_at.isoformat()}, which is in the future")
    if (signed_at + _ZONES).date() < disclosure.issued:
        found.append(f"was signed at {signed_at.isoformat()}, before it was issued, on {disclosure.issued}")
    return found


def _weights(document: Any, weights: MeasuredWeights) -> list[str]:
    facts = _read(document).facts
    stated = facts["weights.digest"].value
    if facts["weights.digest"].status == "not-stated":
        return ["the document states no digest of weights"]
    found = []
    if stated != weights.digest:
        found.append(f"the digest of the content is {weights.digest}, and the document says {stated}")
    statements = [part for key, fact in facts.items() if key.startswith("file.") for part in fact.statements]
    # A document about published weights may name no files; one that names some has to name all, each once.
    named: dict[str, list[Mapping[str, str]]] = {}
    for record in (part.value for part in statements if isinstance(part.value, Mapping)):
        named.setdefault(record["name"], []).append(record)
    here = {file.name: file for file in weights.files}
    for name in sorted(named.keys() | here.keys() if statements else ()):
        if name not in here or name not in named:
            found.append(f"{name} is {'not among the files' if name not in here else 'not in the document'}")
            continue
        file = here[name]
        for record in named[name]:
            if record["sha256"] != file.sha256:
                found.append(f"{name}: its SHA-256 is {file.sha256}, and the document says {record['sha256']}")
            elif record["bytes"] != str(file.nbytes):
                found.append(f"{name}: it has {file.nbytes} bytes, and the document says {record['bytes']}")
    return found


def _read(document: Any) -> Disclosure:
    """What the document says, whoever signed it: the signature is another check's."""
    return disclosure_from(document, "the document", check_signature=False)


def _signed_at(document: Any) -> datetime:
    time = datetime.fromisoformat(document["metadata"]["timestamp"].replace("Z", "+00:00"))
    if time.tzinfo is None:
        raise ValueError("the time of signing has no zone")
    return time.astimezone(timezone.utc)


def _differences(made: Any, there: Any, pointer: str = "") -> Iterator[str]:
    """JSON pointers to where two values differ: the innermost that both have, or that one of them lacks."""
    if isinstance(made, dict) and isinstance(there, dict):
        for name in dict.fromkeys((*made, *there)):
            place = f"{pointer}/{name.replace('~', '~0').replace('/', '~1')}"
            if name not in made or name not in there:
                yield place
            else:
                yield from _differences(made[name], there[name], place)
    elif isinstance(made, list) and isinstance(there, list):
        for number in range(max(len(made), len(there))):
            if number >= min(len(made), len(there)):
                yield f"{pointer}/{number}"
            else:
                yield from _differences(made[number], there[number], f"{pointer}/{number}")
    elif canonical(made) != canonical(there):
        yield pointer


def all_hold(checks: Iterable[Check]) -> bool:
    """Whether no check fails; those that were not made are not counted."""
    return all(check.state != "fails" for check in checks)
