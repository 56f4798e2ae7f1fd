"""Looking at a store's directory from outside, also while a process uses it: what is there, and whether it is whole."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from freehold.cache.damage import DamageLog
from freehold.cache.label import label_problems, read_label
from freehold.cache.recovery import open_shelf
from freehold.cache.shelf import Shelf, shelf_paths
from freehold.core.errors import StoreError


@dataclass(frozen=True, slots=True)
class Session:
    """A chain of blocks, named by its last one. key: hexadecimal. last_use: seconds since 1970. pinned_tokens: so many
    at its beginning are pinned."""

    key: str
    tokens: int
    last_use: float
    pinned_tokens: int


@dataclass(frozen=True, slots=True)
class ShelfSurvey:
    """One identity's blocks. identity: its short name. nbytes: of the records. sessions: latest use first."""

    identity: str
    digest: str
    description: dict[str, str]
    blocks: int
    nbytes: int
    sessions: list[Session]


@contextmanager
def open_shelves(directory: Path, damage: DamageLog) -> Iterator[list[Shelf]]:
    """The shelves of a directory, to be read only. One whose label is damaged is reported and left out."""
    shelves = []
    try:
        for path in shelf_paths(directory):
            try:
                identity, layout = read_label(path)
                shelves.append(open_shelf(path, identity, layout, damage, writable=False))
            except (StoreError, OSError) as error:
                damage.report(str(path), str(error))
        yield shelves
    finally:
        for shelf in shelves:
            shelf.close()


def survey(shelf: Shelf) -> ShelfSurvey:
    """Counts a shelf."""
    depths, pinned = shelf.catalog.depths(), shelf.catalog.pinned_depths()
    sessions = [
        Session(
            key=leaf.record.key.hex(),
            tokens=depths[leaf.record.key] * shelf.layout.block_tokens,
            last_use=leaf.used / 1e9,
            pinned_tokens=pinned[leaf.record.key] * shelf.layout.block_tokens,
        )
        for leaf in shelf.catalog.leaves()
    ]
    sessions.sort(key=lambda session: -session.last_use)
    return ShelfSurvey(
        identity=shelf.identity.short,
        digest=shelf.identity.digest.hex(),
        description=dict(shelf.identity.description),
        blocks=len(shelf.catalog),
        nbytes=shelf.nbytes,
        sessions=sessions,
    )


def verify(shelf: Shelf) -> None:
    """Reads every record and both labels of a shelf again and checks all that has a checksum; damage is reported,
    nothing is changed. What a running process evicts meanwhile is no damage."""
    for path, found in label_problems(shelf.path).items():
        shelf.damage.report(str(path), found)
    for found in shelf.file.problems():
        shelf.damage.report(str(shelf.file.path), found)
    buffer = memoryview(bytearray(shelf.layout.record_bytes))
    for entry in sorted(shelf.catalog, key=lambda entry: entry.record.slot):
        problem = shelf.check(entry.record, buffer)
        if problem is not None and shelf.file.still_has(entry.record):
            shelf.damage.report(shelf.where(entry.record), problem)
