"""Disclosures by name or from a file: facts that somebody wrote down, or a signed document."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

from freehold.core.errors import GovernanceError
from freehold.governance.disclosure.catalogue import read_data
from freehold.governance.disclosure.disclosure import Disclosure
from freehold.governance.disclosure.facts import disclosure_of
from freehold.governance.signing import PublicKey

MAX_BYTES = 64 * 2**20
"""Longest file that is read; a document about a model in 200 files has about 1 MiB."""


def shipped_names() -> tuple[str, ...]:
    """The names of the disclosures that come with Freehold."""
    return tuple(read_data("index.json")["documents"])


def load_disclosure(path_or_name: str | Path, *, trusted: Collection[PublicKey] | None = None) -> Disclosure:
    """The disclosure of a shipped name, of a file of facts, or of a signed CycloneDX document.

    trusted: take signed documents by one of these keys alone; None: any file, and `signed_by` says whose it is. The
    signature of a document has to fit in either case. An expired one is loaded: ask `expired`.
    Raises GovernanceError, SignatureError among them, which names the file and what is wrong with it.
    """
    name = str(path_or_name)
    documents = read_data("index.json")["documents"]
    if name in documents and not Path(name).is_file():
        found = disclosure_of(read_data(documents[name]), name)
    else:
        entry = read_json(Path(name))
        if isinstance(entry, dict) and entry.get("bomFormat") == "CycloneDX":
            from freehold.governance.disclosure.reading import disclosure_from

            found = disclosure_from(entry, name)
        else:
            found = disclosure_of(entry, name)
    if trusted is not None and found.signed_by not in set(trusted):
        by = "nobody" if found.signed_by is None else f"the key {found.signed_by.id}"
        raise GovernanceError(f"{name}: is signed by {by}, which is none of the {len(set(trusted))} trusted keys")
    return found


def read_json(path: Path) -> Any:
    """What a JSON file holds. Raises GovernanceError for none, and for a name twice in one object."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        shipped = ", ".join(shipped_names())
        raise GovernanceError(
            f"{path}: cannot be read ({error.strerror}), and is no shipped disclosure; those are {shipped}"
        ) from error
    if len(data) > MAX_BYTES:
        raise GovernanceError(f"{path}: is longer than {MAX_BYTES} bytes")
    try:
        return json.loads(data.decode("utf-8"), object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        raise GovernanceError(f"{path}: is no JSON: {error}") from error


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object whose names differ: of two members of one name, readers take different ones."""
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"the name {name!r} appears twice in one object")
        found[name] = value
    return found
