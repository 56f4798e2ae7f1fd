"""Damage: it costs the damaged block, it is said once, and it never becomes a wrong byte or a failed start."""

from __future__ import annotations

import logging
import os
import random
import resource
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from freehold.cache import recovery, shelves
from freehold.cache.catalog_file import CatalogFile
from freehold.cache.label import LABEL_NAMES
from freehold.cache.segments import Segments
from freehold.cache.shelf import shelf_path
from freehold.cache.store import BlockStore
from freehold.core.errors import DamagedBlockError, LostBlockError
from support.stored_blocks import (
    BLOCK,
    IDENTITY,
    OTHER_IDENTITY,
    PARTS,
    RECORD_BYTES,
    keys_of,
    open_store,
    overwrite,
    put,
    put_chain,
    read_block,
    stored_keys,
)

SHELF = shelf_path(Path(), IDENTITY)
CATALOG = SHELF / "catalog.sqlite"
SEGMENT = SHELF / "segment-000000.blocks"
CHAIN = keys_of(1, 2, 3, 4, 5)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A store with one chain of five blocks, closed."""
    with open_store(tmp_path / "store") as store:
        put_chain(store, 1, 2, 3, 4, 5)
    return tmp_path / "store"


def said(store: BlockStore) -> str:
    """The one thing that was reported."""
    (event,) = store.damage.events
    return f"{event.where}: {event.what}"


@pytest.mark.parametrize("sizes", [(200, 100), (1, 299)])
def test_the_checksum_covers_all_buffers_that_a_part_fills(directory: Path, sizes: tuple[int, int]) -> None:
    """The wrong bytes lie in the first of two buffers, or in the second."""
    with open_store(directory) as store:
        record = store.find(CHAIN[2])
        assert record is not None
        overwrite(directory, record, "0/index")  # bytes 7 to 11
        assert store.read_many([(record, "0/index", [bytearray(size) for size in sizes])]) == {record.key}


@pytest.mark.parametrize("part", [name for name, _ in PARTS])
def test_wrong_bytes_are_an_error_said_once_and_cost_one_block(
    directory: Path, part: str, caplog: pytest.LogCaptureFixture
) -> None:
    with open_store(directory) as store:
        record = store.find(CHAIN[2])
        assert record is not None
        overwrite(directory, record, part)
        buffer = bytearray(dict(PARTS)[part])
        with pytest.raises(DamagedBlockError, match=f"part {part} at byte"):
            store.read(record, part, buffer)
        assert "the checksum is wrong; the block is removed" in said(store)
        assert CHAIN[2].hex()[:16] in said(store)
        assert [entry.levelno for entry in caplog.records] == [logging.WARNING]
        assert caplog.records[0].name == "freehold.cache"
        with pytest.raises(LostBlockError, match="evicted or removed"):
            store.read(record, part, buffer)
        assert store.damage.num_events == 1
        assert list(stored_keys(store)) == CHAIN[:2]
        assert all(read_block(store, key) for key in (*CHAIN[:2], *CHAIN[3:]))  # they are found by their keys still
        put(store, CHAIN[1], [3] * BLOCK)
        store.flush()
        assert list(stored_keys(store)) == CHAIN
    with open_store(directory) as store:
        assert all(read_block(store, key) for key in CHAIN)
        assert store.damage.events == ()


def test_blocks_after_a_lost_one_are_dropped_at_the_next_start(directory: Path) -> None:
    with open_store(directory) as store:
        overwrite(directory, store.find(CHAIN[2]), "0/kv")
        assert not read_block(store, CHAIN[2])
    with open_store(directory) as store:
        assert list(stored_keys(store)) == CHAIN[:2]
        assert store.stats().nbytes == 2 * RECORD_BYTES
        assert store.find(CHAIN[4]) is None


@pytest.mark.parametrize("mark", [BlockStore.touch, BlockStore.pin])
def test_the_chain_before_a_lost_block_keeps_its_marks(
    directory: Path, mark: Callable[[BlockStore, bytes], bool]
) -> None:
    with open_store(directory) as store:
        put_chain(store, 9)
        assert mark(store, CHAIN[4])
        overwrite(directory, store.find(CHAIN[2]), "0/kv")
        assert not read_block(store, CHAIN[2])
    with open_store(directory, blocks=2) as store:
        store.flush()
        assert list(stored_keys(store)) == CHAIN[:2]


@pytest.mark.parametrize("mark", [BlockStore.touch, BlockStore.pin])
def test_the_chain_before_a_lost_data_file_keeps_its_marks(
    tmp_path: Path, mark: Callable[[BlockStore, bytes], bool]
) -> None:
    numbers = range(1, 9)  # three blocks a file
    with open_store(tmp_path) as store:
        put_chain(store, *numbers)
        put_chain(store, 9)
        assert mark(store, keys_of(*numbers)[-1])
    (tmp_path / SHELF / "segment-000001.blocks").unlink()
    for _ in range(2):  # from the second start on, the row says it
        with open_store(tmp_path) as store:
            assert set(stored_keys(store)) == {*keys_of(1, 2, 3), *keys_of(9)}
    with open_store(tmp_path, blocks=3) as store:
        store.flush()
        assert list(stored_keys(store)) == keys_of(1, 2, 3)


def damage_row(directory: Path, column: str, value: object) -> None:
    database = sqlite3.connect(directory / CATALOG)
    with database:
        database.execute(f"UPDATE blocks SET {column} = ? WHERE slot = 2", (value,))
    database.close()


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("header", b"x" * 500),
        ("header", "text"),
        ("used", 5),
        ("pinned", 1),
        ("seal", b""),
        ("slot", 77),
        ("used", "x"),
    ],
)
def test_a_damaged_row_is_said_and_its_block_found_in_the_data(directory: Path, column: str, value: object) -> None:
    damage_row(directory, column, value)
    with open_store(directory) as store:
        assert "is damaged; looking for its block" in said(store)
        assert all(read_block(store, key) for key in CHAIN)
    with open_store(directory) as store:
        assert store.damage.events == ()
        assert all(read_block(store, key) for key in CHAIN)


def test_a_catalog_with_another_table_is_written_again(directory: Path) -> None:
    """Without the key a block could have two rows, and SQLite would not mind."""
    database = sqlite3.connect(directory / CATALOG)
    with database:
        database.execute("ALTER TABLE blocks RENAME TO old")
        database.execute("CREATE TABLE blocks AS SELECT * FROM old")
        database.execute("DROP TABLE old")
    database.close()
    with open_store(directory) as store:
        assert "has no table of blocks" in said(store)
        assert all(read_block(store, key) for key in CHAIN)


def test_a_row_that_points_elsewhere_never_gives_other_bytes(directory: Path) -> None:
    """A whole row of the right block, whose slot now holds another: what an old copy of the catalog would say."""
    shutil.copyfile(directory / CATALOG, directory / "old")
    with open_store(directory, blocks=1) as store:
        store.flush()
    with open_store(directory) as store:
        put_chain(store, 7, 8, 9)
    shutil.copyfile(directory / "old", directory / CATALOG)
    with open_store(directory) as store:
        for key in CHAIN:
            read_block(store, key)
        assert store.find(CHAIN[1]) is None
        assert store.damage.num_events >= 1


def delete(path: Path) -> None:
    path.unlink()


def make_garbage(path: Path) -> None:
    path.write_bytes(random.Random(0).randbytes(30_000))


def empty(path: Path) -> None:
    path.write_bytes(b"")


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2 + 100)


@pytest.mark.parametrize("harm", [delete, make_garbage, empty, cut])
def test_losing_the_catalog_costs_no_block(directory: Path, harm: Callable[[Path], None]) -> None:
    harm(directory / CATALOG)
    with open_store(directory) as store:
        assert all("looking for" in event.what for event in store.damage.events)
        assert all(read_block(store, key) for key in CHAIN)
        assert (directory / CATALOG).with_name("catalog.damaged.sqlite").exists() == (harm in (make_garbage, cut))
        put_chain(store, 6)
    with open_store(directory) as store:
        assert store.damage.events == ()
        assert all(read_block(store, key) for key in (*CHAIN, *keys_of(6)))


@pytest.mark.parametrize("harm", [delete, make_garbage, empty, cut])
def test_losing_the_write_ahead_log_costs_no_block(tmp_path: Path, harm: Callable[[Path], None]) -> None:
    with open_store(tmp_path / "live") as store:
        put_chain(store, 1, 2, 3)
        shutil.copytree(tmp_path / "live", tmp_path / "crashed")
    harm(tmp_path / "crashed" / SHELF / "catalog.sqlite-wal")
    with open_store(tmp_path / "crashed") as store:
        assert all(read_block(store, key) for key in keys_of(1, 2, 3))


@pytest.mark.parametrize("harm", [delete, empty, cut])
def test_a_lost_data_file_costs_its_blocks_and_is_said_once(directory: Path, harm: Callable[[Path], None]) -> None:
    harm(directory / SEGMENT)
    with open_store(directory) as store:
        assert f"{SEGMENT}: missing or cut off; {2 if harm is cut else 3} blocks are lost" in said(store)
        assert [read_block(store, key) for key in CHAIN] == [harm is cut, False, False, False, False]
        put_chain(store, 1, 2, 3, 4, 5)
        assert all(read_block(store, key) for key in CHAIN)
    with open_store(directory) as store:
        assert store.damage.events == ()
        assert all(read_block(store, key) for key in CHAIN)


def test_a_data_file_cut_while_it_is_open_is_an_error_and_no_signal(directory: Path) -> None:
    with open_store(directory) as store:
        os.truncate(directory / SEGMENT, RECORD_BYTES + 100)
        with pytest.raises(DamagedBlockError, match="the file ends before the record does"):
            store.read(store.find(CHAIN[1]), "0/kv", bytearray(5000))


def test_a_header_is_lost_with_the_catalog_only(directory: Path) -> None:
    with (directory / SEGMENT).open("r+b") as file:
        file.seek(RECORD_BYTES + 50)
        file.write(b"wrong")
    with open_store(directory) as store:
        assert all(read_block(store, key) for key in CHAIN)
    delete(directory / CATALOG)
    with open_store(directory) as store:
        assert list(stored_keys(store)) == CHAIN[:1]
        assert any("the header's checksum is wrong; its block is lost" in event.what for event in store.damage.events)


@pytest.mark.parametrize("harm", [delete, make_garbage, empty])
@pytest.mark.parametrize("names", [LABEL_NAMES[:1], LABEL_NAMES[1:], LABEL_NAMES])
def test_a_damaged_label_is_written_again(directory: Path, harm: Callable[[Path], None], names: tuple) -> None:
    for name in names:
        harm(directory / SHELF / name)
    with open_store(directory) as store:
        assert [event.what.rpartition("; ")[2] for event in store.damage.events] == ["written again"] * len(names)
        assert all(read_block(store, key) for key in CHAIN)
    with open_store(directory) as store:
        assert store.damage.events == ()


def test_an_identity_whose_label_is_lost_goes_first_when_room_is_needed(directory: Path) -> None:
    for name in LABEL_NAMES:
        delete(directory / SHELF / name)
    with open_store(directory, identity=OTHER_IDENTITY, blocks=2) as store:
        put_chain(store, 1)
        assert "has no readable label" in said(store)
        assert list(stored_keys(store)) == keys_of(1)
    assert not (directory / SHELF).exists()


def test_headers_of_another_identity_are_not_taken(tmp_path: Path) -> None:
    with open_store(tmp_path, identity=OTHER_IDENTITY) as store:
        put_chain(store, 1, 2)
    theirs, ours = shelf_path(tmp_path, OTHER_IDENTITY), tmp_path / SHELF
    ours.mkdir()
    shutil.copyfile(theirs / "segment-000000.blocks", ours / "segment-000000.blocks")
    shutil.copyfile(theirs / "catalog.sqlite", ours / "catalog.sqlite")
    with open_store(tmp_path) as store:
        assert store.stats().num_blocks == 0
        assert store.damage.num_events > 0


def test_a_catalog_that_breaks_while_it_is_open_is_written_again(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_store(directory) as store:
        file = store._shelf.file
        real, broken = type(file).write, [True]

        def write(self, put, delete):
            if self is file and broken.pop():
                broken.append(False)
                raise sqlite3.DatabaseError("database disk image is malformed")
            if not broken:
                broken.append(False)
            real(self, put, delete)

        monkeypatch.setattr(type(file), "write", write)
        put_chain(store, 6)
        assert "malformed; set aside, and written again from memory" in said(store)
        assert read_block(store, keys_of(6)[0])
    with open_store(directory) as store:
        assert store.damage.events == ()
        assert all(read_block(store, key) for key in (*CHAIN, *keys_of(6)))


def test_files_of_a_process_without_descriptors_left_are_no_damage(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_more(*_: object) -> int:
        raise OSError(24, "Too many open files")

    with open_store(directory) as store:
        with monkeypatch.context() as patch:
            patch.setattr(os, "preadv", no_more)
            with pytest.raises(Exception, match=r"cannot be read now: .*Too many open files"):
                store.read(store.find(CHAIN[0]), "0/kv", bytearray(5000))
        assert store.damage.events == ()
        assert read_block(store, CHAIN[0])


@pytest.mark.parametrize(
    "places",
    [
        [(shelves, "read_label")],
        [(CatalogFile, "load")],
        [(Segments, "count")],
        [(CatalogFile, "load"), (recovery, "_search_headers")],
    ],
    ids=["label", "catalog", "names", "data"],
)
def test_a_moment_without_descriptors_costs_another_identity_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, places: list[tuple[Any, str]]
) -> None:
    with open_store(tmp_path, identity=OTHER_IDENTITY) as store:
        pinned = put_chain(store, 1, 2, 3)
        store.pin(pinned[-1])
    with open_store(tmp_path) as store:
        put_chain(store, 9)
    with open_store(tmp_path, blocks=6) as store:
        with monkeypatch.context() as patch:
            for owner, name in places:
                patch.setattr(owner, name, without_descriptors(getattr(owner, name)))
            for number in (10, 11, 12):  # too much: the other identity's blocks are looked at
                put_chain(store, number)
        assert "Too many open files" in said(store)
        put_chain(store, 13)
        assert read_block(store, keys_of(13)[0])
    with open_store(tmp_path, identity=OTHER_IDENTITY, blocks=3) as store:
        store.flush()
        assert list(stored_keys(store)) == pinned


def without_descriptors(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, called in a process that cannot open a file meanwhile."""

    def called(*arguments: Any, **options: Any) -> Any:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
        try:
            return function(*arguments, **options)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

    return called


