"""The matrix as a signed document: an in-toto statement whose predicate is a test result, with what it does not prove.

It is self-attested: the machine that was tried says so itself. The signature shows that nothing was changed since and
who holds the key; whoever doubts the rest runs the same command again.
"""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

from freehold.core.errors import GovernanceError
from freehold.governance.egress.bytecode import foreign_bytecode
from freehold.governance.egress.filter import lock_filter
from freehold.governance.egress.inside import CONNECTED
from freehold.governance.egress.landlock import HANDLED, abi
from freehold.governance.egress.matrix import OPEN, Cell, Matrix, Row, Verdict, reason_of
from freehold.governance.egress.mounts import remote_mounts
from freehold.governance.egress.routes import ROUTES
from freehold.governance.egress.seal import LAYERS, NOT_COVERED
from freehold.governance.egress.syscalls import MACHINES
from freehold.governance.signing import PublicKey, SigningKey, canonical, signed, signer

STATEMENT = "https://in-toto.io/Statement/v1"
PREDICATE = "https://in-toto.io/attestation/test-result/v0.1"
DEFAULT_DAYS = 30
MAX_DAYS = 3650
_LISTS: dict[str, Verdict] = {
    "passedTests": "blocked",
    "warnedTests": "not provable here",
    "failedTests": "escaped",
}

_PACKAGE = Path(__file__).parents[2]


