"""Evidence of an egress audit: what it binds, and that every change of it or of the installation is seen."""

from __future__ import annotations

import copy
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from freehold.core.errors import GovernanceError, SignatureError
from freehold.governance.egress import evidence as evidence_module
from freehold.governance.egress.evidence import check_evidence, code_digest, evidence
from freehold.governance.egress.matrix import Cell, Matrix, Row
from freehold.governance.egress.seal import NOT_COVERED
from freehold.governance.signing import SigningKey, signed

KEY = SigningKey.generate()
NOW = datetime.now(timezone.utc)


def matrix(*, escaped: bool = False) -> Matrix:
    rows = [
        Row("tcp4", "TCP", "root", {"open": Cell(True, None), "sealed": Cell(escaped, "refused")}, None),
        Row(
            "x32", "x32", "root", {"open": Cell(False, "no"), "sealed": Cell(False, "no")}, "without the lock, too: no"
        ),
    ]
    return Matrix(rows, {"root": {"filter": "f"}}, {"root": 3}, {"root": {"lo.sent": 0}})


@pytest.fixture
def document() -> dict[str, Any]:
    return evidence(matrix(), KEY, version="9.9", model={"name": "m", "sha256": "0" * 64}, days=2, now=NOW)


def test_good_evidence_has_no_problems(document: dict[str, Any]) -> None:
    check = check_evidence(document, KEY.public)
    assert (check.problems, check.notes) == ([], [])


def test_it_is_a_test_result_about_code_and_model(document: dict[str, Any]) -> None:
    assert [entry["name"] for entry in document["subject"]] == ["freehold 9.9", "model m"]
    assert document["subject"][0]["digest"]["sha256"] == code_digest()
    predicate = document["predicate"]
    assert (predicate["result"], predicate["passedTests"]) == ("PASSED", ["tcp4 as root"])
    assert predicate["warnedTests"] == ["x32 as root"]
    assert predicate["not_covered"] == list(NOT_COVERED)
    assert len(predicate["machine"]["boot_id"]) == 36


def test_an_escape_is_a_failure() -> None:
    document = evidence(matrix(escaped=True), KEY, version="9.9")
    assert document["predicate"]["failedTests"] == ["tcp4 as root"]
    assert check_evidence(document, KEY.public).problems == ["its result is FAILED"]


@pytest.mark.parametrize(
    "path",
    [
        ("predicate", "result"),
        ("predicate", "expires"),
        ("predicate", "machine", "kernel"),
        ("predicate", "not_covered"),
        ("predicate", "routes"),
        ("subject",),
        ("_type",),
    ],
)
def test_every_edit_is_seen(document: dict[str, Any], path: tuple[str, ...]) -> None:
    edited = copy.deepcopy(document)
    place = edited
    for name in path[:-1]:
        place = place[name]
    place[path[-1]] = "edited"
    with pytest.raises(SignatureError):
        check_evidence(edited, KEY.public)


def test_another_key_is_a_problem(document: dict[str, Any]) -> None:
    other = SigningKey.generate().public
    assert check_evidence(document, other).problems == [f"it was signed by key {KEY.public.id}, not by {other.id}"]


def test_without_a_key_that_is_said(document: dict[str, Any]) -> None:
    check = check_evidence(document)
    assert check.problems == []
    assert "anybody could have signed it" in check.notes[0]


@pytest.mark.parametrize(("later", "problem"), [(3, "it has expired"), (-1, "it was made in the future")])
def test_time_runs_out(document: dict[str, Any], later: int, problem: str) -> None:
    assert check_evidence(document, KEY.public, now=NOW + timedelta(days=later)).problems == [problem]


def test_other_code_is_a_problem(document: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evidence_module, "code_digest", lambda: "1" * 64)
    assert check_evidence(document, KEY.public).problems == ["it was made with other code than is installed here"]


def test_another_policy_is_a_problem(document: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evidence_module, "policy_digest", lambda: "1" * 64)
    assert check_evidence(document, KEY.public).problems == ["the seal's policy was another one"]


def test_another_boot_and_kernel_are_notes(document: dict[str, Any]) -> None:
    moved = copy.deepcopy(document)
    moved["predicate"]["machine"] |= {"kernel": "1.0", "boot_id": "x"}
    check = check_evidence(signed(moved, KEY), KEY.public)
    assert check.problems == []
    assert len(check.notes) == 2


@pytest.mark.parametrize("wrong", [{}, {"predicate": 1}, {"_type": "x", "predicateType": "y"}])
def test_other_signed_documents_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(GovernanceError, match="no evidence of an egress audit"):
        check_evidence(signed(wrong, KEY))


def test_another_type_is_refused(document: dict[str, Any]) -> None:
    with pytest.raises(GovernanceError, match="its type is"):
        check_evidence(signed({**document, "predicateType": "y"}, KEY))


def test_the_code_s_digest_is_of_names_and_bytes(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("1")
    first = code_digest(tmp_path)
    (tmp_path / "__pycache__").mkdir()
    (tmp_path / "__pycache__" / "a.pyc").write_text("x")
    assert code_digest(tmp_path) == first
    (tmp_path / "a.py").write_text("2")
    second = code_digest(tmp_path)
    (tmp_path / "a.py").rename(tmp_path / "b.py")
    assert len({first, second, code_digest(tmp_path)}) == 3
