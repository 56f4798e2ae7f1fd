"""Processes killed while they write, and power that fails: what was called stored is there, whole."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from freehold.cache.catalog_file import CatalogFile
from freehold.cache.prefix import ROOT
from freehold.cache.store import BlockStore
from support.stored_blocks import BLOCK, RECORD_BYTES, keys_of, open_store, put, put_chain, read_block, stored_keys

PAGE = 4096


class Writers:
    """Starts writers and kills them."""

    def __init__(self, server: subprocess.Popen[str]) -> None:
        assert server.stdin is not None
        assert server.stdout is not None
        self._orders, self._said = server.stdin, server.stdout

    def run_and_kill(self, directory: Path, blocks: int, seed: int, seconds: float, *, wrote: bool) -> list[bytes]:
        """The keys that a writer called stored before it was killed. wrote: it is left alone until it stored one."""
        print(directory, blocks, seed, file=self._orders, flush=True)
        pid = int(self._said.readline().removeprefix("pid "))
        keys = [bytes.fromhex(self._said.readline())] if wrote else []
        time.sleep(seconds)
        os.kill(pid, signal.SIGKILL)
        while (line := self._said.readline()) != "ended\n":
            keys.append(bytes.fromhex(line))
        return keys


@contextmanager
def writers() -> Iterator[Writers]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(
        [sys.executable, "-m", "support.store_child"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment,
    ) as server:  # fmt: skip
        yield Writers(server)
        assert server.stdin is not None
        server.stdin.close()


def check_after_crash(store: BlockStore, promised: set[bytes]) -> None:
    store.check_integrity()
    stored = set(stored_keys(store))
    assert promised <= stored
    assert all(read_block(store, key) for key in stored)
    assert store.damage.events == ()


def kill_writers(tmp_path: Path, kills: int) -> None:
    """Alternates stores with and without a limit; each is killed several times before a new one begins."""
    chance = random.Random(kills)
    promised: dict[Path, set[bytes]] = {}
    with writers() as started:
        for number in range(kills):
            blocks = (0, 12)[number % 2]
            directory = tmp_path / f"{number // 20}-{blocks}"
            keys = started.run_and_kill(directory, blocks, number, chance.uniform(0.0, 0.15), wrote=number % 4 < 2)
            promised.setdefault(directory, set()).update(keys)
            if number % 20 > 3 and chance.random() < 0.3:
                continue  # now and then nobody looks between two crashes
            with open_store(directory, blocks=blocks or None) as store:
                store.flush()
                check_after_crash(store, set() if blocks else promised[directory])
                assert not blocks or store.stats().nbytes <= blocks * RECORD_BYTES
    assert sum(map(len, promised.values())) > kills // 2  # they did write


def test_killed_writers_leave_whole_blocks(tmp_path: Path) -> None:
    kill_writers(tmp_path, 6)


@pytest.mark.slow
def test_two_hundred_killed_writers_leave_whole_blocks(tmp_path: Path) -> None:
    kill_writers(tmp_path, 200)


def test_space_that_a_crash_left_without_a_row_is_given_back(tmp_path: Path) -> None:
    """A deletion was durable, and its slot, half written again, was not freed any more."""
    with open_store(tmp_path) as store:
        put_chain(store, 1)
        put_chain(store, 2)
        put_chain(store, 3)
    (path,) = tmp_path.rglob("segment-*")
    with path.open("r+b") as file:
        file.seek(RECORD_BYTES)
        file.write(b"wrong")
    database = sqlite3.connect(path.with_name("catalog.sqlite"))
    with database:
        database.execute("DELETE FROM blocks WHERE slot = 1")
    database.close()
    with open_store(tmp_path) as store:
        assert set(stored_keys(store)) == {*keys_of(1), *keys_of(3)}
        assert path.stat().st_blocks * 512 < 3 * RECORD_BYTES


def test_a_commit_is_on_the_disk_when_it_returns(tmp_path: Path) -> None:
    """What SQLite calls FULL; a power failure cannot be tried here."""
    with open_store(tmp_path) as store:
        database = store._shelf.file._database
        assert database is not None
        assert database.execute("PRAGMA synchronous").fetchone() == (2,)
        assert database.execute("PRAGMA journal_mode").fetchone() == ("wal",)


@dataclass
class Disk:
    """What of a store's directory is durable, and images of what a power failure could have left at some moments."""

    directory: Path
    chance: random.Random
    durable: dict[Path, bytes] = field(default_factory=dict)
    images: list[tuple[set[bytes], dict[Path, bytes]]] = field(default_factory=list)
    store: BlockStore | None = None

    def keep(self, path: Path) -> None:
        self.durable[path] = path.read_bytes()

    def maybe_fail(self) -> None:
        """Takes an image: of a data file any mixture of durable and later pages, of other files what is durable."""
        if self.store is None or self.chance.random() > 0.15:
            return
        with self.store._shelf.lock:
            promised = {entry.record.key for entry in self.store._shelf.catalog}
        image = dict(self.durable)
        for path in self.directory.rglob("segment-*"):
            old, new = self.durable.get(path, b""), path.read_bytes()
            old = old.ljust(len(new), b"\0")
            pages = [(old, new)[self.chance.random() < 0.5][at : at + PAGE] for at in range(0, len(new), PAGE)]
            image[path] = b"".join(pages)
        self.images.append((promised, image))