# Random damage.


def tree_of_blocks(directory: Path) -> list[bytes]:
    """A few chains, some with a common beginning; returns their keys."""
    with open_store(directory) as store:
        chains = [(1, 2, 3, 4), (1, 2, 5), (6, 7), (1, 8, 9), (10,)]
        keys = {key for chain in chains for key in put_chain(store, *chain)}
        store.touch(keys_of(6, 7)[1])
        store.pin(keys_of(10)[0])
        store.flush()
        shutil.copytree(directory, directory.with_name("crashed"))
    return sorted(keys)


def flip(path: Path, chance: random.Random) -> None:
    content = bytearray(path.read_bytes())
    for _ in range(chance.choice([1, 1, 1, 2, 20])):
        content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    path.write_bytes(content)


def zero_some(path: Path, chance: random.Random) -> None:
    content = bytearray(path.read_bytes())
    first = chance.randrange(len(content))
    end = min(len(content), first + chance.choice([1, 512, 4096, 50_000]))
    content[first:end] = bytes(end - first)
    path.write_bytes(content)


def shorten(path: Path, chance: random.Random) -> None:
    os.truncate(path, chance.randrange(path.stat().st_size))


def swap_pages(path: Path, chance: random.Random) -> None:
    content = path.read_bytes()
    pages = [content[at : at + 4096] for at in range(0, len(content), 4096)]
    chance.shuffle(pages)
    path.write_bytes(b"".join(pages))


