"""`freehold audit`: each answer of `verify` on its own, proofs that stand alone, erasure, checkpoints."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from freehold.cli.main import main
from freehold.governance.ledger.files import LedgerFiles
from freehold.governance.ledger.ledger import Ledger
from freehold.governance.signing import SigningKey
from support.ledgers import a_record, content, fill, hashes_of


def audit(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["audit", *map(str, arguments)])


@pytest.fixture
def ledger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Twelve records, one of them refused; the signing key is the home's own."""
    monkeypatch.setenv("FREEHOLD_HOME", str(tmp_path / "home"))
    key = SigningKey.load_or_create(tmp_path / "home" / "ledger-key.pem")
    with Ledger(tmp_path / "ledger", key) as opened:
        fill(opened, 11)
        opened.append(a_record(11, outcome="refused", usage=None, price=None)).result(timeout=10)
    return tmp_path / "ledger"


@pytest.fixture
def public(ledger: Path) -> Path:
    return ledger.parent / "home" / "ledger-key.pem.pub"


def exported(ledger: Path) -> Path:
    assert audit("checkpoint", ledger, "--to", ledger.parent / "elsewhere").exit_code == 0
    (found,) = (ledger.parent / "elsewhere").iterdir()
    return found


def test_the_three_answers_stand_apart(ledger: Path, public: Path) -> None:
    checkpoint = exported(ledger)
    with Ledger(ledger, SigningKey.load_or_create(ledger.parent / "home" / "ledger-key.pem")) as opened:
        fill(opened, 3, 12)
    done = audit("verify", ledger, "--checkpoint", checkpoint, "--key", public, "--json")
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    assert lines[1].startswith("internally consistent       yes  15 records")
    assert lines[2].startswith("consistent with checkpoint  yes")
    assert lines[2].endswith(", 12 records")
    assert lines[3] == "complete up to checkpoint   yes  records 0 to 11"
    body = json.loads(lines[-1])
    assert (body["holds"], body["complete_up_to"], body["records"]) == (True, 12, 15)
    assert any(line.startswith("records 12 to 14: they came after") for line in body["not_proven"])
    assert not any("whose key" in line for line in body["not_proven"])


def test_without_a_checkpoint_nothing_is_called_complete(ledger: Path) -> None:
    done = audit("verify", ledger)
    assert done.exit_code == 0
    assert "complete up to checkpoint   -    not proven for any record" in done.stdout
    assert "completeness: without a checkpoint" in done.stdout
    assert "whose key" in done.stdout


def test_a_cut_is_told_and_is_status_1(ledger: Path) -> None:
    checkpoint = exported(ledger)
    records = ledger / "records" / "000000000000.jsonl"
    records.write_bytes(b"".join(records.read_bytes().splitlines(keepends=True)[:9]))
    done = audit("verify", ledger, "--checkpoint", checkpoint, "--json")
    assert done.exit_code == 1
    assert "internally consistent       NO" in done.stdout
    assert "consistent with checkpoint  NO" in done.stdout
    assert "complete up to checkpoint   NO" in done.stdout
    assert json.loads(done.stdout.splitlines()[-1])["holds"] is False


def test_another_key_is_told(ledger: Path, tmp_path: Path) -> None:
    SigningKey.load_or_create(tmp_path / "other.pem")
    done = audit("verify", ledger, "--key", tmp_path / "other.pem.pub")
    assert done.exit_code == 1
    assert "ledger.json is signed by the key" in done.stdout


def test_no_ledger_is_told(tmp_path: Path) -> None:
    done = audit("verify", tmp_path / "nothing")
    assert done.exit_code == 1
    assert "There is no ledger" in done.stdout


def test_a_proof_stands_alone(ledger: Path, public: Path, tmp_path: Path) -> None:
    proof = tmp_path / "proof.json"
    done = audit("prove", ledger, "request-4", "--out", proof, "--with-salt")
    assert done.exit_code == 0, done.output
    request, answer = content(4)
    (tmp_path / "request").write_bytes(request)
    (tmp_path / "answer").write_bytes(answer)
    records = ledger / "records"
    records.rename(tmp_path / "gone")  # nothing of the ledger is needed
    arguments = ("--key", public, "--request", tmp_path / "request", "--answer", tmp_path / "answer", "--json")
    done = audit("verify-proof", proof, *arguments)
    assert done.exit_code == 0, done.output
    assert "Record request-4 is number 4 of 12" in done.stdout
    body = json.loads(done.stdout.splitlines()[-1])
    assert (body["record"]["id"], body["content"]) == ("request-4", {"request": True, "answer": True})
    (tmp_path / "answer").write_bytes(b"something else")
    done = audit("verify-proof", proof, *arguments)
    assert done.exit_code == 1
    assert "The answer IS NOT the one" in done.stdout
    proof.write_text(proof.read_text().replace("served", "failed"))
    done = audit("verify-proof", proof, "--key", public)
    assert done.exit_code == 1
    assert "the proof is wrong" in done.stderr


