"""Archives: a chain carried to another store, whole or not at all."""

from __future__ import annotations

import json
import random
import struct
from pathlib import Path

import pytest

from freehold.cache.archive import chains_of, export_blocks, import_blocks, open_archive
from freehold.cache.damage import DamageLog
from freehold.cache.label import pack_label
from freehold.cache.record import checksum
from freehold.cache.survey import open_shelves
from freehold.core.errors import StoreError, StoreLockedError
from support.stored_blocks import (
    IDENTITY,
    LAYOUT,
    OTHER_IDENTITY,
    RECORD_BYTES,
    keys_of,
    open_store,
    overwrite,
    put_chain,
    read_block,
    stored_keys,
)

CHAIN = keys_of(1, 2, 3)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A store with two chains that have a beginning in common, and one by itself."""
    with open_store(tmp_path / "source") as store:
        put_chain(store, 1, 2, 3)
        put_chain(store, 1, 2, 4)
        put_chain(store, 7)
    return tmp_path / "source"


def export(directory: Path, target: Path, *leaves: bytes) -> int:
    with open_shelves(directory, DamageLog()) as (shelf,):
        keys = leaves or [leaf.record.key for leaf in shelf.catalog.leaves()]
        return export_blocks(shelf, chains_of(shelf, keys), target)


def test_one_chain_comes_over_whole(source: Path, tmp_path: Path) -> None:
    nbytes = export(source, tmp_path / "file", CHAIN[2])
    assert nbytes == (tmp_path / "file").stat().st_size
    assert import_blocks(open_archive(tmp_path / "file"), tmp_path / "target", add_identity=True) == (3, 3)
    with open_store(tmp_path / "target") as store:
        assert list(stored_keys(store)) == CHAIN
        assert all(read_block(store, key) for key in CHAIN)


def test_all_chains_come_over_and_what_is_there_stays(source: Path, tmp_path: Path) -> None:
    export(source, tmp_path / "file")
    with open_store(tmp_path / "target") as store:
        put_chain(store, 1, 9)
    assert import_blocks(open_archive(tmp_path / "file"), tmp_path / "target") == (5, 4)
    assert import_blocks(open_archive(tmp_path / "file"), tmp_path / "target") == (5, 0)
    everything = {*CHAIN, *keys_of(1, 2, 4), *keys_of(7), *keys_of(1, 9)}
    with open_store(tmp_path / "target") as store:
        assert set(stored_keys(store)) == everything
        assert all(read_block(store, key) for key in everything)


def test_another_identity_is_refused_unless_it_is_asked_for(source: Path, tmp_path: Path) -> None:
    export(source, tmp_path / "file")
    open_store(tmp_path / "target", identity=OTHER_IDENTITY).close()
    archive = open_archive(tmp_path / "file")
    with pytest.raises(StoreError, match=f"of identity {IDENTITY.short}, and .* has none of that identity"):
        import_blocks(archive, tmp_path / "target")
    assert [path.name for path in (tmp_path / "target").iterdir()] == [f"v1-{OTHER_IDENTITY.short}"]
    import_blocks(archive, tmp_path / "target", add_identity=True)
    with open_store(tmp_path / "target", identity=OTHER_IDENTITY) as store:
        assert list(stored_keys(store)) == []


def test_a_store_in_use_is_exported_but_not_imported_into(source: Path, tmp_path: Path) -> None:
    with open_store(source) as store:
        put_chain(store, 8)
        export(source, tmp_path / "file")
        with pytest.raises(StoreLockedError):
            import_blocks(open_archive(tmp_path / "file"), source)
    assert open_archive(tmp_path / "file").num_records == 6


def test_a_damaged_block_is_not_exported(source: Path, tmp_path: Path) -> None:
    with open_store(source) as store:
        overwrite(source, store.find(CHAIN[1]), "1/kv")
    (tmp_path / "file").write_text("here before")
    with pytest.raises(StoreError, match=r"checksum of 1/kv is wrong\. Nothing was exported"):
        export(source, tmp_path / "file")
    assert (tmp_path / "file").read_text() == "here before"
    assert not list(tmp_path.glob("*.partial")) + list(tmp_path.glob(".*.partial"))


def test_a_full_target_stores_what_fits_and_says_so(source: Path, tmp_path: Path, monkeypatch) -> None:
    def full(*_: int) -> None:
        raise OSError(28, "No space left on device")

    export(source, tmp_path / "file")
    monkeypatch.setattr("os.posix_fallocate", full)
    with pytest.raises(StoreError, match=r"5 of 5 blocks were not stored: .*No space left"):
        import_blocks(open_archive(tmp_path / "file"), tmp_path / "target", add_identity=True)


def test_no_changed_byte_is_accepted(source: Path, tmp_path: Path) -> None:
    export(source, tmp_path / "file", CHAIN[2])
    whole = (tmp_path / "file").read_bytes()
    chance = random.Random(0)
    places = [*range(40), *range(len(whole) - 20, len(whole)), *(chance.randrange(len(whole)) for _ in range(200))]
    for place in places:
        changed = bytearray(whole)
        changed[place] ^= 1 << chance.randrange(8)
        (tmp_path / "changed").write_bytes(changed)
        with pytest.raises(StoreError, match="Nothing was imported"):
            open_archive(tmp_path / "changed")


@pytest.mark.parametrize("length", [0, 7, 24, 100, 5000, RECORD_BYTES, -16, -1])
def test_no_cut_or_longer_file_is_accepted(source: Path, tmp_path: Path, length: int) -> None:
    export(source, tmp_path / "file", CHAIN[2])
    whole = (tmp_path / "file").read_bytes()
    (tmp_path / "file").write_bytes(whole[:length])
    with pytest.raises(StoreError, match="cannot be used"):
        open_archive(tmp_path / "file")
    (tmp_path / "file").write_bytes(whole + b"x")
    with pytest.raises(StoreError, match="its size"):
        open_archive(tmp_path / "file")


def test_a_file_that_promises_too_much_takes_no_memory(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(struct.pack("<8sQQ", b"FHARCH01", 2**60, 2**60) + bytes(1000))
    with pytest.raises(StoreError, match="it is no archive"):
        open_archive(tmp_path / "file")


@pytest.mark.parametrize("change", [{"block_tokens": 10**15}, {"parts": [["a", 10**18]]}, {"block_tokens": 10**400}])
def test_a_label_of_blocks_that_no_memory_holds_is_refused(tmp_path: Path, change: dict) -> None:
    fields = {**json.loads(pack_label(IDENTITY, LAYOUT)), **change}
    del fields["checksum"]
    seal = checksum(json.dumps(fields, sort_keys=True, separators=(",", ":")).encode()).hex()
    label = json.dumps({**fields, "checksum": seal}).encode()
    content = struct.pack("<8sQQ", b"FHARCH01", len(label), 0) + label
    (tmp_path / "file").write_bytes(content + checksum(content))
    with pytest.raises(StoreError, match=r"4294967296 are the most\. Nothing was imported"):
        open_archive(tmp_path / "file")


def test_a_block_without_the_one_before_it_is_refused(source: Path, tmp_path: Path) -> None:
    with open_shelves(source, DamageLog()) as (shelf,):
        export_blocks(shelf, chains_of(shelf, [CHAIN[2]])[1:], tmp_path / "file")
    with pytest.raises(StoreError, match="without the block before it"):
        open_archive(tmp_path / "file")
