"""`freehold audit egress` and its `verify`, as people run them; and the unit that seals a server."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from freehold.cli.cmd_audit import AUDITS
from freehold.cli.main import main
from freehold.cli.sealing import SHOWN_LAYERS
from freehold.governance.egress.matrix import Cell, Matrix, Row
from freehold.governance.egress.seal import OPTIONAL_LAYERS
from support.repository import ROOT
from support.running import freehold
from support.sealing import need_a_seal

UNIT = (ROOT / "deploy" / "freehold.service.d" / "seal.conf").read_text("utf-8")


@pytest.fixture(scope="module", autouse=True)
def _sealable() -> None:
    need_a_seal()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """A real audit, without the single layers."""
    base = tmp_path_factory.mktemp("audit")
    key, out = base / "key.pem", base / "evidence.json"
    done = freehold("audit", "egress", "--no-layers", "--key", str(key), "--out", str(out), "--json")
    assert done.returncode == 0, done.stderr
    return base, done


def verify(base: Path, *options: str) -> Any:
    return CliRunner().invoke(main, ["audit", "egress", "verify", str(base / "evidence.json"), *options])


def test_it_prints_a_table_and_what_is_not_covered(made: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    base, done = made
    lines = done.stdout.splitlines()
    assert lines[0].split()[:3] == ["route", "user", "open"]
    tcp = next(line for line in lines if line.startswith("TCP over IPv4"))
    assert tcp.split()[-3:] == ["OUT", "-", "blocked"]
    assert any(re.fullmatch(r"\d+ blocked, \d+ not provable here, 0 escaped: PASSED", line) for line in lines)
    assert "It does not cover:" in done.stdout
    document = json.loads(lines[-1])
    assert document == json.loads((base / "evidence.json").read_text())
    assert len(document["predicate"]["seals"]) == (2 if os.geteuid() == 0 else 1)


def test_what_it_wrote_verifies(made: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    done = verify(made[0], "--key", str(made[0] / "key.pem.pub"), "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout.splitlines()[-1])["ok"] is True
    assert "the kernel: a fault in it" in done.stdout


def test_evidence_without_a_model_is_not_evidence_for_one(
    made: tuple[Path, subprocess.CompletedProcess[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    from freehold.cli import cmd_audit_egress

    monkeypatch.setattr(cmd_audit_egress, "_model_digest", lambda model: {"name": model, "sha256": "0" * 64})
    done = verify(made[0], "--key", str(made[0] / "key.pem.pub"), "--model", "m")
    assert done.exit_code == 1
    assert "problem: it is bound to no model" in done.stdout


def test_another_boot_is_a_problem_unless_it_is_expected(
    made: tuple[Path, subprocess.CompletedProcess[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    from freehold.governance.egress import evidence

    monkeypatch.setattr(evidence, "boot_id", lambda: "another")
    assert verify(made[0]).exit_code == 1
    done = verify(made[0], "--elsewhere")
    assert done.exit_code == 0, done.output
    assert "note: it was made on another machine" in done.stdout


def test_another_key_does_not(made: tuple[Path, subprocess.CompletedProcess[str]], tmp_path: Path) -> None:
    from freehold.governance.signing import SigningKey

    SigningKey.load_or_create(tmp_path / "other.pem")
    done = verify(made[0], "--key", str(tmp_path / "other.pem.pub"))
    assert done.exit_code == 1
    assert "problem: it was signed by key" in done.stdout
    assert "proves nothing here" in done.stderr


def test_a_changed_document_does_not(made: tuple[Path, subprocess.CompletedProcess[str]], tmp_path: Path) -> None:
    text = (made[0] / "evidence.json").read_text()
    (tmp_path / "evidence.json").write_text(text.replace("not provable here", "blocked"))
    done = verify(tmp_path)
    assert done.exit_code == 1
    assert "does not fit the document" in done.stderr


@pytest.mark.parametrize(
    ("content", "said"), [(None, "cannot be read"), ("{", "no JSON document"), ("[]", "no JSON object")]
)
def test_what_is_no_evidence_is_said(tmp_path: Path, content: str | None, said: str) -> None:
    if content is not None:
        (tmp_path / "evidence.json").write_text(content)
    done = verify(tmp_path)
    assert done.exit_code == 1
    assert said in done.stderr


def test_an_escape_ends_with_status_1(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from freehold.governance.egress import matrix

    rows = [Row("tcp4", "TCP", "u", {"open": Cell(True, None), "sealed": Cell(True, None)}, None)]
    leaking = Matrix(rows, {"u": {}}, {"u": 0}, {"u": {}})
    monkeypatch.setattr(matrix, "run_matrix", lambda **_: leaking)
    done = CliRunner().invoke(main, ["audit", "egress", "--key", str(tmp_path / "k"), "--out", str(tmp_path / "e")])
    assert done.exit_code == 1
    assert "0 blocked, 0 not provable here, 1 escaped: FAILED" in done.stdout
    assert json.loads((tmp_path / "e").read_text())["predicate"]["result"] == "FAILED"


@pytest.mark.model
def test_it_is_bound_to_a_model(default_model: Path) -> None:
    from freehold.cli.cmd_audit_egress import _model_digest

    assert re.fullmatch("[0-9a-f]{64}", _model_digest(str(default_model))["sha256"])


def test_help_imports_none_of_the_audits() -> None:
    done = CliRunner().invoke(main, ["audit", "--help"])
    assert done.exit_code == 0
    assert all(name in done.output for name in AUDITS)


@pytest.mark.parametrize("name", sorted(AUDITS))
def test_summaries_are_the_commands_own(name: str) -> None:
    from importlib import import_module

    command = getattr(import_module(AUDITS[name].module), AUDITS[name].attribute)
    assert command.get_short_help_str(limit=200).rstrip(".") == AUDITS[name].summary.rstrip(".")


def test_shown_layers_are_the_seal_s() -> None:
    assert SHOWN_LAYERS == OPTIONAL_LAYERS


def test_the_unit_calls_what_the_command_line_knows() -> None:
    command = re.search(r"^ExecStart=\S+/freehold (.+)$", UNIT, re.M)
    assert command is not None
    words = command.group(1).split()
    serve = main.get_command(click.Context(main), "serve")
    assert serve is not None
    known = {option for param in serve.params for option in (*param.opts, *param.secondary_opts)}
    assert words[:2] == ["serve", "--seal"]
    assert [word for word in words if word.startswith("--") and word not in known] == []


def test_the_unit_changes_nothing_else_of_the_command() -> None:
    plain = re.search(r"^ExecStart=(.+)$", (ROOT / "deploy" / "freehold.service").read_text("utf-8"), re.M)
    sealed = re.search(r"^ExecStart=(.+)$", UNIT, re.M)
    assert plain is not None
    assert sealed is not None
    assert sealed.group(1).replace(" --seal --seal-record ${LOGS_DIRECTORY}/attempts.jsonl", "") == plain.group(1)


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed here")
def test_systemd_understands_the_unit(tmp_path: Path) -> None:
    # The program need not be installed where the test runs; everything else is checked.
    (tmp_path / "freehold.service.d").mkdir()
    plain = (ROOT / "deploy" / "freehold.service").read_text("utf-8")
    for name, text in (("freehold.service", plain), ("freehold.service.d/seal.conf", UNIT)):
        (tmp_path / name).write_text(text.replace("/opt/freehold/bin/freehold serve", "/bin/true serve"))
    words = ["systemd-analyze", "verify", str(tmp_path / "freehold.service")]
    done = subprocess.run(
        words, capture_output=True, text=True, env={**os.environ, "SYSTEMD_UNIT_PATH": f"{tmp_path}:"}
    )
    assert (done.returncode, done.stderr) == (0, "")