def test_records_are_listed_and_shown(ledger: Path, tmp_path: Path) -> None:
    done = audit("list", ledger, "--last", 2)
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["#10", "#11"]
    done = audit("list", ledger, "--outcome", "refused", "--json")
    (record,) = json.loads(done.stdout)["records"]
    assert record["id"] == "request-11"
    assert audit("list", ledger, "--outcome", "lost").exit_code == 2
    (tmp_path / "request").write_bytes(content(3)[0])
    done = audit("show", ledger, "request-3", "--request", tmp_path / "request")
    assert "The request is the one that was recorded." in done.stdout
    done = audit("show", ledger, "#4", "--request", tmp_path / "request")
    assert done.exit_code == 1
    assert "IS NOT" in done.stdout


def test_with_an_exchanged_salt_nothing_is_said_of_the_content(ledger: Path, tmp_path: Path) -> None:
    (tmp_path / "request").write_bytes(content(3)[0])
    salts = ledger / "records" / "000000000000.salts"
    data = bytearray(salts.read_bytes())
    data[32 * 3 : 32 * 4] = b"x" * 32
    salts.write_bytes(data)
    done = audit("show", ledger, "request-3", "--request", tmp_path / "request")
    assert done.exit_code == 1
    assert "not the one it was written with" in done.stderr
    assert "IS NOT" not in done.output


def test_erasure_of_one_and_of_the_old(ledger: Path, public: Path) -> None:
    checkpoint = exported(ledger)
    assert audit("erase", ledger, "request-3", "--why", "asked for").exit_code == 0
    files = LedgerFiles(ledger)
    assert files.salt(3) == bytes(32)
    assert files.salt(4) == hashes_of(4).salt
    done = audit("erase", ledger, "--older-than", "1s", "--records", "--json")
    assert json.loads(done.stdout.splitlines()[-1]) == {"ledger": str(ledger), "erased": 12, "what": "records"}
    done = audit("verify", ledger, "--checkpoint", checkpoint, "--key", public)
    assert done.exit_code == 0, done.output
    assert "erased                           12 records" in done.stdout
    assert "#3  (erased)" in audit("list", ledger).stdout
    assert "only its hash is left" in audit("show", ledger, "#3").stdout
    assert audit("erase", ledger).exit_code == 2
    assert audit("erase", ledger, "request-1", "--older-than", "1d").exit_code == 2


def test_a_checkpoint_is_not_signed_over_changes(ledger: Path) -> None:
    records = ledger / "records" / "000000000000.jsonl"
    records.write_bytes(records.read_bytes().replace(b"request-7", b"request-8"))
    done = audit("checkpoint", ledger, "--to", ledger.parent / "elsewhere")
    assert done.exit_code == 1
    assert "not those that were signed" in done.stderr
    assert not (ledger.parent / "elsewhere").exists()


def test_a_checkpoint_goes_through_a_command(ledger: Path, tmp_path: Path) -> None:
    done = audit("checkpoint", ledger, "--command", f"sh -c 'cat > {tmp_path / 'out'}'")
    assert done.exit_code == 0, done.output
    assert (tmp_path / "out").read_text() == done.stdout
    done = audit("checkpoint", ledger, "--command", "false")
    assert done.exit_code == 1
    assert "was not exported" in done.stderr


def test_a_directory_of_checkpoints(ledger: Path, public: Path, tmp_path: Path) -> None:
    key = SigningKey.load_or_create(tmp_path / "home" / "ledger-key.pem")
    elsewhere = tmp_path / "elsewhere"
    for number in range(12, 20):
        exported_to = audit("checkpoint", ledger, "--to", elsewhere)
        assert exported_to.exit_code == 0
        with Ledger(ledger, key) as opened:
            fill(opened, 1, number)
    other = tmp_path / "another"
    with Ledger(other, key) as opened:
        fill(opened, 1)
    assert audit("checkpoint", other, "--to", elsewhere).exit_code == 0
    done = audit("verify", ledger, "--checkpoint", elsewhere, "--key", public, "--json")
    assert done.exit_code == 0, done.output
    body = json.loads(done.stdout.splitlines()[-1])
    assert [found["size"] for found in body["checkpoints"]] == list(range(12, 20))
    assert body["complete_up_to"] == 19
    assert "and with 7 smaller ones" in done.stdout
    done = audit("verify", ledger, "--checkpoint", tmp_path / "home")
    assert done.exit_code == 1
    assert "there is no checkpoint of the ledger" in done.stderr


def test_an_erasure_of_nothing_says_so(ledger: Path) -> None:
    assert "Erased 1 salts" in audit("erase", ledger, "request-3").stderr
    done = audit("erase", ledger, "request-3", "--json")
    assert "no salts of these" in done.stderr
    assert json.loads(done.stdout)["erased"] == 0
    assert LedgerFiles(ledger).head().size == 13  # type: ignore[union-attr]