def remove(path: Path, chance: random.Random) -> None:
    path.unlink()


def write_garbage(path: Path, chance: random.Random) -> None:
    path.write_bytes(chance.randbytes(chance.choice([0, 1, 4096, 100_000])))


HARMS = (flip, flip, flip, zero_some, zero_some, shorten, swap_pages, remove, write_garbage)


def harm_at_random(tmp_path: Path, times: int) -> None:
    keys = tree_of_blocks(tmp_path / "closed")
    chance = random.Random(times)
    reported = 0
    for number in range(times):
        directory = tmp_path / "harmed"
        shutil.copytree(tmp_path / chance.choice(["closed", "crashed"]), directory)
        files = sorted(path for path in directory.rglob("*") if path.is_file() and path.stat().st_size)
        path, harm = chance.choice(files), chance.choice(HARMS)
        harm(path, chance)
        try:
            reported += check_harmed(directory, keys)
        except BaseException:
            print(f"after {harm.__name__} of {path} (number {number})")
            raise
        shutil.rmtree(directory)
    assert reported > times // 3


def check_harmed(directory: Path, keys: list[bytes]) -> bool:
    """Opens the store, reads everything, stores it again, opens it again; returns whether damage was reported."""
    with open_store(directory) as store:
        store.check_integrity()
        here = {key for key in keys if read_block(store, key)}
        if here < set(keys):
            assert store.damage.num_events > 0
        before = store.damage.num_events
        assert here == {key for key in keys if read_block(store, key)}
        assert store.damage.num_events == before  # nothing is said twice
        for chain in [(1, 2, 3, 4), (1, 2, 5), (6, 7), (1, 8, 9), (10,)]:
            put_chain(store, *chain)
        assert all(read_block(store, key) for key in keys)
        assert store.damage.num_events == before
        store.check_integrity()
        reported = bool(before)
    with open_store(directory) as store:
        assert set(stored_keys(store)) == set(keys)
        assert all(read_block(store, key) for key in keys)
        assert store.damage.events == ()
    return reported


def test_random_damage_is_survived_and_said(tmp_path: Path) -> None:
    harm_at_random(tmp_path, 60)


@pytest.mark.slow
def test_a_thousand_random_damages_are_survived_and_said(tmp_path: Path) -> None:
    harm_at_random(tmp_path, 1500)
