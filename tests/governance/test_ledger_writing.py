"""What was acknowledged is on the disk: through kills, torn ends, full disks, and several processes at once."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from freehold.core.errors import GovernanceError
from freehold.governance.ledger import appender, ledger
from freehold.governance.ledger.export import ExportOptions, Exports
from freehold.governance.ledger.files import LedgerFiles
from freehold.governance.ledger.ledger import Ledger
from freehold.governance.ledger.record import LedgerRecord, read_line
from freehold.governance.ledger.verify import verify
from freehold.governance.signing import SigningKey
from support.ledgers import a_record, fill, hashes_of, new_ledger


@pytest.fixture(scope="module")
def key() -> SigningKey:
    return SigningKey.generate()


def ids(path: Path) -> list[str]:
    return [record.id for leaf in LedgerFiles(path).leaves() if (record := leaf.record()) is not None]


def test_records_come_back_as_they_were(tmp_path: Path, key: SigningKey) -> None:
    new_ledger(tmp_path / "ledger", key, 3)
    lines = [leaf.line for leaf in LedgerFiles(tmp_path / "ledger").leaves()]
    assert [read_line(line or b"") for line in lines] == [(n, a_record(n, hashes_of(n))) for n in range(3)]
    assert LedgerFiles(tmp_path / "ledger").salt(2) == hashes_of(2).salt


def test_nothing_of_a_prompt_stands_in_the_ledger(tmp_path: Path, key: SigningKey) -> None:
    new_ledger(tmp_path / "ledger", key, 3)
    everything = b"".join(path.read_bytes() for path in (tmp_path / "ledger").rglob("*") if path.is_file())
    assert b"question" not in everything
    assert b"answer 1" not in everything


def test_a_reopened_ledger_goes_on(tmp_path: Path, key: SigningKey) -> None:
    for first in (0, 3, 6):
        with Ledger(tmp_path / "ledger", key) as opened:
            fill(opened, 3, first)
            assert opened.size == first + 3
    assert ids(tmp_path / "ledger") == [f"request-{n}" for n in range(9)]
    assert verify(tmp_path / "ledger").holds


def test_files_are_their_owners_alone(tmp_path: Path, key: SigningKey) -> None:
    path = new_ledger(tmp_path / "ledger", key, 1)
    assert path.stat().st_mode & 0o077 == 0
    assert all(file.stat().st_mode & 0o077 == 0 for file in path.rglob("*"))


def test_requests_at_once_share_a_wait_for_the_disk(
    tmp_path: Path, key: SigningKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits = []
    real = os.fdatasync

    def slow(descriptor: int) -> None:
        waits.append(descriptor)
        time.sleep(0.02)
        real(descriptor)

    with Ledger(tmp_path / "ledger", key) as opened:
        monkeypatch.setattr(os, "fdatasync", slow)

        async def all_at_once() -> list[int]:
            return await asyncio.gather(*(opened.record(a_record(n)) for n in range(100)))

        numbers = asyncio.run(all_at_once())
    assert sorted(numbers) == list(range(100))
    # Three files, and a handful of groups: what came while the disk was busy went together.
    assert len(waits) <= 15


def test_an_acknowledged_record_is_in_the_file(tmp_path: Path, key: SigningKey) -> None:
    with Ledger(tmp_path / "ledger", key) as opened:
        for number in range(20):
            assert opened.append(a_record(number)).result(timeout=10) == number
            assert ids(tmp_path / "ledger")[-1] == f"request-{number}"


@pytest.mark.parametrize("rounds", [3, pytest.param(40, marks=pytest.mark.slow)])
def test_kill_9_loses_no_acknowledged_record(tmp_path: Path, rounds: int) -> None:
    path, key_path = tmp_path / "ledger", tmp_path / "key.pem"
    rng = random.Random(rounds)
    acknowledged: list[str] = []
    for number in range(rounds):
        command = [sys.executable, "-m", "support.ledger_child", str(path), str(key_path), str(number)]
        tests = Path(__file__).parents[1]
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, cwd=tests, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        ) as child:
            assert child.stdout is not None
            heard = child.stdout.readline()  # it has begun
            time.sleep(rng.uniform(0.0, 0.3))
            child.send_signal(signal.SIGKILL)
            heard += child.stdout.read()
        # The last line may be torn in the pipe's end; a whole name was written by one call.
        acknowledged += [line.decode() for line in heard.splitlines()]
    with Ledger(path, SigningKey.load_or_create(key_path)):
        pass
    kept = ids(path)
    assert len(kept) == len(set(kept))
    assert set(acknowledged) <= set(kept)
    assert len(acknowledged) > 8 * rounds
    report = verify(path)
    assert report.holds, report.findings


@pytest.mark.parametrize("cut", [1, 17, -1])
def test_a_torn_end_is_cut_off_kept_and_told(tmp_path: Path, key: SigningKey, cut: int) -> None:
    path = new_ledger(tmp_path / "ledger", key, 3)
    file = path / "records" / "000000000000.jsonl"
    torn = a_record(3).line(3)[:cut]
    with file.open("ab") as end:
        end.write(torn)
    said: list[str] = []
    with Ledger(path, key, say=said.append) as opened:
        assert any("begins with record 3 " in text for text in said)
        fill(opened, 1, 3)
    (kept,) = (path / "torn").iterdir()
    assert kept.read_bytes() == torn
    assert ids(path) == [f"request-{n}" for n in range(4)]
    assert verify(path).holds


def writer_of(path: Path, key: SigningKey, said: list[str]) -> appender.Appender:
    return appender.Appender(LedgerFiles(path), key, said.append)


class Killed(BaseException):
    """Stands for a process that ended there."""


def killed_after(path: Path, key: SigningKey, monkeypatch: pytest.MonkeyPatch, bytes_left: int | None) -> None:
    """A group of four records, and an end after its signature and some bytes; None: before the new head."""
    writer = writer_of(path, key, [])
    real = appender._write_at

    def kill(descriptor: int, data: bytes, at: int) -> None:
        if data.startswith(b"{") and bytes_left is not None:
            os.pwrite(descriptor, data[:bytes_left], at)
            raise Killed
        real(descriptor, data, at)

    def no_head(_writer: appender.Appender) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(appender, "_write_at", kill)
        patch.setattr(appender.Appender, "_write_head", no_head)
        with pytest.raises(Killed):
            writer.add([appender.Draft(a_record(n)) for n in range(5, 9)])
    writer.close()


@pytest.mark.parametrize("lines", [0, 1, 2, 3])
@pytest.mark.parametrize("more", [0, 9])
def test_the_beginning_of_a_group_is_put_aside(
    tmp_path: Path, key: SigningKey, monkeypatch: pytest.MonkeyPatch, lines: int, more: int
) -> None:
    path = new_ledger(tmp_path / "ledger", key, 5)
    begun = b"".join(a_record(n).line(n) + b"\n" for n in range(5, 5 + lines)) + b"x" * more
    length = len(begun)
    killed_after(path, key, monkeypatch, length)
    report = verify(path)
    assert report.holds, report.findings
    assert (report.size, report.unsigned) == (5, lines)
    assert len(report.notes) == (lines > 0) + (more > 0)
    assert ids(path) == [f"request-{n}" for n in range(5)]
    said: list[str] = []
    writer = writer_of(path, key, said)
    assert writer.size == 5
    assert len(said) == (length > 0)
    writer.add([appender.Draft(a_record(5))])
    writer.close()
    assert ids(path) == [f"request-{n}" for n in range(6)]
    assert (verify(path).findings, verify(path).notes) == ([], [])


def test_a_whole_group_of_a_killed_process_is_kept(
    tmp_path: Path, key: SigningKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = new_ledger(tmp_path / "ledger", key, 5)
    killed_after(path, key, monkeypatch, None)
    report = verify(path)
    assert (report.findings, report.notes, report.size) == ([], [], 9)
    said: list[str] = []
    writer = writer_of(path, key, said)
    writer.close()
    assert (writer.size, said) == (9, [])
    assert ids(path) == [f"request-{n}" for n in range(9)]


def test_an_older_head_is_what_a_loss_of_power_leaves(tmp_path: Path, key: SigningKey) -> None:
    """The head is no wait for the disk of its own; what is signed beforehand is on it."""
    path = new_ledger(tmp_path / "ledger", key, 2)
    old = (path / "head").read_bytes()
    writer = writer_of(path, key, [])
    for n in range(2, 6):
        writer.add([appender.Draft(a_record(n))])
    writer.close()
    for left in (old, b""):
        (path / "head").write_bytes(left)
        assert len(ids(path)) == 5  # the last group is not known to be whole before it was checked
        writer_of(path, key, []).close()
        assert len(ids(path)) == 6
        assert verify(path).holds


def test_a_head_is_on_the_disk_before_a_record_is_acknowledged(tmp_path: Path, key: SigningKey) -> None:
    with Ledger(tmp_path / "ledger", key) as opened:
        for number in range(5):
            opened.append(a_record(number)).result(timeout=10)
            head = opened.files.head()
            assert head is not None
            assert head.size == number + 1


def test_a_running_ledger_verifies(tmp_path: Path, key: SigningKey) -> None:
    with Ledger(tmp_path / "ledger", key) as opened:
        fill(opened, 5)
        stop = threading.Event()

        def work() -> None:
            number = 5
            while not stop.is_set():
                fill(opened, 3, number)
                number += 3

        thread = threading.Thread(target=work)
        thread.start()
        try:
            reports = [verify(tmp_path / "ledger") for _ in range(30)]
        finally:
            stop.set()
            thread.join()
    assert [report.findings for report in reports] == [[]] * 30
    assert reports[-1].size > reports[0].size


def test_torn_salts_do_not_move_those_of_others(tmp_path: Path, key: SigningKey) -> None:
    path = new_ledger(tmp_path / "ledger", key, 3)
    with (path / "records" / "000000000000.salts").open("ab") as end:
        end.write(b"x" * 45)  # of a group whose records never came
    with Ledger(path, key) as opened:
        fill(opened, 2, 3)
    files = LedgerFiles(path)
    assert [files.salt(n) for n in range(5)] == [hashes_of(n).salt for n in range(5)]


def test_a_ledger_that_was_changed_is_not_written_to(tmp_path: Path, key: SigningKey) -> None:
    path = new_ledger(tmp_path / "ledger", key, 5)
    file = path / "records" / "000000000000.jsonl"
    whole = file.read_bytes()
    file.write_bytes(whole.replace(b"request-2", b"request-7"))
    with pytest.raises(GovernanceError, match="not those that were signed"):
        Ledger(path, key)
    file.write_bytes(b"".join(whole.splitlines(keepends=True)[:4]))
    with pytest.raises(GovernanceError, match="some were cut off"):
        Ledger(path, key)
    file.write_bytes(whole)
    (path / "head").unlink()
    (path / "pending").unlink()
    with pytest.raises(GovernanceError, match="neither a signed head"):
        Ledger(path, key)


def test_a_ledger_has_one_key(tmp_path: Path, key: SigningKey) -> None:
    path = new_ledger(tmp_path / "ledger", key, 1)
    with pytest.raises(GovernanceError, match=f"belongs to the key {key.public.id}"):
        Ledger(path, SigningKey.generate())


def test_several_processes_write_one_ledger(tmp_path: Path, key: SigningKey, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(appender, "SEGMENT_RECORDS", 7)
    with Ledger(tmp_path / "ledger", key) as one, Ledger(tmp_path / "ledger", key) as other:

        def work(opened: Ledger, name: str) -> None:
            for number in range(40):
                opened.append(a_record(number, id=f"{name}-{number}")).result(timeout=30)

        threads = [threading.Thread(target=work, args=pair) for pair in ((one, "a"), (other, "b"))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    kept = ids(tmp_path / "ledger")
    assert sorted(kept) == sorted(f"{name}-{n}" for name in "ab" for n in range(40))
    assert len(LedgerFiles(tmp_path / "ledger").segments()) > 5
    report = verify(tmp_path / "ledger")
    assert report.holds, report.findings


class FullDisk:
    """Stands before `os.fdatasync`: fails while `full`, after `good` calls more."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.full, self.good = False, 0
        self._real = os.fdatasync
        monkeypatch.setattr(os, "fdatasync", self)

    def __call__(self, descriptor: int) -> None:
        self.good -= self.full
        if self.full and self.good < 0:
            raise OSError(28, "No space left on device")
        self._real(descriptor)


