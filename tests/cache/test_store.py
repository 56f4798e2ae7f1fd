"""The block store: what goes in comes out, behind the caller's back, within its limits."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from freehold.cache.layout import RecordLayout
from freehold.cache.prefix import ROOT, block_hash
from freehold.cache.record import Record, pack_header, pack_tokens, unpack_header
from freehold.cache.shelf import shelf_path
from freehold.cache.store import BlockStore, Completion
from freehold.core.errors import ArgumentError, LostBlockError, StoreError, StoreLockedError
from support.stored_blocks import (
    BLOCK,
    IDENTITY,
    LAYOUT,
    OTHER_IDENTITY,
    PARTS,
    RECORD_BYTES,
    content,
    keys_of,
    open_store,
    put,
    put_chain,
    read_block,
    stored_keys,
)


def slow_disk(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """No data becomes durable before the event is set."""
    allowed = threading.Event()
    real = os.fdatasync

    def fdatasync(descriptor: int) -> None:
        assert allowed.wait(30)
        real(descriptor)

    monkeypatch.setattr(os, "fdatasync", fdatasync)
    return allowed


def test_a_block_is_found_and_read_after_a_restart(tmp_path: Path) -> None:
    with open_store(tmp_path) as store:
        keys = put_chain(store, 1, 2, 3, 4, 5, 6, 7)
        assert all(read_block(store, key) for key in keys)
    with open_store(tmp_path) as store:
        assert all(read_block(store, key) for key in keys)
        assert list(stored_keys(store)) == keys
        record = store.find(keys[1])
        assert record is not None
        assert (record.parent, record.tokens) == (keys[0], (2, 2, 2, 2))
        assert store.damage.events == ()


@pytest.mark.parametrize("name", [b"a ?b#c%41\n", "\u00fc\u65e5\U0001f600".encode(), b"not \xff UTF-8"])
def test_a_directory_may_have_any_name(tmp_path: Path, name: bytes) -> None:
    directory = tmp_path / os.fsdecode(name)
    with open_store(directory) as store:
        (key,) = put_chain(store, 1)
    with open_store(directory) as store:
        assert read_block(store, key)
        assert store.damage.events == ()


def test_parts_may_come_and_go_in_several_buffers(tmp_path: Path) -> None:
    k, v = np.arange(600, dtype=np.float32), np.arange(650, dtype=np.float32)
    index, rest = np.arange(300, dtype=np.uint8), np.zeros((64, 64), np.uint8)
    with open_store(tmp_path) as store:
        assert store.put(ROOT, [1] * BLOCK, {"0/kv": [k, v], "0/index": index, "1/kv": rest})
        store.flush()
        record = store.children()[0]
        k_read, v_read = np.empty_like(k), np.empty_like(v)
        store.read(record, "0/kv", [k_read, v_read])
        assert np.array_equal(k, k_read)
        assert np.array_equal(v, v_read)
        whole = bytearray(5000)
        store.read(record, "0/kv", whole)
        assert whole == k.tobytes() + v.tobytes()


def test_children_are_the_blocks_that_follow(tmp_path: Path) -> None:
    with open_store(tmp_path) as store:
        put_chain(store, 1, 2)
        put_chain(store, 1, 3)
        put_chain(store, 4)
        parent = keys_of(1)[0]
        assert {record.tokens[0] for record in store.children(parent)} == {2, 3}
        assert {record.tokens[0] for record in store.children()} == {1, 4}
        assert store.children(b"\0" * 32) == []


def test_put_returns_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    allowed = slow_disk(monkeypatch)
    with open_store(tmp_path) as store:
        key = put(store, ROOT, [1] * BLOCK)
        assert store.find(key) is None
        assert store.completed() == []
        assert store.stats().inflight_bytes == RECORD_BYTES
        allowed.set()
        store.flush()
        assert store.completed() == [Completion(key, stored=True)]
        assert store.completed() == []
        assert read_block(store, key)


def test_put_says_when_too_much_is_on_its_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    allowed = slow_disk(monkeypatch)
    parts = {name: bytes(nbytes) for name, nbytes in PARTS}
    with open_store(tmp_path, inflight_bytes=3 * RECORD_BYTES) as store:
        assert [store.put(ROOT, [n] * BLOCK, parts) for n in range(5)] == [True, True, True, False, False]
        allowed.set()
        store.flush()
        assert len(store.completed()) == 3
        assert store.put(ROOT, [3] * BLOCK, parts)
    with open_store(tmp_path, inflight_bytes=1) as store:
        assert store.put(ROOT, [4] * BLOCK, parts)  # one is always taken


def test_close_writes_what_was_handed_over(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    key = put(store, ROOT, [1] * BLOCK)
    store.close()
    store.close()
    with pytest.raises(StoreError, match="is closed"):
        put(store, ROOT, [2] * BLOCK)
    with open_store(tmp_path) as store:
        assert read_block(store, key)


def test_a_block_without_its_parent_is_given_up(tmp_path: Path) -> None:
    with open_store(tmp_path) as store:
        key = put(store, b"\1" * 32, [1] * BLOCK)
        child = put(store, key, [2] * BLOCK)
        store.flush()
        assert store.completed() == [Completion(key, stored=False), Completion(child, stored=False)]
        assert store.find(key) is None
        assert store.stats().given_up == 2


def test_a_block_stored_twice_takes_one_slot(tmp_path: Path) -> None:
    with open_store(tmp_path) as store:
        key = put(store, ROOT, [1] * BLOCK)
        put(store, ROOT, [1] * BLOCK)
        store.flush()
        put(store, ROOT, [1] * BLOCK)
        store.flush()
        assert store.completed() == [Completion(key, stored=True)] * 3
        assert store.stats().nbytes == RECORD_BYTES


@pytest.mark.parametrize(
    ("parent", "tokens", "change", "message"),
    [
        (ROOT, [1] * 3, {}, "has 3 tokens; a block has 4"),
        (b"short", [1] * 4, {}, "parent is b'short'"),
        (ROOT, [1] * 4, {"2/kv": b""}, "parts ['2/kv'] are missing or unknown"),
        (ROOT, [1] * 4, {"0/kv": b"x"}, "part '0/kv' got 1 bytes; the layout says 5000"),
        (ROOT, [1] * 4, {"0/kv": np.zeros((2, 5000), np.uint8)[:, ::2][0]}, "C-contiguous"),
    ],
)
def test_wrong_blocks_are_refused(tmp_path: Path, parent: bytes, tokens: list, change: dict, message: str) -> None:
    parts = {name: bytes(nbytes) for name, nbytes in PARTS}
    with open_store(tmp_path) as store:
        with pytest.raises(ArgumentError) as error:
            store.put(parent, tokens, {**parts, **change})
        assert message in str(error.value)
        store.flush()
        assert store.completed() == []


def test_wrong_reads_are_refused(tmp_path: Path) -> None:
    with open_store(tmp_path) as store:
        (key,) = put_chain(store, 1)
        record = store.find(key)
        for part, into, message in [
            ("9/kv", bytearray(5000), "part '9/kv' is unknown; a record has 0/kv, 0/index, 1/kv"),
            ("0/kv", bytearray(4999), "got 4999 bytes"),
            ("0/kv", bytes(5000), "is read-only"),
        ]:
            with pytest.raises(ArgumentError, match=message):
                store.read(record, part, into)
        assert read_block(store, key)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"parts": ()}, "a record needs parts"),
        ({"parts": (("a", 1), ("a", 2))}, "each with a name of its own"),
        ({"parts": (("a", 0),)}, "a is 0"),
        ({"block_tokens": 0}, "block_tokens is 0"),
    ],
)
def test_wrong_layouts_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        RecordLayout(**{"block_tokens": 4, "parts": PARTS, **options})


def test_read_many_reads_everything_and_names_what_is_lost(tmp_path: Path) -> None:
    parts = (("0/kv", 200_000), ("1/kv", 100_000))  # enough to be worth the threads
    layout = RecordLayout(BLOCK, parts, segment_bytes=10**6)
    with BlockStore(tmp_path, IDENTITY, layout, limit_bytes=None) as store:
        keys = keys_of(*range(20))
        for number, parent in enumerate([ROOT, *keys[:-1]]):
            key = keys[number]
            assert store.put(parent, [number] * BLOCK, {name: content(key, name, nbytes) for name, nbytes in parts})
        store.flush()
        records = [store.find(key) for key in keys]
        damaged = records[7]
        assert damaged is not None
        segment, offset = divmod(damaged.slot, layout.slots_per_segment)
        path = shelf_path(tmp_path, IDENTITY) / f"segment-{segment:06d}.blocks"
        with path.open("r+b") as file:
            file.seek(offset * layout.record_bytes + layout.place("1/kv").offset + 5)
            file.write(b"wrong")
        reads = [(record, name, bytearray(nbytes)) for record in reversed(records) for name, nbytes in parts]
        assert store.read_many(reads) == {keys[7]}
        assert store.damage.num_events == 1
        for record, name, buffer in reads:
            assert (buffer == content(record.key, name, len(buffer))) == ((record, name) != (damaged, "1/kv"))
        assert store.find(keys[7]) is None
        assert store.read_many(reads) == {keys[7]}  # evicted, as far as this record is concerned
        assert store.damage.num_events == 1


def test_reads_run_beside_the_writer(tmp_path: Path) -> None:
    with open_store(tmp_path) as store:
        keys = put_chain(store, *range(10))
        wrong: list[bytes] = []

        def read_all() -> None:
            for _ in range(30):
                wrong.extend(key for key in keys if not read_block(store, key))

        readers = [threading.Thread(target=read_all) for _ in range(3)]
        for reader in readers:
            reader.start()
        put_chain(store, *range(100, 140))
        for reader in readers:
            reader.join()
        assert wrong == []
        store.check_integrity()


def test_a_read_that_an_eviction_overtakes_is_no_damage(tmp_path: Path) -> None:
    with open_store(tmp_path, blocks=2) as store:
        (key,) = put_chain(store, 1)
        record = store.find(key)
        put_chain(store, 2)
        put_chain(store, 3)
        put_chain(store, 4)
        assert store.find(key) is None
        with pytest.raises(LostBlockError, match="evicted"):
            store.read(record, "0/kv", bytearray(5000))
        assert store.damage.events == ()


def test_the_least_recently_used_leaf_goes_first(tmp_path: Path) -> None:
    with open_store(tmp_path, blocks=4) as store:
        put_chain(store, 1, 2)
        put_chain(store, 3)
        put_chain(store, 4)
        assert store.touch(keys_of(1, 2)[1])
        put_chain(store, 5)
        assert set(stored_keys(store)) == {*keys_of(1, 2), *keys_of(4), *keys_of(5)}
        put_chain(store, 6)
        put_chain(store, 7)  # the leaf of the chain goes, the block before it stays
        assert set(stored_keys(store)) == {*keys_of(1), *keys_of(5), *keys_of(6), *keys_of(7)}
        assert store.stats().evicted == 3
        store.check_integrity()


def test_a_chain_is_as_recent_as_its_end_even_after_the_end_is_gone(tmp_path: Path) -> None:
    with open_store(tmp_path, blocks=4) as store:
        put_chain(store, 1, 2, 3)
        put_chain(store, 9)
        store.touch(keys_of(1, 2, 3)[2])
        store.flush()
    with open_store(tmp_path, blocks=2) as store:  # 9 is older than all of the chain, though 1 was made before it
        store.flush()
        assert list(stored_keys(store)) == keys_of(1, 2)


def test_use_outlives_a_restart(tmp_path: Path) -> None:
    with open_store(tmp_path) as store:
        for number in (1, 2, 3):
            put_chain(store, number)
        store.touch(keys_of(1)[0])
    with open_store(tmp_path, blocks=3) as store:
        put_chain(store, 4)
        assert set(stored_keys(store)) == {*keys_of(1), *keys_of(3), *keys_of(4)}


def test_use_does_not_go_back_when_the_clock_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_store(tmp_path, blocks=2) as store:
        put_chain(store, 1)
    monkeypatch.setattr(time, "time_ns", lambda: 5)
    with open_store(tmp_path, blocks=2) as store:
        put_chain(store, 2)
        put_chain(store, 3)
        assert set(stored_keys(store)) == {*keys_of(2), *keys_of(3)}


def test_pinned_chains_go_last_also_after_a_restart(tmp_path: Path) -> None:
    with open_store(tmp_path, blocks=3) as store:
        put_chain(store, 1, 2)
        assert store.pin(keys_of(1, 2)[1])
        assert not store.pin(b"\0" * 32)
    with open_store(tmp_path, blocks=3) as store:
        put_chain(store, 3)
        put_chain(store, 4)
        assert set(stored_keys(store)) == {*keys_of(1, 2), *keys_of(4)}
        assert store.unpin(keys_of(1, 2)[1])
        put_chain(store, 5)
        assert set(stored_keys(store)) == {*keys_of(1), *keys_of(4), *keys_of(5)}


def test_a_pin_passes_to_the_block_before_when_its_own_must_go(tmp_path: Path) -> None:
    with open_store(tmp_path) as store:
        put_chain(store, 1, 2)
        store.pin(keys_of(1, 2)[1])
    with open_store(tmp_path, blocks=1) as store:
        store.flush()
        assert list(stored_keys(store)) == keys_of(1)
    with open_store(tmp_path, blocks=2) as store:
        put_chain(store, 3)
        put_chain(store, 4)
        assert set(stored_keys(store)) == {*keys_of(1), *keys_of(4)}


def test_held_blocks_stay_whatever_comes(tmp_path: Path) -> None:
    with open_store(tmp_path, blocks=2) as store:
        keys = put_chain(store, 1, 2)
        assert store.hold(keys[1])
        assert not store.hold(b"\0" * 32)
        put_chain(store, 3)
        assert list(stored_keys(store)) == keys
        assert store.stats().given_up == 1
        assert "held" in store.damage.events[0].what
        store.release(keys[1])
        put_chain(store, 4)
        assert set(stored_keys(store)) == {keys[0], *keys_of(4)}
        store.check_integrity()


def test_the_parent_of_a_block_on_its_way_is_not_evicted(tmp_path: Path) -> None:
    with open_store(tmp_path, blocks=2) as store:
        put_chain(store, 1)
        put_chain(store, 2)
        put(store, keys_of(1)[0], [3] * BLOCK)  # 1 is the oldest leaf; 2 has to go
        store.flush()
        assert list(stored_keys(store)) == keys_of(1, 3)


def test_a_lower_limit_is_kept_from_the_start(tmp_path: Path) -> None:
    with open_store(tmp_path) as store:
        put_chain(store, *range(8))
    with open_store(tmp_path, blocks=3) as store:
        store.flush()
        assert list(stored_keys(store)) == keys_of(0, 1, 2)


def test_evicted_blocks_give_their_space_back(tmp_path: Path) -> None:
    def on_disk() -> int:
        return sum(path.stat().st_blocks * 512 for path in tmp_path.rglob("segment-*"))

    with open_store(tmp_path) as store:
        put_chain(store, *range(8))
    assert 8 * RECORD_BYTES <= on_disk() < 9 * RECORD_BYTES
    with open_store(tmp_path, blocks=2) as store:
        store.flush()
        assert 2 * RECORD_BYTES <= on_disk() < 3 * RECORD_BYTES
        put_chain(store, 50)
        assert on_disk() < 3 * RECORD_BYTES
    with open_store(tmp_path, blocks=2):
        assert len(list(tmp_path.rglob("segment-*"))) == 1


def test_a_limit_below_one_block_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match=f"limit_bytes is 5; one block takes {RECORD_BYTES}"):
        BlockStore(tmp_path, IDENTITY, LAYOUT, limit_bytes=5)


def test_identities_do_not_see_each_other(tmp_path: Path) -> None:
    with open_store(tmp_path) as store:
        (key,) = put_chain(store, 1)
    with open_store(tmp_path, identity=OTHER_IDENTITY) as store:
        assert store.find(key) is None
        assert store.children() == []
        put_chain(store, 1)
    with open_store(tmp_path) as store:
        assert list(stored_keys(store)) == [key]
        assert read_block(store, key)


def test_identities_share_the_limit_oldest_first(tmp_path: Path) -> None:
    with open_store(tmp_path) as store:
        put_chain(store, 1)
        put_chain(store, 2)
    with open_store(tmp_path, identity=OTHER_IDENTITY) as store:
        put_chain(store, 3)
    with open_store(tmp_path) as store:
        store.touch(keys_of(1)[0])
    # What others take is counted as the disk counts it until room is needed, catalog and all.
    with open_store(tmp_path, identity=OTHER_IDENTITY, blocks=3) as store:
        put_chain(store, 4)  # 2 of the first identity is the oldest, then 3 of its own
        put_chain(store, 5)
        assert set(stored_keys(store)) == {*keys_of(4), *keys_of(5)}
    with open_store(tmp_path) as store:
        assert list(stored_keys(store)) == keys_of(1)
    with open_store(tmp_path, identity=OTHER_IDENTITY, blocks=2) as store:
        store.flush()
    assert not shelf_path(tmp_path, IDENTITY).exists()  # nothing left of it


def test_a_pin_holds_against_younger_blocks_of_another_identity(tmp_path: Path) -> None:
    with open_store(tmp_path) as store:
        (pinned,) = put_chain(store, 1)
        assert store.pin(pinned)
        store.flush()
    with open_store(tmp_path, identity=OTHER_IDENTITY) as store:
        put_chain(store, 2)
    with open_store(tmp_path, identity=OTHER_IDENTITY, blocks=2) as store:
        put_chain(store, 3)
        assert list(stored_keys(store)) == keys_of(3)
    with open_store(tmp_path) as store:
        assert list(stored_keys(store)) == [pinned]


def test_another_layout_under_the_same_digest_is_refused(tmp_path: Path) -> None:
    open_store(tmp_path).close()
    with pytest.raises(ArgumentError, match="another digest or layout"):
        BlockStore(tmp_path, IDENTITY, RecordLayout(BLOCK, (("0/kv", 1),)), limit_bytes=None)
    open_store(tmp_path).close()  # the directory was let go


def test_a_second_process_is_refused_until_the_first_ends(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from support.stored_blocks import open_store\n"
        "store = open_store(Path(sys.argv[1])); print('open', flush=True); sys.stdin.read()"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment,
    ) as holder:  # fmt: skip
        assert holder.stdout is not None
        assert holder.stdout.readline() == "open\n"
        with pytest.raises(StoreLockedError, match=rf"process {holder.pid}; stop that process, or use another"):
            open_store(tmp_path)
        holder.kill()
    open_store(tmp_path).close()


def test_a_second_opening_in_the_same_process_is_refused_too(tmp_path: Path) -> None:
    with open_store(tmp_path), pytest.raises(StoreLockedError, match=str(os.getpid())):
        open_store(tmp_path)


def test_removing_the_files_of_the_lock_lets_nobody_in(tmp_path: Path) -> None:
    with open_store(tmp_path):
        for path in tmp_path.iterdir():
            if path.is_file():
                path.unlink()
        with pytest.raises(StoreLockedError, match="unknown"):
            open_store(tmp_path)


def test_blocks_are_private_files(tmp_path: Path) -> None:
    with open_store(tmp_path / "store") as store:
        put_chain(store, 1)
        for path in (tmp_path / "store").rglob("*"):
            private = 0o700 if path.is_dir() else 0o600
            assert path.name == "pid" or path.stat().st_mode & 0o777 == private, path


def test_a_wrong_count_is_found(tmp_path: Path) -> None:
    with open_store(tmp_path) as store:
        (key,) = put_chain(store, 1)
        store.check_integrity()
        del store._shelf.catalog._entries[key]
        with pytest.raises(AssertionError, match="miscounted"):
            store.check_integrity()


def test_a_header_whose_key_is_not_that_of_its_tokens_is_refused() -> None:
    record = Record(keys_of(1)[0], ROOT, pack_tokens((2,) * BLOCK), 0, bytes(16 * len(PARTS)), 5)
    header = pack_header(record, bytes(32))
    with pytest.raises(ValueError, match="the key is not that of the tokens"):
        unpack_header(header, 0, LAYOUT, bytes(32))


def test_keys_are_those_of_the_prefix_tree(tmp_path: Path) -> None:
    with open_store(tmp_path) as store:
        key = put(store, ROOT, [7, 8, 9, 2**40])
        store.flush()
        assert store.completed() == [Completion(block_hash(ROOT, [7, 8, 9, 2**40]), stored=True)]
        assert store.find(key) is not None
