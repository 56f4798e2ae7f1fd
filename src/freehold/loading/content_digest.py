"""The digest of every byte of a checkpoint, remembered as long as its files stay as they are."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from pathlib import Path

from freehold.loading.checkpoint import Checkpoint
from freehold.loading.home import freehold_home

_CHUNK = 16 << 20


def content_digest(checkpoint: Checkpoint) -> str:
    """SHA-256, in hexadecimal, over `Checkpoint.digest` and the whole content of each file, in their order."""
    whole = hashlib.sha256(checkpoint.digest().encode())
    for digest in file_digests(checkpoint):
        whole.update(digest.encode())
    return whole.hexdigest()


def file_digests(checkpoint: Checkpoint) -> list[str]:
    """SHA-256, in hexadecimal, of each file that holds tensors, in their order.

    Reading a large checkpoint takes as long as the disk needs. So a file's digest is remembered in
    FREEHOLD_HOME/digests.json under its path, size, inode and time of change (which a program cannot set back); it is
    read again when one of them differs. Where the note cannot be kept, it is read each time.
    """
    note = freehold_home() / "digests.json"
    known = _read(note)
    digests = []
    fresh = False
    for path in checkpoint.files:
        name, state = str(path.resolve()), _state(path)
        if known.get(name, ["", ""])[0] != state:
            digest = _digest_of(path)
            if _state(path) != state:  # it changed while it was read
                return file_digests(checkpoint)
            known[name] = [state, digest]
            fresh = True
        digests.append(known[name][1])
    if fresh:
        _write(note, known)
    return digests


def _state(path: Path) -> str:
    stat = path.stat()
    return f"{stat.st_dev}:{stat.st_ino}:{stat.st_size}:{stat.st_mtime_ns}:{stat.st_ctime_ns}"


def _digest_of(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _read(note: Path) -> dict[str, list[str]]:
    try:
        known = json.loads(note.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    if not isinstance(known, dict):
        return {}
    return {
        name: entry
        for name, entry in known.items()
        if isinstance(entry, list) and len(entry) == 2 and all(isinstance(part, str) for part in entry)
    }


def _write(note: Path, known: dict[str, list[str]]) -> None:
    temporary = note.with_name(f"{note.name}.{os.getpid()}")
    try:
        note.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps(known, indent=1), "utf-8")
        temporary.replace(note)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink()
