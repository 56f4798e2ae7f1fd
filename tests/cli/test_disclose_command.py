"""`freehold disclose` writes documents, pages and exports; `verify` says what holds, in words and by its status."""

from __future__ import annotations

import json
from datetime import datetime, timezone
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.torch import save_file

from freehold.cli import cmd_disclose
from freehold.cli.main import main
from freehold.governance.signing import PublicKey, SigningKey
from support.disclosures import facts_file


@pytest.fixture
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """FREEHOLD_HOME, empty."""
    monkeypatch.setenv("FREEHOLD_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """A checkpoint of 30 numbers in two files."""
    place = tmp_path / "tiny"
    place.mkdir()
    save_file({"a.weight": torch.ones(4, 5)}, place / "model-00001-of-00002.safetensors")
    save_file({"b.weight": torch.zeros(10)}, place / "model-00002-of-00002.safetensors")
    index = {"a.weight": "model-00001-of-00002.safetensors", "b.weight": "model-00002-of-00002.safetensors"}
    (place / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    (place / "config.json").write_text('{"model_type": "llama"}')
    return place


def disclose(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, ["disclose", *map(str, arguments)])


def states(done: Result) -> dict[str, str]:
    checks = json.loads(done.stdout.splitlines()[-1])["checks"]
    return {name: check["state"] for name, check in checks.items()}


def test_without_a_subject_the_shipped_ones_are_listed(home: Path) -> None:
    done = disclose()
    assert done.exit_code == 0, done.output
    names = [line.split()[0] for line in done.stdout.splitlines()]
    assert names == ["minimax-m3/self-hosted", "minimax-m3/hosted", "minimax-m3/api", "smollm2-135m"]
    assert not home.exists()


def test_a_document_is_written_and_verified(home: Path, tmp_path: Path) -> None:
    out = tmp_path / "document.json"
    assert disclose("smollm2-135m", "--out", out).exit_code == 0
    done = disclose("verify", out)
    assert done.exit_code == 0, done.output
    assert done.stdout.split()[:4] == ["schema", "holds", "references", "holds"]
    key = home / "disclosure-key.pem.pub"
    assert disclose("verify", out, "--key", key, "--json").exit_code == 0

    out.write_text(out.read_text().replace("Stored numbers", "Stored number"))
    done = disclose("verify", out, "--json")
    assert done.exit_code == 1
    assert {name for name, state in states(done).items() if state == "fails"} == {"agreement", "signature", "key"}


def test_a_key_of_ones_own(home: Path, tmp_path: Path) -> None:
    out, key = tmp_path / "m3.json", tmp_path / "mine.pem"
    assert disclose("smollm2-135m", "--out", out, "--key", key).exit_code == 0
    assert not home.exists()
    done = disclose("verify", out)
    assert (done.exit_code, PublicKey.read(key).id in done.stdout) == (1, True)
    assert disclose("verify", out, "--key", f"{key}.pub").exit_code == 0
    SigningKey.load_or_create(tmp_path / "other.pem")
    assert disclose("verify", out, "--key", tmp_path / "other.pem.pub").exit_code == 1


def test_a_strangers_document_is_not_signed_again(home: Path, tmp_path: Path) -> None:
    strange, key, out = tmp_path / "s.json", tmp_path / "stranger.pem", tmp_path / "mine.json"
    assert disclose("smollm2-135m", "--out", strange, "--key", key).exit_code == 0
    stranger = PublicKey.read(key).id
    for more in ((), ("--key", tmp_path / "new.pem")):
        done = disclose(strange, "--out", out, *more)
        assert (done.exit_code, f"is signed with the key {stranger}, which is not yours" in done.stderr) == (1, True)
    assert not any(path.exists() for path in (out, home, tmp_path / "new.pem"))
    for form in ("text", "html", "spdx", "hf"):
        done = disclose(strange, "--format", form)
        assert (done.exit_code, f"warning: {strange} is signed with the key {stranger}" in done.stderr) == (0, True)
    # The signer can write it anew.
    assert disclose(strange, "--out", out, "--key", key).exit_code == 0
    assert disclose("verify", out, "--key", f"{key}.pub").exit_code == 0


def test_a_day_of_issue_in_the_future_is_warned_of(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    facts = tmp_path / "facts.json"
    facts.write_text(json.dumps(facts_file() | {"issued": "2026-12-05"}))
    monkeypatch.setattr(cmd_disclose, "_now", lambda: datetime(2026, 12, 1, tzinfo=timezone.utc))
    done = disclose(facts, "--format", "text")
    assert (done.exit_code, "2026-12-05, which is in the future" in done.stderr) == (0, True)


def test_a_file_name_that_controls_the_terminal(home: Path, weights: Path) -> None:
    wild = weights.rename(weights.with_name("t\x1b[2J\nKept for: 0 days"))
    done = disclose(wild, "--format", "text")
    assert (done.exit_code, "\x1b" in done.stdout, "\nKept for: 0 days" in done.stdout) == (0, False, False)


def test_half_a_surrogate_pair_is_refused(home: Path, tmp_path: Path) -> None:
    facts = tmp_path / "facts.json"
    entry = facts_file()
    entry["facts"]["provider.country"]["note"] = "\ud800"
    facts.write_text(json.dumps(entry))
    for form in ("html", "text", "hf"):
        done = disclose(facts, "--format", form)
        assert (done.exit_code, "provider.country" in done.stderr) == (1, True)


def test_weights_are_measured_and_compared(home: Path, weights: Path, tmp_path: Path) -> None:
    out = tmp_path / "tiny.json"
    assert disclose(weights, "--out", out).exit_code == 0
    done = disclose(out, "--format", "text")
    assert "Parameters: 30 [verified-here]" in done.stdout
    assert "Contracting entity: decided by whoever runs the weights [not-stated]" in done.stdout
    assert states(disclose("verify", out, "--weights", weights, "--json"))["weights"] == "holds"

    second = weights / "model-00002-of-00002.safetensors"
    save_file({"b.weight": torch.ones(10)}, second)
    done = disclose("verify", out, "--weights", weights)
    assert done.exit_code == 1
    assert "weights     fails" in done.stdout
    assert f"{second.name}: its SHA-256 is" in done.stdout
    assert "00001-of" not in done.stdout


def test_weights_tie_a_named_disclosure_to_bytes(home: Path, weights: Path, tmp_path: Path) -> None:
    out = tmp_path / "m3.json"
    assert disclose("minimax-m3/self-hosted", "--weights", weights, "--out", out).exit_code == 0
    assert states(disclose("verify", out, "--weights", weights, "--json"))["weights"] == "holds"
    document = json.loads(out.read_text())
    assert [c["name"] for c in document["components"]] == [p.name for p in sorted(weights.glob("*.safetensors"))]


def test_a_file_of_facts_of_ones_own(home: Path, tmp_path: Path) -> None:
    facts = tmp_path / "facts.json"
    facts.write_text(json.dumps(facts_file()))
    done = disclose(facts, "--format", "text")
    assert "Its country: Germany (DE) [vendor-reported]" in done.stdout
    wrong = {"value": ["https://exam ple.com"], "status": "vendor-reported", "source": "site", "read": "2026-11-01"}
    facts.write_text(json.dumps(facts_file(path__endpoints=wrong)))
    done = disclose(facts)
    assert (done.exit_code, "schema: /services/0/endpoints/0" in done.stderr) == (1, True)
    facts.write_text(json.dumps(facts_file() | {"name": "no name"}))
    done = disclose(facts)
    assert (done.exit_code, "no name" in done.stderr) == (1, True)


@pytest.mark.parametrize(
    ("form", "begins"),
    [("html", "<!DOCTYPE html>"), ("text", "MiniMax M3"), ("spdx", "{"), ("hf", "---\n"), ("cyclonedx", "{")],
)
def test_forms(home: Path, form: str, begins: str) -> None:
    done = disclose("minimax-m3/hosted", "--format", form)
    assert (done.exit_code, done.stdout[: len(begins)]) == (0, begins)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("nothing-here",), "no shipped disclosure"),
        (("verify",), "needs the FILE"),
        (("verify", "x.json", "--format", "html"), "neither --format nor --out"),
        (("minimax-m3/api", "x.json"), "belong to"),
        (("minimax-m3/api", "--format", "html", "--key", "k"), "no signature"),
    ],
)
def test_wrong_usage(home: Path, arguments: tuple[str, ...], said: str) -> None:
    done = disclose(*arguments)
    assert (done.exit_code, said in done.stderr) == (2, True), done.output


def test_expired_facts_are_written_with_a_warning_and_do_not_verify(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "old.json"
    monkeypatch.setattr(cmd_disclose, "_now", lambda: datetime(2027, 6, 1, tzinfo=timezone.utc))
    done = disclose("minimax-m3/api", "--out", out)
    assert (done.exit_code, "warning: minimax-m3/api was to be read again after 2027-05-29" in done.stderr) == (0, True)
    done = disclose("verify", out, "--json")
    assert done.exit_code == 1
    assert {name for name, state in states(done).items() if state == "fails"} == {"expiry"}
