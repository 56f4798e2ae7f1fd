"""Writing a packed checkpoint."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from freehold.core.errors import ArgumentError, LoadError
from freehold.loading.checkpoint import Checkpoint
from freehold.loading.gguf import GgufCheckpoint
from freehold.loading.progress import Progress, unreported
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
    it was. It holds a matrix of 256 MiB in memory at a time, whatever the model's size.
    Raises ArgumentError if something else is at `path`, LoadError if a tensor cannot be read or the disk refuses.
    """
    items = plan_items(checkpoint, bits)
    target: Target
    if isinstance(checkpoint, GgufCheckpoint):
        target = GgufTarget(checkpoint, items, bits, path)
    else:
        target = DirectoryTarget(checkpoint, items, bits, path)
    _check_free(target)
    try:
        journal = Journal(target.journal, {"version": 1, "source": checkpoint.digest(), "bits": bits})
        resumed = len(journal.done)
        files = target.files()
        total, so_far = sum(item.nbytes for item in items), 0
        for file in files:
            for nbytes in _write(checkpoint, file, journal):
                so_far += nbytes
                progress("quantising", so_far, total)
        for file in files:
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


def _check_free(target: Target) -> None:
    if target.journal.exists():
        return
    if target.path.is_dir() and not any(target.path.iterdir()):
        return
    if target.path.exists():
        raise ArgumentError(f"{target.path}: is there already; name another place, or remove it")


def _write(checkpoint: Checkpoint, file: File, journal: Journal) -> Iterator[int]:
    """Writes one file, and yields bytes as they are written. Tensors that the journal has are there already."""
    if file.path.exists():  # it was finished, and then the rest was interrupted
        yield from (item.nbytes for item in file.items)
        return
    names = {done.name for done in journal.done}
    offsets = file.offsets()
    there = sum(1 for item in file.items if item.name in names)
    partial = partial_of(file.path)
    with partial.open("r+b" if partial.exists() and there else "wb") as out:
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
