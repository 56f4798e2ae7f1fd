"""The matrix as a signed document: an in-toto statement whose predicate is a test result, with what it does not prove.

It is self-attested: the machine that was tried says so itself. The signature shows that nothing was changed since and
who holds the key; whoever doubts the rest runs the same command again.
"""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

from freehold.core.errors import GovernanceError
from freehold.governance.egress.filter import lock_filter
from freehold.governance.egress.landlock import HANDLED, abi
from freehold.governance.egress.matrix import Matrix
from freehold.governance.egress.seal import NOT_COVERED
from freehold.governance.egress.syscalls import MACHINES
from freehold.governance.signing import PublicKey, SigningKey, canonical, signed, signer

STATEMENT = "https://in-toto.io/Statement/v1"
PREDICATE = "https://in-toto.io/attestation/test-result/v0.1"
DEFAULT_DAYS = 30

_PACKAGE = Path(__file__).parents[2]


def code_digest(package: Path = _PACKAGE) -> str:
    """SHA-256, in hexadecimal, over the names and contents of the package's files: sources, pages, compiled libraries.

    What Python writes beside them (bytecode) does not count.
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

    days: after which it says nothing any more.
    """
    now = now or datetime.now(timezone.utc)
    subjects = [{"name": f"freehold {version}", "digest": {"sha256": code_digest()}}]
    if model is not None:
        subjects.append({"name": f"model {model['name']}", "digest": {"sha256": model["sha256"]}})
    proved = [_test(row.route, row.user) for row in matrix.of("blocked")]
    open_ones = [_test(row.route, row.user) for row in matrix.of("not provable here")]
    document = {
        "_type": STATEMENT,
        "subject": subjects,
        "predicateType": PREDICATE,
        "predicate": {
            "result": "PASSED" if matrix.holds else "FAILED",
            "configuration": [{"name": "seal policy", "digest": {"sha256": policy_digest()}}],
            "passedTests": proved,
            "warnedTests": open_ones,
            "failedTests": [_test(row.route, row.user) for row in matrix.of("escaped")],
            "attestedBy": "self-attested: the machine that was tried says so itself",
            "made": now.isoformat(timespec="seconds"),
            "expires": (now + timedelta(days=days)).isoformat(timespec="seconds"),
            "machine": {
                "kernel": platform.release(),
                "architecture": platform.machine(),
                "boot_id": boot_id(),
                "landlock_abi": abi(),
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


def check_evidence(document: Mapping[str, Any], key: PublicKey | None = None, *, now: datetime | None = None) -> Check:
    """Check a document against this installation and this machine.

    key: whose signature is expected; None: anybody's, which is noted. Raises SignatureError where the signature does
    not fit the document, and GovernanceError for what is no such document.
    """
    found = signer(document)
    try:
        predicate = document["predicate"]
        kinds = (document["_type"], document["predicateType"])
        digests = {entry["name"].partition(" ")[0]: entry["digest"]["sha256"] for entry in document["subject"]}
        policy_then = predicate["configuration"][0]["digest"]["sha256"]
        expires, made = (datetime.fromisoformat(predicate[name]) for name in ("expires", "made"))
        machine, result = predicate["machine"], predicate["result"]
        kernel, boot = machine["kernel"], machine["boot_id"]
        code = digests["freehold"]
        now = now or datetime.now(timezone.utc)
        problems = ["it has expired"] if now > expires else []
        problems += ["it was made in the future"] if now < made else []
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise GovernanceError(f"This is signed, but it is no evidence of an egress audit: {error!r}.") from error
    if kinds != (STATEMENT, PREDICATE):
        raise GovernanceError(f"This is signed, but it is no evidence of an egress audit: its type is {kinds}.")
    if key is not None and found != key:
        problems.append(f"it was signed by key {found.id}, not by {key.id}")
    if result != "PASSED":
        problems.append(f"its result is {result}")
    if code != code_digest():
        problems.append("it was made with other code than is installed here")
    if policy_then != policy_digest():
        problems.append("the seal's policy was another one")
    return Check(found, document, problems, _notes(kernel, boot, key))


def _notes(kernel: str, boot: str, key: PublicKey | None) -> list[str]:
    notes = []
    if key is None:
        notes.append("no key was given to compare: anybody could have signed it (--key PUB)")
    if kernel != platform.release():
        notes.append(f"it was made on kernel {kernel}, this is {platform.release()}")
    if boot != boot_id():
        notes.append("it was made on another machine, or before this one was started anew")
    return notes