@pytest.mark.parametrize("good", [0, 1, 2])
def test_a_full_disk_refuses_then_goes_on_and_tells_of_the_gap(
    tmp_path: Path, key: SigningKey, monkeypatch: pytest.MonkeyPatch, good: int
) -> None:
    """good: the salts' file, the signature beforehand, or the records' own file is the one that fails."""
    disk = FullDisk(monkeypatch)
    monkeypatch.setattr(ledger, "RETRY_SECONDS", 0.0)
    with Ledger(tmp_path / "ledger", key) as opened:
        fill(opened, 2)
        opened.check()
        disk.full, disk.good = True, good
        with pytest.raises(GovernanceError, match="No space left"):
            opened.append(a_record(2)).result(timeout=10)
        with pytest.raises(GovernanceError, match="nothing is answered without a record"):
            opened.check()
        disk.full = False
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            try:
                opened.check()
                break
            except GovernanceError:
                time.sleep(0.01)
        opened.check()
        fill(opened, 1, 3)
    kept = ids(tmp_path / "ledger")
    assert [kept[0], kept[1], kept[2], kept[4]] == [f"request-{n}" for n in range(4)]
    records = [leaf.record() for leaf in LedgerFiles(tmp_path / "ledger").leaves()]
    gap = records[3]
    assert gap is not None
    assert (gap.kind, gap.details["late"], gap.details["lost"]) == ("gap", 1, 0)
    assert verify(tmp_path / "ledger").holds