def code_digest(package: Path = _PACKAGE) -> str:
    """SHA-256, in hexadecimal, over the names and contents of the package's files: sources, pages, compiled libraries.

    What Python writes beside them (bytecode) does not count; `foreign_bytecode` says whether it is theirs.
    """
    files = sorted(path for path in package.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    whole = hashlib.sha256()
    for path in files:
        name = path.relative_to(package).as_posix()
        whole.update(f"{name}\0{hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return whole.hexdigest()


def policy() -> dict[str, Any]:
    """What the seal locks: the filter's digest for each processor, Landlock's rights, the namespaces."""
    return {
        "filter_sha256": {name: lock_filter(kind).sha256 for name, kind in MACHINES.items()},
        "landlock": {part: list(names) for part, names in HANDLED.items()},
        "namespaces": ["network", "ipc"],
        "capabilities": "none",
    }


def policy_digest() -> str:
    """SHA-256 of `policy` in canonical form."""
    return hashlib.sha256(canonical(policy())).hexdigest()


def boot_id() -> str:
    """The kernel's name for the time since it started."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def evidence(
    matrix: Matrix,
    key: SigningKey,
    *,
    version: str,
    model: Mapping[str, str] | None = None,
    days: float = DEFAULT_DAYS,
    now: datetime | None = None,
) -> dict[str, Any]:
    """The signed document. version: of this package. model: {"name", "sha256"} of the weights that will be served.

    days: after which it says nothing any more. Raises GovernanceError where Python runs bytecode that is not of the
    package's sources: the digest would be of other code than was tried.
    """
    if foreign := foreign_bytecode(_PACKAGE):
        raise GovernanceError(f"{_foreign(foreign)}. Remove it.")
    now = now or datetime.now(timezone.utc)
    subjects = [{"name": f"freehold {version}", "digest": {"sha256": code_digest()}}]
    if model is not None:
        subjects.append({"name": f"model {model['name']}", "digest": {"sha256": model["sha256"]}})
    document = {
        "_type": STATEMENT,
        "subject": subjects,
        "predicateType": PREDICATE,
        "predicate": {
            "result": "PASSED" if matrix.holds else "FAILED",
            "configuration": [{"name": "seal policy", "digest": {"sha256": policy_digest()}}],
            **{name: [_test(row.route, row.user) for row in matrix.of(verdict)] for name, verdict in _LISTS.items()},
            "attestedBy": "self-attested: the machine that was tried says so itself",
            "made": now.isoformat(timespec="seconds"),
            "expires": (now + timedelta(days=days)).isoformat(timespec="seconds"),
            "machine": {
                "kernel": platform.release(),
                "architecture": platform.machine(),
                "boot_id": boot_id(),
                "landlock_abi": abi(),
                "remote_mounts": [asdict(mount) for mount in remote_mounts()],
            },
            "policy": policy(),
            "seals": matrix.seals,
            "routes": [
                {
                    "route": row.route,
                    "what": row.what,
                    "user": row.user,
                    "verdict": row.verdict,
                    "reason": row.reason,
                    "tried": {mode: asdict(cell) for mode, cell in row.cells.items()},
                }
                for row in matrix.rows
            ],
            "attempts_recorded": matrix.attempts,
            "packets_in_namespace": matrix.packets,
            "not_covered": list(NOT_COVERED),
        },
    }
    return signed(document, key)


def _test(route: str, user: str) -> str:
    return f"{route} as {user}"


@dataclass(frozen=True, slots=True)
class Check:
    """Whether a document still says something here. problems: why not; notes: what differs without being wrong."""

    key: PublicKey
    document: Mapping[str, Any]
    problems: list[str]
    notes: list[str]


def check_evidence(
    document: Mapping[str, Any],
    key: PublicKey | None = None,
    *,
    model: str | None = None,
    elsewhere: bool = False,
    now: datetime | None = None,
) -> Check:
    """Check a document against this installation and this machine; its result is worked out again from its rows.

    key: whose signature is expected; None: anybody's, which is noted. model: the digest of the weights that are served.
    elsewhere: it was made on another machine, or before this one was started anew; this is then noted, and otherwise
    a problem. Raises SignatureError where the signature does not fit the document, and GovernanceError for what is no
    such document.
    """
    found = signer(document)
    try:
        kinds = (document["_type"], document["predicateType"])
        if kinds != (STATEMENT, PREDICATE):
            raise GovernanceError(f"This is signed, but it is no evidence of an egress audit: its type is {kinds}.")
        predicate = document["predicate"]
        problems = _time_problems(predicate, now or datetime.now(timezone.utc))
        if key is not None and found != key:
            problems.append(f"it was signed by key {found.id}, not by {key.id}")
        model_problems, notes = _subject_problems(document["subject"], model)
        problems += _result_problems(predicate) + model_problems + _policy_problems(predicate)
        moved = _machine_differences(predicate["machine"])
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise GovernanceError(f"This is signed, but it is no evidence of an egress audit: {error!r}.") from error
    if foreign := foreign_bytecode(_PACKAGE):
        problems.append(_foreign(foreign))
    if key is None:
        notes.insert(0, "no key was given to compare: anybody could have signed it (--key PUB)")
    return Check(found, document, problems + ([] if elsewhere else moved), notes + (moved if elsewhere else []))


def _time_problems(predicate: Mapping[str, Any], now: datetime) -> list[str]:
    expires, made = (datetime.fromisoformat(predicate[name]) for name in ("expires", "made"))
    problems = ["it has expired"] if now > expires else []
    if now < made:
        problems.append("it was made in the future")
    if expires - made > timedelta(days=MAX_DAYS):
        problems.append(f"it claims to be good for more than {MAX_DAYS} days")
    return problems


def _result_problems(predicate: Mapping[str, Any]) -> list[str]:
    """What the rows themselves say, and where the document says otherwise of them."""
    rows = []
    problems = []
    for told in predicate["routes"]:
        cells = {mode: Cell(bool(cell["arrived"]), cell["error"]) for mode, cell in told["tried"].items()}
        row = Row(told["route"], told["what"], told["user"], cells, reason_of(cells[OPEN]))
        rows.append(row)
        if row.verdict != told["verdict"]:
            problems.append(f"{_test(row.route, row.user)} is {row.verdict}, not {told['verdict']}")
    matrix = Matrix(rows, predicate["seals"], predicate["attempts_recorded"], predicate["packets_in_namespace"])
    for name, verdict in _LISTS.items():
        if sorted(predicate[name]) != sorted(_test(row.route, row.user) for row in matrix.of(verdict)):
            problems.append(f"its {name} are not those of its rows")
    result = "PASSED" if matrix.holds else "FAILED"
    if predicate["result"] != result:
        problems.append(f"its result is {predicate['result']}, and its rows say {result}")
    elif result != "PASSED":
        problems.append(f"its result is {result}")
    users = sorted(matrix.seals)
    wanted = sorted((name, user) for name in (CONNECTED, *(route.name for route in ROUTES)) for user in users)
    if not users or sorted((row.route, row.user) for row in rows) != wanted:
        problems.append("its rows are not the routes that are known here, once for each user")
    for user in users:
        if missing := set(LAYERS) - set(matrix.seals[user]):
            problems.append(f"as {user} it was sealed without {', '.join(sorted(missing))}")
        if not int(matrix.attempts[user]) > 0:
            problems.append(f"as {user} no attempt was recorded")
        if not matrix.packets[user]:
            problems.append(f"as {user} no packets were counted")
    if list(predicate["not_covered"]) != list(NOT_COVERED):
        problems.append("it says otherwise what is not covered")
    return problems


def _policy_problems(predicate: Mapping[str, Any]) -> list[str]:
    then = predicate["configuration"][0]["digest"]["sha256"]
    problems = [] if then == policy_digest() else ["the seal's policy was another one"]
    if hashlib.sha256(canonical(predicate["policy"])).hexdigest() != then:
        problems.append("the policy that it shows is not the one of its digest")
    return problems


def _subject_problems(subjects: Sequence[Mapping[str, Any]], model: str | None) -> tuple[list[str], list[str]]:
    """Problems and notes about the code and the model that it is bound to."""
    digests = {entry["name"].partition(" ")[0]: entry["digest"]["sha256"] for entry in subjects}
    problems = [] if digests["freehold"] == code_digest() else ["it was made with other code than is installed here"]
    if model is not None and "model" not in digests:
        problems.append("it is bound to no model")
    elif model is not None and digests["model"] != model:
        problems.append("it is bound to another model")
    if model is None and "model" in digests:
        return problems, ["no model was given to compare with the one that it is bound to (--model)"]
    return problems, []


def _machine_differences(machine: Mapping[str, Any]) -> list[str]:
    differences = []
    if machine["kernel"] != platform.release():
        differences.append(f"it was made on kernel {machine['kernel']}, this is {platform.release()}")
    if machine["boot_id"] != boot_id():
        differences.append("it was made on another machine, or before this one was started anew")
    return differences


def _foreign(paths: Sequence[Path]) -> str:
    return f"Python would run bytecode that is not of the sources beside it: {', '.join(map(str, paths))}"
