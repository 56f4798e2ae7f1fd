"""The label of an identity's directory: whose blocks lie there and how. It lies there twice."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from freehold.cache.damage import DamageLog, is_our_limit
from freehold.cache.identity import Identity
from freehold.cache.layout import RecordLayout
from freehold.cache.record import checksum
from freehold.core.durable import sync
from freehold.core.errors import StoreError

LABEL_NAMES = ("identity.json", "identity.copy.json")
FORMAT = 1


def _canonical(fields: dict[str, Any]) -> bytes:
    return json.dumps(fields, sort_keys=True, separators=(",", ":")).encode()


def pack_label(identity: Identity, layout: RecordLayout) -> bytes:
    """The label as JSON text. `checksum` covers the other fields, written with sorted keys and no spaces."""
    fields: dict[str, Any] = {
        "format": FORMAT,
        "digest": identity.digest.hex(),
        "description": dict(identity.description),
        "block_tokens": layout.block_tokens,
        "parts": [list(part) for part in layout.parts],
        "segment_bytes": layout.segment_bytes,
    }
    return json.dumps({**fields, "checksum": checksum(_canonical(fields)).hex()}, indent=1).encode() + b"\n"


def unpack_label(text: bytes) -> tuple[Identity, RecordLayout]:
    """The inverse of `pack_label`. Raises ValueError if the text is no whole label of this format."""
    try:
        fields = json.loads(text)
        seal = fields.pop("checksum")
        if checksum(_canonical(fields)).hex() != seal or fields["format"] != FORMAT:
            raise ValueError("its checksum or format is wrong")
        parts = tuple((str(name), int(nbytes)) for name, nbytes in fields["parts"])
        layout = RecordLayout(int(fields["block_tokens"]), parts, int(fields["segment_bytes"]))
        return Identity(bytes.fromhex(fields["digest"]), dict(fields["description"])), layout
    except (KeyError, TypeError, AttributeError, RecursionError, OverflowError) as error:
        raise ValueError(f"it is no label: {error}") from error


def label_problems(directory: Path) -> dict[Path, str]:
    """What is wrong with each copy of a directory's label that is not whole."""
    problems = {}
    for path in (directory / name for name in LABEL_NAMES):
        try:
            unpack_label(path.read_bytes())
        except (OSError, ValueError) as error:
            problems[path] = str(error)
    return problems


def read_label(directory: Path) -> tuple[Identity, RecordLayout]:
    """What the label in a directory says. Raises StoreError if neither copy can be read, OSError if the process has no
    file descriptors or memory left to read it."""
    problems = []
    for name in LABEL_NAMES:
        try:
            return unpack_label((directory / name).read_bytes())
        except (OSError, ValueError) as error:
            if is_our_limit(error):
                raise
            problems.append(f"{name}: {error}")
    raise StoreError(f"{directory} has no readable label ({'; '.join(problems)})")


def write_label(directory: Path, identity: Identity, layout: RecordLayout, damage: DamageLog) -> None:
    """Makes the directory and both copies of its label. Raises OSError."""
    directory.mkdir(mode=0o700, exist_ok=True)
    label, in_use = pack_label(identity, layout), any(directory.glob("segment-*"))
    for path in (directory / name for name in LABEL_NAMES):
        try:
            found = path.read_bytes()
            problem = None if found == label else _problem_of(found)
        except FileNotFoundError:
            found, problem = b"", "missing" if in_use else None
        if problem is not None:
            damage.report(str(path), f"{problem}; written again")
        if found != label:
            write_file(path, label)


def _problem_of(text: bytes) -> str | None:
    try:
        unpack_label(text)
    except ValueError as error:
        return f"damaged ({error})"
    return None  # whole, with another description


def write_file(path: Path, content: bytes) -> None:
    """Writes a small file whole or not at all, and durably."""
    partial = path.with_name(f".{path.name}.partial")
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(descriptor)
    os.replace(partial, path)
    sync(path.parent)