def test_a_record_that_json_cannot_hold_harms_no_other(tmp_path: Path, key: SigningKey) -> None:
    with Ledger(tmp_path / "ledger", key) as opened:
        with pytest.raises(GovernanceError, match="canonical"):
            opened.append(a_record(0, details={"x": float("nan")}))
        fill(opened, 1)
        assert opened.size == 1


def test_a_closed_ledger_takes_nothing(tmp_path: Path, key: SigningKey) -> None:
    opened = Ledger(tmp_path / "ledger", key)
    opened.close()
    opened.close()
    with pytest.raises(GovernanceError, match="is closed"):
        opened.append(LedgerRecord(id="a", time="2026-11-29T00:00:00Z"))


def test_checkpoints_leave_every_so_many_records_and_at_the_end(tmp_path: Path, key: SigningKey) -> None:
    elsewhere, heard = tmp_path / "elsewhere", tmp_path / "heard"
    command = ("sh", "-c", f"cat >> {heard}")
    options = ExportOptions(records=5, directory=elsewhere, command=command)
    said: list[str] = []
    with Ledger(tmp_path / "ledger", key, exports=Exports(options, said.append)) as opened:
        fill(opened, 5)
        deadline = time.monotonic() + 10
        while not elsewhere.exists() or not list(elsewhere.glob("*.checkpoint")):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        fill(opened, 2, 5)
    found = sorted(elsewhere.glob("*.checkpoint"))
    assert [path.name[-23:] for path in found] == ["000000000005.checkpoint", "000000000007.checkpoint"]
    assert heard.read_text() == "".join(path.read_text() for path in found)
    assert said == []
    report = verify(tmp_path / "ledger", [(path.name, path.read_text()) for path in found], key.public)
    assert report.holds
    assert report.proven_size == 7


def test_a_failing_export_is_told_and_holds_up_nothing(tmp_path: Path, key: SigningKey) -> None:
    said: list[str] = []
    exports = Exports(ExportOptions(records=1, command=("false",)), said.append)
    with Ledger(tmp_path / "ledger", key, exports=exports) as opened:
        fill(opened, 3)
    assert any("was not exported" in text for text in said)
    assert LedgerFiles(tmp_path / "ledger").own_checkpoints() == []


def test_checkpoints_leave_after_a_while(tmp_path: Path, key: SigningKey) -> None:
    exports = Exports(ExportOptions(records=1000, seconds=0.05, directory=tmp_path / "out"), print)
    with Ledger(tmp_path / "ledger", key, exports=exports) as opened:
        fill(opened, 1)
        deadline = time.monotonic() + 10
        while not list((tmp_path / "out").glob("*.checkpoint")):
            assert time.monotonic() < deadline
            time.sleep(0.01)
