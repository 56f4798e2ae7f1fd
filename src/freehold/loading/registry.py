"""The models that were pulled, and what is known about each."""

from __future__ import annotations

import contextlib
import difflib
import errno
import fcntl
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from freehold.core.durable import sync
from freehold.core.errors import ArgumentError, CorruptFileError, DownloadError, ModelNotFoundError
from freehold.loading.home import models_dir

DEFAULT_MODEL = "smollm2-135m"
"""The model that needs nothing but a package index: SmolLM2-135M-Instruct, 98 MB, Apache-2.0."""

_RECORD = "source.json"
_PARTIAL = ".partial-"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}")


@dataclass(frozen=True, slots=True)
class PulledModel:
    """A model that `resolve` knows by name.

    source: what it was pulled from: DEFAULT_MODEL, an absolute path, or "org/name[:file.gguf]".
    path: the .gguf file or the checkpoint's directory. size: bytes of the files that hold tensors.
    sha256: of the file, where it was checked; licence, revision: where the source states them.
    date: when it was pulled, ISO 8601 in UTC.
    """

    name: str
    source: str
    path: Path
    size: int
    date: str
    sha256: str | None = None
    licence: str | None = None
    revision: str | None = None


def check_name(name: str) -> str:
    """`name`, if it can name a model: letters, digits, dot, underscore and dash, at most 96 characters,
    the first a letter or digit. Raises ArgumentError otherwise."""
    if not _NAME.fullmatch(name):
        raise ArgumentError(
            f"name is {name!r}; a model's name has up to 96 characters from A-Z a-z 0-9 . _ - and begins with"
            " a letter or digit"
        )
    return name


def now() -> str:
    """The current time as ISO 8601 in UTC, to the second."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def find_model(name: str) -> PulledModel | None:
    """The record of the model `name`; None if none was pulled by that name.

    Raises CorruptFileError if there is a record that cannot be understood.
    """
    record = models_dir() / name / _RECORD
    if not _NAME.fullmatch(name) or not record.exists():
        return None
    try:
        entry = json.loads(record.read_bytes())
        path = record.parent / entry["path"]  # an absolute path replaces the directory
        model = PulledModel(**{**entry, "path": path})
        ok = all(isinstance(text, str) for text in (model.name, model.source, model.date)) and model.size >= 0
    except (ValueError, TypeError, KeyError, OSError) as error:
        raise CorruptFileError(f"{record}: {error}; remove {record.parent} and pull the model again") from error
    if not ok or model.name != name:
        raise CorruptFileError(f"{record}: is not a record of {name!r}; remove {record.parent} and pull again")
    return model


def list_models() -> list[PulledModel]:
    """Every pulled model, by name. Raises CorruptFileError if a record cannot be understood."""
    directory = models_dir()
    names = sorted(entry.name for entry in directory.iterdir()) if directory.is_dir() else []
    return [model for name in names if (model := find_model(name)) is not None]


def is_here(model: PulledModel) -> bool:
    """Whether the model's files are still where its record says; of a single file, with the recorded size."""
    if model.path.is_dir():
        return True
    return model.path.is_file() and model.path.stat().st_size == model.size


def record_model(model: PulledModel) -> None:
    """Write the model's record, whole or not at all. Raises DownloadError if the disk refuses."""
    directory = models_dir() / model.name
    inside = model.path.is_relative_to(directory)
    entry: dict[str, Any] = {field: getattr(model, field) for field in PulledModel.__slots__}
    entry["path"] = str(model.path.relative_to(directory) if inside else model.path)
    with writing(directory):
        directory.mkdir(parents=True, exist_ok=True)
        with partial(".json") as path:
            path.write_text(json.dumps(entry, indent=2) + "\n", encoding="utf-8")
            keep(path, directory / _RECORD)


def check_free(name: str, source: str) -> None:
    """Raises ArgumentError if `name` belongs to a model from another source than `source`."""
    known = find_model(name)
    if known is not None and known.source != source:
        raise ArgumentError(
            f"name {name!r} is taken by the model from {known.source}; choose another one, or remove"
            f" {models_dir() / name} first"
        )


@contextlib.contextmanager
def writing(place: Path) -> Iterator[None]:
    """Turns what the operating system says about writing under `place` into a DownloadError."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DownloadError(
                f"{place}: the disk is full; free some space, or set FREEHOLD_HOME to another disk"
            ) from error
        raise DownloadError(
            f"{place}: cannot be written: {error}; set FREEHOLD_HOME to a directory of yours"
        ) from error


@contextlib.contextmanager
def pulling() -> Iterator[Path]:
    """The models directory, held by one pull at a time; a second one waits.

    What an earlier pull left unfinished, killed before it could clean up, is removed.
    """
    directory = models_dir()
    with writing(directory):
        directory.mkdir(parents=True, exist_ok=True)
        lock = os.open(directory / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for left in directory.glob(f"{_PARTIAL}*"):
            if left.is_dir():
                shutil.rmtree(left, ignore_errors=True)
            else:
                left.unlink(missing_ok=True)
        yield directory
    finally:
        os.close(lock)


@contextlib.contextmanager
def partial(suffix: str = "") -> Iterator[Path]:
    """A path for a new file in the models directory; whatever is there on leaving is removed."""
    descriptor, name = tempfile.mkstemp(prefix=_PARTIAL, suffix=suffix, dir=models_dir())
    os.close(descriptor)
    try:
        yield Path(name)
    finally:
        Path(name).unlink(missing_ok=True)


@contextlib.contextmanager
def partial_directory() -> Iterator[Path]:
    """A new directory in the models directory, removed on leaving with all that is in it."""
    with tempfile.TemporaryDirectory(prefix=_PARTIAL, dir=models_dir(), ignore_cleanup_errors=True) as name:
        yield Path(name)


def keep(path: Path, place: Path) -> None:
    """Give a finished file its place, replacing what is there, so that a crash leaves the old or the new."""
    sync(path)
    os.replace(path, place)
    sync(place.parent)


def resolve(model: str) -> Path:
    """The checkpoint that `model` means, for `open_checkpoint`. Never uses the network.

    model: an existing path, which means itself; or the name of a pulled model; or the source that one was
        pulled from ("org/name"). A path wins over a name.
    Raises ModelNotFoundError, saying what is here and how to get what is not.
    """
    path = os.path.expanduser(model)
    if os.path.exists(path):
        return Path(os.path.abspath(path))
    found = find_model(model) or next((known for known in list_models() if known.source == model), None)
    if found is None:
        raise ModelNotFoundError(not_found(model))
    if not is_here(found):
        raise ModelNotFoundError(
            f"model {found.name!r} was pulled from {found.source}, and {found.path} is no longer there as it"
            f" was; pull it again: freehold pull {found.source} --name {found.name}"
        )
    return found.path


def not_found(model: str) -> str:
    """The message that `model` is neither a path nor a pulled model."""
    names = [known.name for known in list_models()]
    near = difflib.get_close_matches(model, {*names, DEFAULT_MODEL}, n=1)
    lines = [f"no model {model!r}: it is neither a path nor the name of a pulled model."]
    if near:
        lines.append(f"Did you mean {near[0]}?")
    lines.append(f"Here: {', '.join(names)}." if names else "No model is here yet.")
    lines.append(
        f"Get one with `freehold pull {DEFAULT_MODEL}`, `freehold pull org/name` (Hugging Face) or"
        " `freehold pull /path/to/model`."
    )
    return " ".join(lines)
