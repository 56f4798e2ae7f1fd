"""Disks that are full, that may not be written or read, and that fail: the store goes on with what it can."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from freehold.cache import segments
from freehold.cache.prefix import ROOT
from freehold.cache.shelf import shelf_path
from freehold.cache.store import BlockStore
from freehold.core.errors import DamagedBlockError, StoreLockedError
from support.stored_blocks import (
    BLOCK,
    IDENTITY,
    RECORD_BYTES,
    keys_of,
    open_store,
    put,
    put_chain,
    read_block,
    stored_keys,
)

SHELF = shelf_path(Path(), IDENTITY)
NOBODY = 65534


@contextmanager
def mounted(directory: Path, nbytes: int) -> Iterator[Callable[..., None]]:
    """A small disk of its own at `directory`; yields what mounts it again with other options. Skips without the right
    to mount."""
    directory.mkdir()

    def mount(options: str) -> bool:
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(directory)]
        return subprocess.run(command, capture_output=True).returncode == 0

    if not mount(f"size={nbytes}"):
        pytest.skip("mounting a disk needs root")
    try:
        yield lambda options: subprocess.run(["mount", "-o", f"remount,{options}", str(directory)], check=True)
    finally:
        subprocess.run(["umount", str(directory)], check=True)


@contextmanager
def unprivileged() -> Iterator[Path]:
    """A directory of ours, and the rights of a common user for as long as the context lasts."""
    folder = Path(tempfile.mkdtemp())
    root = os.geteuid() == 0
    if root:
        os.chown(folder, NOBODY, NOBODY)
        os.seteuid(NOBODY)
    try:
        yield folder / "store"
    finally:
        if root:
            os.seteuid(0)
        for path in (folder, *folder.rglob("*")):
            os.chmod(path, 0o700)
        for path in folder.rglob("*"):  # what could not be listed before
            os.chmod(path, 0o700)
        shutil.rmtree(folder)


def two_blocks(directory: Path) -> list[bytes]:
    with open_store(directory) as store:
        return put_chain(store, 1, 2)


def fill_up(path: Path) -> None:
    with path.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))


def gives_everything_up(store: BlockStore) -> bool:
    put(store, ROOT, [99] * BLOCK)
    store.flush()
    return [done.stored for done in store.completed()] == [False]


def test_a_full_disk_keeps_the_newest(tmp_path: Path) -> None:
    with mounted(tmp_path / "disk", 20 * RECORD_BYTES):
        with open_store(tmp_path / "disk" / "store") as store:
            for number in range(100):
                put_chain(store, number)
            stored = set(stored_keys(store))
            assert 5 < len(stored) < 20
            assert keys_of(99)[0] in stored
            assert all(read_block(store, key) for key in stored)
            store.check_integrity()
        with open_store(tmp_path / "disk" / "store") as store:
            assert stored - set(stored_keys(store)) == set()
            assert all(read_block(store, key) for key in stored)
            assert store.damage.events == ()


def test_a_disk_that_others_fill_is_said_once_and_used_again_when_there_is_room(tmp_path: Path) -> None:
    with mounted(tmp_path / "disk", 40 * RECORD_BYTES), open_store(tmp_path / "disk" / "store") as store:
        chain = put_chain(store, 1, 2, 3)
        store.hold(chain[2])
        filler = tmp_path / "disk" / "filler"
        fill_up(filler)
        for number in range(10, 20):
            put_chain(store, number)
        assert list(stored_keys(store)) == chain
        assert [event.what for event in store.damage.events if "cannot be stored now" in event.what]
        assert store.damage.num_events <= 2  # the data file and the catalog say it differently
        filler.unlink()
        put_chain(store, 20)
        assert set(stored_keys(store)) == {*chain, *keys_of(20)}
        assert all(read_block(store, key) for key in stored_keys(store))


@pytest.mark.parametrize("spare_pages", [0, 1, 4, 16])
def test_a_disk_that_is_full_at_the_start_costs_no_mark_and_is_used_again_when_there_is_room(
    tmp_path: Path, spare_pages: int
) -> None:
    with mounted(tmp_path / "disk", 40 * RECORD_BYTES):
        with open_store(tmp_path / "disk" / "store") as store:
            chain = put_chain(store, 1, 2, 3)
            store.pin(chain[2])
        filler = tmp_path / "disk" / "filler"
        fill_up(filler)
        os.truncate(filler, filler.stat().st_size - spare_pages * 4096)
        with open_store(tmp_path / "disk" / "store") as store:
            store.flush()
            assert all("cannot be stored now" in event.what for event in store.damage.events)
            assert all(read_block(store, key) for key in chain)
            with pytest.raises(StoreLockedError):
                open_store(tmp_path / "disk" / "store")
            filler.unlink()
            put_chain(store, 4)
            assert set(stored_keys(store)) == {*chain, *keys_of(4)}
        with open_store(tmp_path / "disk" / "store", blocks=3) as store:
            store.flush()
            assert store.damage.events == ()
            assert list(stored_keys(store)) == chain  # pinned, so that the younger block went


def test_a_limit_on_file_sizes_is_like_a_full_disk(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with open_store(tmp_path) as store:
        resource.setrlimit(resource.RLIMIT_FSIZE, (RECORD_BYTES + 9000, hard))
        try:
            for number in range(30):
                put_chain(store, number)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert all(read_block(store, key) for key in stored_keys(store))
        put_chain(store, 50, 51, 52, 53)
        assert all(read_block(store, key) for key in keys_of(50, 51, 52, 53))
        store.check_integrity()
        stored = set(stored_keys(store))
    with open_store(tmp_path) as store:
        assert stored == set(stored_keys(store))
        assert all(read_block(store, key) for key in stored)


def test_a_read_only_disk_is_read(tmp_path: Path) -> None:
    with mounted(tmp_path / "disk", 40 * RECORD_BYTES) as remount:
        keys = two_blocks(tmp_path / "disk" / "store")
        remount("ro")
        with open_store(tmp_path / "disk" / "store", blocks=1) as store:
            (event,) = store.damage.events
            assert "cannot be written" in event.what
            assert all(read_block(store, key) for key in keys)
            assert gives_everything_up(store)
            assert store.touch(keys[0])
            store.flush()
        with open_store(tmp_path / "disk" / "new") as store:
            assert gives_everything_up(store)
        remount("rw")
        with open_store(tmp_path / "disk" / "store") as store:
            assert store.damage.events == ()
            assert list(stored_keys(store)) == keys


def test_a_read_only_disk_after_a_crash_is_read(tmp_path: Path) -> None:
    with mounted(tmp_path / "disk", 40 * RECORD_BYTES) as remount:
        with open_store(tmp_path / "live") as store:
            keys = put_chain(store, 1, 2)
            shutil.copytree(tmp_path / "live", tmp_path / "disk" / "store")
        remount("ro")
        with open_store(tmp_path / "disk" / "store") as store:
            assert all(read_block(store, key) for key in keys)
            assert len(store.damage.events) == 1


def test_a_directory_without_the_right_to_write_is_read() -> None:
    with unprivileged() as directory:
        keys = two_blocks(directory)
        for path in (*directory.rglob("*"), directory):
            path.chmod(0o500 if path.is_dir() else 0o400)
        with open_store(directory) as store:
            (event,) = store.damage.events
            assert "Permission denied" in event.what
            assert all(read_block(store, key) for key in keys)
            assert gives_everything_up(store)


def test_only_the_identity_without_the_right_to_write_is_read() -> None:
    with unprivileged() as directory:
        keys = two_blocks(directory)
        (directory / SHELF).chmod(0o500)
        with open_store(directory) as store:
            assert all("cannot be written" in event.what for event in store.damage.events)
            assert all(read_block(store, key) for key in keys)
            assert gives_everything_up(store)


def test_a_directory_without_the_right_to_read_is_empty() -> None:
    with unprivileged() as directory:
        (key, _) = two_blocks(directory)
        (directory / SHELF).chmod(0)
        with open_store(directory) as store:
            assert store.find(key) is None
            assert "Permission denied" in store.damage.events[0].what
            assert gives_everything_up(store)
        directory.chmod(0)
        with open_store(directory) as store:
            assert gives_everything_up(store)
            assert "Permission denied" in store.damage.events[0].what


def test_a_data_file_without_the_right_to_read_is_damage() -> None:
    with unprivileged() as directory:
        with open_store(directory) as store:
            keys = put_chain(store, 1, 2, 3, 4)
        (directory / SHELF / "segment-000001.blocks").chmod(0)
        with open_store(directory) as store:
            with pytest.raises(DamagedBlockError, match="Permission denied"):
                store.read(store.find(keys[3]), "0/kv", bytearray(5000))
            assert all(read_block(store, key) for key in keys[:3])
            assert store.damage.num_events == 1


def test_a_catalog_without_the_right_to_read_costs_no_block() -> None:
    with unprivileged() as directory:
        keys = two_blocks(directory)
        (directory / SHELF / "catalog.sqlite").chmod(0)
        with open_store(directory) as store:
            assert "looking for blocks in the data files" in store.damage.events[0].what
            assert all(read_block(store, key) for key in keys)
            put_chain(store, 3)
        with open_store(directory) as store:
            assert store.damage.events == ()
            assert set(stored_keys(store)) == {*keys, *keys_of(3)}


@pytest.mark.parametrize("name", ["file", "file/below"])
def test_a_path_that_cannot_be_a_directory_gives_an_empty_store(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("in the way")
    with open_store(tmp_path / name) as store:
        assert gives_everything_up(store)
        assert "cannot be written" in store.damage.events[0].what


def failing(monkeypatch: pytest.MonkeyPatch, name: str, code: int, times: int) -> None:
    """Lets a function of `os` fail so many times, then work."""
    real, left = getattr(os, name), [times]

    def fail(*arguments):
        if left[0] > 0:
            left[0] -= 1
            raise OSError(code, os.strerror(code))
        return real(*arguments)

    monkeypatch.setattr(os, name, fail)


@pytest.mark.parametrize("name", ["posix_fallocate", "pwritev", "fdatasync"])
def test_a_disk_that_fails_to_write_costs_what_was_on_its_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    with open_store(tmp_path) as store:
        keys = put_chain(store, 1, 2)
        store.completed()
        with monkeypatch.context() as patch:
            failing(patch, name, errno.EIO, 3)
            for _ in range(3):
                put(store, keys[1], [3] * BLOCK)
                store.flush()
        assert [done.stored for done in store.completed()] == [False] * 3
        assert [event.what for event in store.damage.events] == [
            "blocks cannot be stored now: [Errno 5] Input/output error"
        ]
        put(store, keys[1], [3] * BLOCK)
        store.flush()
        third = store.find(keys_of(1, 2, 3)[2])
        assert third is not None
        assert third.slot == 2  # the slot of those that failed is free again
        assert store.stats().nbytes == 3 * RECORD_BYTES
        assert list(stored_keys(store)) == keys_of(1, 2, 3)
        store.check_integrity()
    with open_store(tmp_path) as store:
        assert all(read_block(store, key) for key in keys_of(1, 2, 3))
        assert store.damage.events == ()


def test_a_disk_that_fails_to_read_costs_the_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = two_blocks(tmp_path)
    with open_store(tmp_path) as store:
        with monkeypatch.context() as patch:
            failing(patch, "preadv", errno.EIO, 1)
            with pytest.raises(DamagedBlockError, match="Input/output error"):
                store.read(store.find(keys[1]), "0/kv", bytearray(5000))
        assert list(stored_keys(store)) == keys[:1]
        assert read_block(store, keys[0])


def test_a_writer_that_fails_in_an_unknown_way_gives_the_buffers_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_store(tmp_path) as store:
        with monkeypatch.context() as patch:
            patch.setattr(os, "pwritev", lambda *_: 1 // 0)
            assert gives_everything_up(store)
        assert "ZeroDivisionError" in store.damage.events[0].what
        put_chain(store, 1)
        assert read_block(store, keys_of(1)[0])


def test_a_file_system_without_holes_brings_no_evicted_block_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unsupported(*_: int) -> None:
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr(segments, "punch_hole", unsupported)
    with open_store(tmp_path, blocks=2) as store:
        for number in range(10):
            put_chain(store, number)
        assert set(stored_keys(store)) == {*keys_of(8), *keys_of(9)}
    (tmp_path / SHELF / "catalog.sqlite").unlink()
    with open_store(tmp_path) as store:
        assert set(stored_keys(store)) == {*keys_of(8), *keys_of(9)}
        assert all(read_block(store, key) for key in stored_keys(store))
