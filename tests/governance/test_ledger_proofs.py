"""One record can be shown to somebody who has nothing else; erasure takes content away, and no proof."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from freehold.core.errors import GovernanceError, SignatureError
from freehold.governance.ledger import appender
from freehold.governance.ledger.checkpoint import Checkpoint, verifier_key
from freehold.governance.ledger.erase import What, erase, older_than
from freehold.governance.ledger.files import LedgerFiles
from freehold.governance.ledger.ledger import Ledger
from freehold.governance.ledger.proof import check_proof, find, prove
from freehold.governance.ledger.verify import verify
from freehold.governance.signing import SigningKey
from support.ledgers import BEGIN, a_record, content, copied, fill, hashes_of, new_ledger

SIZE = 23


@pytest.fixture(scope="module")
def key() -> SigningKey:
    return SigningKey.generate()


@pytest.fixture
def files(tmp_path: Path, key: SigningKey, monkeypatch: pytest.MonkeyPatch) -> LedgerFiles:
    """A ledger in files of eight records each."""
    monkeypatch.setattr(appender, "SEGMENT_RECORDS", 8)
    with Ledger(tmp_path / "ledger", key) as opened:
        for number in range(SIZE):
            fill(opened, 1, number)
    return LedgerFiles(tmp_path / "ledger")


def written(tmp_path: Path, proof: dict[str, Any]) -> Path:
    path = tmp_path / "proof.json"
    path.write_text(json.dumps(proof))
    return path


def test_each_record_has_a_proof(files: LedgerFiles, key: SigningKey, tmp_path: Path) -> None:
    for number in range(SIZE):
        proof = prove(files, f"request-{number}", with_salt=False)
        proven = check_proof(written(tmp_path, proof), key.public)
        assert proven.record == a_record(number, hashes_of(number))
        assert (proven.index, proven.checkpoint.size) == (number, SIZE)


def test_a_proof_with_its_salt_shows_the_content(files: LedgerFiles, key: SigningKey, tmp_path: Path) -> None:
    proven = check_proof(written(tmp_path, prove(files, "request-5", with_salt=True)), key.public)
    request, answer = content(5)
    assert proven.fits(request=request, answer=answer)
    assert not proven.fits(request=b"another")
    assert not proven.fits(answer=request)
    without = check_proof(written(tmp_path, prove(files, "request-5", with_salt=False)), key.public)
    with pytest.raises(GovernanceError, match="--with-salt"):
        without.fits(request=request)


def test_another_salt_says_nothing_about_the_content(files: LedgerFiles, key: SigningKey, tmp_path: Path) -> None:
    proof = prove(files, "request-5", with_salt=True)
    proof["salt"] = hashes_of(6).salt.hex()
    proven = check_proof(written(tmp_path, proof), key.public)
    with pytest.raises(GovernanceError, match="not the one it was written with"):
        proven.fits(request=content(5)[0])


def test_a_proof_cannot_be_turned_into_another(files: LedgerFiles, key: SigningKey, tmp_path: Path) -> None:
    proof = prove(files, "request-5", with_salt=False)
    changes: list[dict[str, Any]] = [
        {"record": proof["record"].replace("served", "failed")},
        {"record": prove(files, "request-6", with_salt=False)["record"]},
        {"index": 6},
        {"path": proof["path"][1:]},
        {"path": proof["path"][::-1]},
        {"checkpoint": proof["checkpoint"].replace(f"\n{SIZE}\n", "\n22\n")},
        {"format": "another"},
        {"path": None},
    ]
    for change in changes:
        with pytest.raises(GovernanceError):
            check_proof(written(tmp_path, proof | change), key.public)
    with pytest.raises(SignatureError):
        check_proof(written(tmp_path, proof), SigningKey.generate().public)


def test_proofs_reach_into_older_checkpoints(files: LedgerFiles, key: SigningKey, tmp_path: Path) -> None:
    from freehold.governance.ledger.merkle import root_of

    old = [leaf.leaf for leaf in files.leaves()][:9]
    checkpoint = Checkpoint.sign(files.origin, 9, root_of(old), key)
    proven = check_proof(written(tmp_path, prove(files, "request-8", checkpoint, with_salt=False)), key.public)
    assert proven.checkpoint.size == 9
    with pytest.raises(GovernanceError, match="covers 9"):
        prove(files, "request-9", checkpoint, with_salt=False)


def test_records_are_found_by_id_and_number(files: LedgerFiles) -> None:
    assert find(files, "request-9").position == find(files, "#9").position == 9
    for name in ("request-99", "#99", "key-1", "#x"):
        with pytest.raises(GovernanceError, match="no record"):
            find(files, name)


@pytest.mark.parametrize("what", ["salts", "records"])
def test_erasure_keeps_the_proofs(files: LedgerFiles, key: SigningKey, tmp_path: Path, what: What) -> None:
    before = {n: written(tmp_path, prove(files, f"request-{n}", with_salt=False)).read_text() for n in range(SIZE)}
    head = files.head()
    assert head is not None
    gone = [2, 3, 4, 8, 15, 16, 22]
    assert erase(files, key, gone, what, "asked for") == len(gone)
    report = verify(files.path, [("before", head.text)], key.public)
    assert report.holds, (report.findings, report.checkpoints)
    assert report.proven_size == SIZE
    assert (report.erased, report.salts_erased) == ((7, 0) if what == "records" else (0, 7))
    for number in range(SIZE):
        # What was handed out before stays true.
        (tmp_path / "old.json").write_text(before[number])
        assert check_proof(tmp_path / "old.json", key.public).index == number
        if number not in gone:
            assert check_proof(written(tmp_path, prove(files, f"request-{number}", with_salt=True)), key.public).fits(
                request=content(number)[0]
            )
    assert all(files.salt(number) == bytes(32) for number in gone)
    everything = b"".join(path.read_bytes() for path in files.path.rglob("*") if path.is_file())
    for number in gone:
        assert hashes_of(number).salt not in everything
        assert (hashes_of(number).request.encode() in everything) == (what == "salts")


def test_an_erased_record_has_no_proof_any_more(files: LedgerFiles, key: SigningKey) -> None:
    erase(files, key, [4], "records", "asked for")
    with pytest.raises(GovernanceError, match="was erased"):
        prove(files, "#4", with_salt=False)
    erase(files, key, [5], "salts", "asked for")
    with pytest.raises(GovernanceError, match="salt of record"):
        prove(files, "request-5", with_salt=True)


def test_the_erasure_is_a_record(files: LedgerFiles, key: SigningKey) -> None:
    erase(files, key, [2, 3, 7], "salts", "request of 2026-11-29")
    record = [leaf.record() for leaf in files.leaves()][-1]
    assert record is not None
    assert record.kind == "erasure"
    assert dict(record.details) == {"what": "salts", "ranges": [[2, 3], [7, 7]], "why": "request of 2026-11-29"}


def test_a_ledger_is_erased_while_it_is_written(tmp_path: Path, key: SigningKey) -> None:
    with Ledger(tmp_path / "ledger", key) as opened:
        fill(opened, 10)
        files = LedgerFiles(tmp_path / "ledger")
        erase(files, key, range(4), "records", "old")
        fill(opened, 5, 10)
        erase(files, key, range(4, 8), "salts", "old")
        fill(opened, 5, 15)
        assert opened.size == 22
    report = verify(tmp_path / "ledger", (), key.public)
    assert report.holds, report.findings
    assert (report.size, report.erased, report.salts_erased) == (22, 4, 4)


def test_retention_takes_what_is_older(files: LedgerFiles, key: SigningKey) -> None:
    moment = BEGIN + timedelta(minutes=10)
    assert older_than(files, moment, "salts") == older_than(files, moment, "records") == list(range(10))
    erase(files, key, older_than(files, moment, "salts"), "salts", "retention")
    assert older_than(files, moment, "salts") == []
    erase(files, key, older_than(files, moment, "records"), "records", "retention")
    assert older_than(files, moment, "records") == []
    assert verify(files.path).holds


def test_an_erasure_that_was_cut_short_can_be_done_again(
    files: LedgerFiles, key: SigningKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    from freehold.governance.ledger import erase as module

    with monkeypatch.context() as patch:
        patch.setattr(module, "_erase_records", lambda *_: (_ for _ in ()).throw(OSError("killed")))
        with pytest.raises(OSError, match="killed"):
            erase(files, key, range(12), "records", "old")
    assert verify(files.path).holds
    erase(files, key, range(12), "records", "old")
    report = verify(files.path)
    assert report.holds
    assert report.erased == 12


def test_numbers_that_are_not_there_are_refused(files: LedgerFiles, key: SigningKey) -> None:
    with pytest.raises(GovernanceError, match="no number 99"):
        erase(files, key, [1, 99], "salts", "")
    assert erase(files, key, [], "salts", "") == 0
    assert verify(files.path).size == SIZE


def test_the_record_of_an_erasure_stays(files: LedgerFiles, key: SigningKey) -> None:
    erase(files, key, [2], "records", "old")
    with pytest.raises(GovernanceError, match="such records stay"):
        erase(files, key, [3, SIZE], "records", "to hide it")
    assert verify(files.path).erased == 1


def test_checkpoints_are_signed_notes(tmp_path: Path, key: SigningKey) -> None:
    """Text, size, root and signature line stand where C2SP's formats have them."""
    import base64
    import hashlib

    files = LedgerFiles(new_ledger(tmp_path / "ledger", key, 3))
    head = files.head()
    assert head is not None
    origin, size, root, empty, mark, end = head.text.split("\n")
    assert (origin, size, empty, end) == (files.origin, "3", "", "")
    dash, name, signature = mark.split(" ")
    raw = base64.b64decode(signature)
    assert (dash, name, len(raw)) == ("\u2014", origin, 68)
    assert raw[:4] == hashlib.sha256(f"{origin}\n\x01".encode() + key.public.raw).digest()[:4]
    assert key.public.verifies(raw[4:], f"{origin}\n3\n{root}\n".encode())
    assert verifier_key(origin, key.public).split("+", 2)[:2] == [origin, raw[:4].hex()]