@contextmanager
def watched(directory: Path, chance: random.Random, patch: pytest.MonkeyPatch) -> Iterator[Disk]:
    """A disk that sees every write to a store, sync and commit."""
    disk = Disk(directory, chance)
    pwritev, fdatasync, write, recreate = os.pwritev, os.fdatasync, CatalogFile.write, CatalogFile.recreate

    def watched_pwritev(descriptor, buffers, offset):
        disk.maybe_fail()
        done = pwritev(descriptor, buffers, offset)
        disk.maybe_fail()
        return done

    def watched_fdatasync(descriptor):
        fdatasync(descriptor)
        disk.keep(Path(os.readlink(f"/proc/self/fd/{descriptor}")))
        disk.maybe_fail()

    def watched_write(file, put, delete):
        disk.maybe_fail()
        write(file, put, delete)
        for path in file.path.parent.glob("catalog.sqlite*"):
            disk.keep(path)
        disk.maybe_fail()

    def watched_recreate(file, entries):
        recreate(file, entries)
        for path in file.path.parent.iterdir():
            disk.keep(path)

    with patch.context() as patched:
        patched.setattr(os, "pwritev", watched_pwritev)
        patched.setattr(os, "fdatasync", watched_fdatasync)
        patched.setattr(CatalogFile, "write", watched_write)
        patched.setattr(CatalogFile, "recreate", watched_recreate)
        yield disk


def lose_power(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int, puts: int) -> int:
    """Random puts under a limit, so that slots are used again and again; returns how many images were checked."""
    chance = random.Random(seed)
    directory = tmp_path / f"disk-{seed}"
    with watched(directory, chance, monkeypatch) as disk, open_store(directory, blocks=7) as store:
        disk.store = store
        for number in range(puts):
            parent = chance.choice([ROOT, ROOT, *stored_keys(store)])
            put(store, parent, [number] * BLOCK)
            if chance.random() < 0.5:
                store.flush()
        store.flush()
        disk.store = None
    for number, (promised, image) in enumerate(disk.images):
        restored = tmp_path / f"image-{seed}-{number}"
        for path, content in image.items():
            place = restored / path.relative_to(directory)
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(content)
        with open_store(restored) as store:
            check_after_crash(store, promised)
    return len(disk.images)


def test_power_that_fails_leaves_whole_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert lose_power(tmp_path, monkeypatch, seed=1, puts=40) > 20


@pytest.mark.slow
def test_power_that_fails_a_thousand_times_leaves_whole_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checked = 0
    for seed in range(2, 1000):
        checked += lose_power(tmp_path, monkeypatch, seed, puts=60)
        if checked > 1000:
            return
    raise AssertionError(f"only {checked} images")
