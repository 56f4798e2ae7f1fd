"""Ledgers and proofs that somebody made to harm their reader: no traceback, and nothing that a terminal obeys."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from freehold.cli.main import main
from freehold.core.printable import printable
from freehold.governance.ledger.appender import Appender, Draft
from freehold.governance.ledger.files import LedgerFiles
from freehold.governance.ledger.record import LedgerRecord
from freehold.governance.signing import SigningKey, canonical, signed
from support.ledgers import a_record, new_ledger

DEEP = b"[" * 100_000
EVIL = "m3\n#9  2026-11-29T12:00:00.000Z  request-9\x1b[2K\u202e\x9b1m"


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [*map(str, arguments)])


@pytest.fixture
def key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SigningKey:
    monkeypatch.setenv("FREEHOLD_HOME", str(tmp_path / "home"))
    return SigningKey.load_or_create(tmp_path / "home" / "ledger-key.pem")


@pytest.fixture
def ledger(tmp_path: Path, key: SigningKey) -> Path:
    return new_ledger(tmp_path / "ledger", key, 3)


def assert_told(done: Result) -> None:
    """An error, in words."""
    assert done.exit_code == 1, done.output
    assert isinstance(done.exception, SystemExit), done.exception


def test_printable() -> None:
    assert printable("Gemma 3, größer") == "Gemma 3, größer"
    assert printable("a\nb\x1b[0m\u202e\x9b") == "a\\nb\\x1b[0m\\u202e\\x9b"


def test_names_of_strangers_are_escaped(ledger: Path, key: SigningKey) -> None:
    writer = Appender(LedgerFiles(ledger), key, print)
    writer.add([Draft(a_record(3, outcome="refused", model=None, model_asked=EVIL, usage=None, price=None))])
    writer.close()
    for command in (("audit", "list"), ("cost", "report")):
        done = run(*command, ledger)
        assert done.exit_code == 0, done.output
        assert all(line.isprintable() for line in done.stdout.split("\n"))
        assert not any(line.startswith("#9") for line in done.stdout.split("\n"))
        assert "m3\\n#9" in done.stdout
    done = run("audit", "show", ledger, "#3")
    assert all(line.isprintable() for line in done.stdout.split("\n"))


def test_a_ledgers_own_name_is_escaped(ledger: Path, key: SigningKey) -> None:
    document = signed({"format": 1, "origin": "x\n\x1b[1minternally consistent       yes", "created": "now"}, key)
    (ledger / "ledger.json").write_bytes(canonical(document))
    done = run("audit", "verify", ledger)
    assert_told(done)
    assert "\x1b" not in done.stdout
    assert not any(
        line.startswith("\x1b") or line == "internally consistent       yes" for line in done.stdout.split("\n")
    )


@pytest.mark.parametrize(
    "command", [("audit", "verify"), ("audit", "list"), ("cost", "report"), ("audit", "checkpoint")]
)
@pytest.mark.parametrize(
    "place", ["ledger.json", "line", "stub", "directory", "salts", "head", "pending", "checkpoints"]
)
def test_no_file_of_a_ledger_gives_a_traceback(ledger: Path, command: tuple[str, str], place: str) -> None:
    records = ledger / "records" / "000000000000.jsonl"
    if place == "ledger.json":
        (ledger / place).write_bytes(DEEP)
    elif place == "line":
        records.write_bytes(DEEP + b"\n" + records.read_bytes())
    elif place == "stub":
        records.write_bytes(b'{"erased":"' + b'",' + b'"a":' + DEEP + b"\n" + records.read_bytes())
    elif place == "checkpoints":
        (ledger / "checkpoints" / "000000000003").mkdir()
    else:
        path = {"directory": records, "salts": records.with_suffix(".salts")}.get(place, ledger / place)
        path.unlink()
        path.mkdir()
    done = run(*command, ledger)
    assert done.exception is None or isinstance(done.exception, SystemExit), (done.exception, done.output)
    if command == ("audit", "verify") and place != "pending":
        assert_told(done)


@pytest.mark.parametrize(
    "change",
    [
        {"details": 5},
        {"seconds": 1e300},
        {"seconds": "long"},
        {"kind": []},
        {"outcome": {}},
        {"usage": {"input_tokens": "many"}},
        {"usage": {"input_tokens": True}},
        {"price": {"basis": "list", "amount": "NaN", "table": "", "effective": ""}},
        {"price": {"basis": "list", "amount": "1e999999", "table": "", "effective": ""}},
        {"price": {"basis": "list", "amount": 3, "table": "", "effective": ""}},
        {"time": 5},
        {"time": "0001-01-01T00:00:00+23:00"},
        {"model": 7},
    ],
)
@pytest.mark.parametrize("command", [("audit", "verify"), ("audit", "list"), ("cost", "report")])
def test_no_record_gives_a_traceback(ledger: Path, command: tuple[str, str], change: dict[str, object]) -> None:
    records = ledger / "records" / "000000000000.jsonl"
    first, rest = records.read_bytes().split(b"\n", 1)
    records.write_bytes(json.dumps({**json.loads(first), **change}).encode() + b"\n" + rest)
    assert_told(run(*command, ledger))


def test_no_erasure_gives_a_traceback(ledger: Path, key: SigningKey) -> None:
    writer = Appender(LedgerFiles(ledger), key, print)
    for ranges in (5, [[0]], [["a", "b"]], None, "x"):
        details = {"what": "records", "ranges": ranges}
        writer.add([Draft(LedgerRecord(id="e", time="2026-11-29T00:00:00Z", kind="erasure", details=details))])
    writer.close()
    done = run("audit", "verify", ledger)
    assert_told(done)
    assert done.stdout.count("does not say what was erased") == 5


@pytest.mark.parametrize("text", [DEEP, b"{}", b"[]", b"5", b'{"format": 1}', b"\xff"])
def test_no_proof_gives_a_traceback(ledger: Path, key: SigningKey, tmp_path: Path, text: bytes) -> None:
    (tmp_path / "proof").write_bytes(text)
    public = tmp_path / "home" / "ledger-key.pem.pub"
    assert_told(run("audit", "verify-proof", tmp_path / "proof", "--key", public))


@pytest.mark.parametrize("change", [{"index": float("inf")}, {"index": -1}, {"path": "zz"}, {"record": "[" * 100_000}])
def test_no_changed_proof_gives_a_traceback(
    ledger: Path, key: SigningKey, tmp_path: Path, change: dict[str, object]
) -> None:
    proof = tmp_path / "proof"
    assert run("audit", "prove", ledger, "#1", "--out", proof).exit_code == 0
    proof.write_text(json.dumps({**json.loads(proof.read_text()), **change}))
    assert_told(run("audit", "verify-proof", proof, "--key", tmp_path / "home" / "ledger-key.pem.pub"))