def test_what_is_erased_is_not_erased_again(files: LedgerFiles, key: SigningKey) -> None:
    assert erase(files, key, [2, 3], "salts", "a") == 2
    assert erase(files, key, [2, 3], "salts", "b") == 0
    assert erase(files, key, [3, 4], "salts", "c") == 1
    assert erase(files, key, [2, 4], "records", "d") == 2
    assert erase(files, key, [2, 4], "records", "e") == erase(files, key, [2, 4], "salts", "f") == 0
    told = [record.details["why"] for leaf in files.leaves() if (record := leaf.record()) and record.kind == "erasure"]
    assert told == ["a", "c", "d"]
    last = [record for leaf in files.leaves() if (record := leaf.record()) is not None][-2]
    assert last.details["ranges"] == [[4, 4]]
    assert verify(files.path).holds


def test_a_fork_shows_when_checkpoints_are_compared(tmp_path: Path, key: SigningKey) -> None:
    """Each copy fits its own checkpoint; neither fits the other's."""
    one = new_ledger(tmp_path / "one", key, 3)
    other = copied(one, tmp_path / "other")
    texts = []
    for number, path in enumerate((one, other), 3):
        with Ledger(path, key) as opened:
            fill(opened, 1, number)
        head = LedgerFiles(path).head()
        assert head is not None
        texts.append(head.text)
        assert verify(path, [("own", head.text)], key.public).holds
    assert not verify(one, [("other", texts[1])], key.public).holds
    assert not verify(other, [("one", texts[0])], key.public).holds


def test_decisions_are_erased_with_their_requests(tmp_path: Path, key: SigningKey) -> None:
    with Ledger(tmp_path / "ledger", key) as opened:
        decision = a_record(0, id="request-0-decision", kind="decision", outcome=None, usage=None, price=None)
        opened.append(decision).result(timeout=10)
        fill(opened, 1)
    files = LedgerFiles(tmp_path / "ledger")
    moment = BEGIN + timedelta(days=1)
    assert older_than(files, moment, "salts") == [1]
    assert older_than(files, moment, "records") == [0, 1]
    assert erase(files, key, [0, 1], "records", "retention") == 2
    assert verify(files.path).holds
