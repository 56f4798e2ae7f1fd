"""Writing a packed checkpoint."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from freehold.core.errors import ArgumentError, LoadError
from freehold.loading.checkpoint import Checkpoint
from freehold.loading.gguf import GgufCheckpoint
from freehold.loading.progress import Progress, unreported
from freehold.model.registry import check_loads
from freehold.quantize.journal import Done, Journal
from freehold.quantize.recipe import Bits, Item, plan_items
from freehold.quantize.target import DirectoryTarget, File, GgufTarget, Target
from freehold.quantize.values import Error, pieces

SYNC_BYTES = 256 * 2**20
"""So much may have to be computed again after a power cut."""


@dataclass(frozen=True, slots=True)
class Written:
    """A finished checkpoint. done: its tensors. resumed: how many of them were there already."""

    path: Path
    nbytes: int
    done: tuple[Done, ...]
    resumed: int


def quantize(checkpoint: Checkpoint, path: Path, bits: Bits, *, progress: Progress = unreported) -> Written:
    """Writes the checkpoint with its matrices as codes of `bits` bits.

    path: a directory for a model in safetensors, a .gguf file for one in GGUF. One that was interrupted goes on where
    it was. What it holds in memory, besides pages of the source that are mapped, stays below 256 MiB, whatever the
    model's size, unless a single row takes more.
    Raises ArgumentError if something else is at `path`, its name means another format, or another quantisation was
    begun there; ConfigError or TensorMismatchError if the checkpoint would not load; LoadError if a tensor cannot be
    read, the disk refuses, or another process is writing to `path`.
    """
    check_loads(checkpoint)
    items = plan_items(checkpoint, bits)
    try:
        target = _target(checkpoint, items, bits, path)
        task = {"version": 1, "source": _identity(checkpoint), "bits": bits}
        with closing(Journal(target.journal, task)) as journal:
            files, times = target.files(), _times(checkpoint)
            _check_own(files, journal)
            resumed = _resume(files, journal)
            total, so_far = sum(item.nbytes for item in items), 0
            for file, there in zip(files, _split(files, resumed), strict=True):
                for nbytes in _write(checkpoint, file, there, journal):
                    so_far += nbytes
                    progress("quantising", so_far, total)
            _check_unchanged(checkpoint, times, target)
            for file in files:
                if partial_of(file.path).exists():  # else it has its name since an earlier time
                    partial_of(file.path).replace(file.path)
            target.finish()
            target.journal.unlink()
    except OSError as error:
        raise LoadError(f"{path}: cannot be written: {error.strerror or error}; what is there is kept, and the same"
                        " command goes on from it") from error  # fmt: skip
    return Written(path, sum(file.offsets()[-1] for file in files), tuple(journal.done), resumed)


def partial_of(path: Path) -> Path:
    """The name of a file that is not whole yet."""
    return path.with_name(f"{path.name}.partial")


def _identity(checkpoint: Checkpoint) -> str:
    """What the source is known by when its quantisation is resumed. The checkpoint's digest takes samples, so times of
    change stand beside it: a result must not be half of the files before a change and half of those after it."""
    known = hashlib.sha256(checkpoint.digest().encode())
    for file in checkpoint.files:
        known.update(f" {file.stat().st_mtime_ns}".encode())
    return known.hexdigest()


def _times(checkpoint: Checkpoint) -> list[tuple[int, int]]:
    """Of each file of the source, which one it is and when it was changed."""
    return [(stat.st_ino, stat.st_mtime_ns) for stat in (file.stat() for file in checkpoint.files)]


def _check_unchanged(checkpoint: Checkpoint, times: Sequence[tuple[int, int]], target: Target) -> None:
    """Raises LoadError if a file was written to while it was read. One that has its name since, or none, is no matter:
    what was read is the one that was opened."""
    for file, (number, changed) in zip(checkpoint.files, times, strict=True):
        with suppress(FileNotFoundError):
            now = file.stat()
            if now.st_ino == number and now.st_mtime_ns != changed:
                raise LoadError(
                    f"{file}: was changed while it was quantised, so that what was written is of neither model; remove"
                    f" {target.journal} and what lies beside it, and begin anew"
                )


def _target(checkpoint: Checkpoint, items: Sequence[Item], bits: Bits, path: Path) -> Target:
    """Where it goes. Raises ArgumentError if something else is there, OSError for a path that cannot be."""
    target: Target
    if isinstance(checkpoint, GgufCheckpoint):
        target = GgufTarget(checkpoint, items, bits, path)
    else:
        target = DirectoryTarget(checkpoint, items, bits, path)
    _check_free(target)
    return target


def _check_free(target: Target) -> None:
    if target.journal.exists():
        return
    if target.path.is_dir() and not any(target.path.iterdir()):
        return
    # Of "." and "/", which are always there, nothing else has a name. A link that leads nowhere is somebody's, too.
    if os.path.lexists(target.path) or os.path.lexists(partial_of(target.path)):
        path = target.path if os.path.lexists(target.path) else partial_of(target.path)
        raise ArgumentError(f"{path}: is there already; name another place, or remove it")


def _check_own(files: Sequence[File], journal: Journal) -> None:
    """Raises ArgumentError for a file that would be written over, and is none that this quantisation has left."""
    for file, noted in zip(files, _split(files, len(journal.done)), strict=True):
        # Files get their final names when all tensors are noted.
        if file.path.exists() and noted < len(file.items):
            raise _foreign(file.path)
        partial = partial_of(file.path)
        if partial.exists() and not _may_be_ours(partial, file.header):
            raise _foreign(partial)


def _may_be_ours(partial: Path, header: bytes) -> bool:
    """Whether it begins as it was written. A power cut may leave less of it, or zeros."""
    if not partial.is_file():
        return False
    with partial.open("rb") as file:
        begin = file.read(len(header))
    return header.startswith(begin) or not any(begin)


def _foreign(path: Path) -> ArgumentError:
    return ArgumentError(
        f"{path}: would be written over, and is not what this quantisation left; move it, or name another place"
    )


def _resume(files: Sequence[File], journal: Journal) -> int:
    """Tensors that are there. The journal forgets those that it has and the files do not, and all after them."""
    found = 0
    for file, noted in zip(files, _split(files, len(journal.done)), strict=True):
        there = _there(file, noted)
        found += there
        if there < len(file.items):
            break
    journal.cut(found)
    return found


def _split(files: Sequence[File], count: int) -> list[int]:
    """How many of the first `count` tensors are in each file."""
    found = []
    for file in files:
        found.append(min(count, len(file.items)))
        count -= found[-1]
    return found


def _there(file: File, noted: int) -> int:
    """How many of the first `noted` tensors it has. Under its final name it is whole, or counts for nothing."""
    ends = file.offsets()[1 : noted + 1]
    if _begins(partial_of(file.path), file.header):
        nbytes = partial_of(file.path).stat().st_size
        return sum(1 for end in ends if end <= nbytes)
    whole = noted == len(file.items) and _begins(file.path, file.header)
    return noted if whole and file.path.stat().st_size == ends[-1] else 0


def _begins(path: Path, header: bytes) -> bool:
    with suppress(FileNotFoundError), path.open("rb") as file:
        return file.read(len(header)) == header
    return False


def _write(checkpoint: Checkpoint, file: File, there: int, journal: Journal) -> Iterator[int]:
    """Writes one file, and yields bytes as they are written. there: tensors of it that were written already."""
    if there == len(file.items):
        yield sum(item.nbytes for item in file.items)
        return
    offsets = file.offsets()
    with partial_of(file.path).open("r+b" if there else "wb") as out:
        if there:
            yield sum(item.nbytes for item in file.items[:there])
        else:
            out.write(file.header)
        out.truncate(offsets[there])
        out.seek(offsets[there])
        waiting: list[Done] = []
        since = 0
        for item, end in zip(file.items[there:], offsets[there + 1 :], strict=True):
            waiting.append((yield from _write_item(checkpoint, item, out)))
            out.write(bytes(end - out.tell()))
            since += item.nbytes
            if since >= SYNC_BYTES or item is file.items[-1]:
                _settle(out, waiting, journal)
                since = 0


def _write_item(checkpoint: Checkpoint, item: Item, out: IO[bytes]) -> Generator[int, None, Done]:
    error = Error()
    for piece in pieces(checkpoint, item, error):
        out.write(piece.numpy().data)
        yield len(piece)
    checkpoint.release(item.name)
    return Done(item.name, item.kind, error.squared, error.energy)


def _settle(out: IO[bytes], waiting: list[Done], journal: Journal) -> None:
    out.flush()
    os.fsync(out.fileno())
    journal.add(waiting)
    waiting.clear()
