"""Evidence of an egress audit: what it binds, and that every change of it or of the installation is seen."""

from __future__ import annotations

import copy
import marshal
import py_compile
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from freehold.core.errors import GovernanceError, SignatureError
from freehold.governance.egress import evidence as evidence_module
from freehold.governance.egress.bytecode import foreign_bytecode
from freehold.governance.egress.evidence import PREDICATE, STATEMENT, check_evidence, code_digest, evidence
from freehold.governance.egress.inside import CONNECTED
from freehold.governance.egress.matrix import Cell, Matrix, Row, reason_of
from freehold.governance.egress.routes import ROUTES
from freehold.governance.egress.seal import LAYERS, NOT_COVERED
from freehold.governance.signing import SigningKey, signed

KEY = SigningKey.generate()
MODES = py_compile.PycInvalidationMode
REAL_CHECK = foreign_bytecode
NOW = datetime.now(timezone.utc)


def matrix(*, escaped: bool = False) -> Matrix:
    """All routes blocked, but for one that could not be tried, and one that got out if that is asked for."""
    rows = []
    for name in (CONNECTED, *(route.name for route in ROUTES)):
        here = name != "calls-x32"
        cells = {"open": Cell(here, None), "sealed": Cell(escaped and name == "tcp4", "refused")}
        rows.append(Row(name, name, "root", cells, reason_of(cells["open"])))
    return Matrix(rows, {"root": dict.fromkeys(LAYERS, "f")}, {"root": 3}, {"root": {"lo.sent": 0}})


def resigned(document: dict[str, Any], change: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
    """As whoever has the key could write it."""
    changed = copy.deepcopy(document)
    change(changed["predicate"])
    return signed(changed, KEY)


@pytest.fixture(autouse=True)
def _no_compiling(monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole package is compiled for each check otherwise; what that sees has tests of its own."""
    monkeypatch.setattr(evidence_module, "foreign_bytecode", lambda _: [])


@pytest.fixture
def document() -> dict[str, Any]:
    return evidence(matrix(), KEY, version="9.9", model={"name": "m", "sha256": "0" * 64}, days=2, now=NOW)


def test_good_evidence_has_no_problems(document: dict[str, Any]) -> None:
    check = check_evidence(document, KEY.public)
    assert check.problems == []
    assert check.notes == ["no model was given to compare with the one that it is bound to (--model)"]
    check = check_evidence(document, KEY.public, model="0" * 64)
    assert (check.problems, check.notes) == ([], [])


def test_it_is_a_test_result_about_code_and_model(document: dict[str, Any]) -> None:
    assert [entry["name"] for entry in document["subject"]] == ["freehold 9.9", "model m"]
    assert document["subject"][0]["digest"]["sha256"] == code_digest()
    predicate = document["predicate"]
    assert (predicate["result"], len(predicate["passedTests"])) == ("PASSED", len(ROUTES))
    assert predicate["warnedTests"] == ["calls-x32 as root"]
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


def test_another_boot_and_kernel_are_problems_unless_that_is_said(document: dict[str, Any]) -> None:
    moved = resigned(document, lambda told: told["machine"].update(kernel="1.0", boot_id="x"))
    assert len(check_evidence(moved, KEY.public).problems) == 2
    check = check_evidence(moved, KEY.public, model="0" * 64, elsewhere=True)
    assert (check.problems, len(check.notes)) == ([], 2)


def test_another_model_is_a_problem(document: dict[str, Any]) -> None:
    assert check_evidence(document, KEY.public, model="1" * 64).problems == ["it is bound to another model"]
    without = evidence(matrix(), KEY, version="9.9")
    assert check_evidence(without, KEY.public, model="1" * 64).problems == ["it is bound to no model"]


def leave_out(name: str) -> Callable[[dict[str, Any]], None]:
    def change(told: dict[str, Any]) -> None:
        told["routes"] = [row for row in told["routes"] if row["route"] != name]
        told["passedTests"].remove(f"{name} as root")

    return change


def get_out(told: dict[str, Any]) -> None:
    told["routes"][1]["tried"]["sealed"]["arrived"] = True


CHANGES: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "no rows": (lambda told: told.update(routes=[], passedTests=[], warnedTests=[]), "its rows say FAILED"),
    "a route left out": (leave_out("signal"), "not the routes that are known here"),
    "a row twice": (lambda told: told["routes"].append(told["routes"][0]), "not the routes that are known here"),
    "a token that arrived": (get_out, "is escaped, not blocked"),
    "a verdict": (lambda told: told["routes"][1].update(verdict="not provable here"), "is blocked, not not provable"),
    "a failed test": (lambda told: told.update(failedTests=["everything"]), "failedTests are not those of its rows"),
    "no passed tests": (lambda told: told.update(passedTests=[]), "passedTests are not those of its rows"),
    "a packet": (lambda told: told["packets_in_namespace"]["root"].update({"lo.sent": 1}), "its rows say FAILED"),
    "no counters": (lambda told: told["packets_in_namespace"].update(root={}), "no packets were counted"),
    "no attempts": (lambda told: told["attempts_recorded"].update(root=0), "no attempt was recorded"),
    "a layer": (lambda told: told["seals"]["root"].pop("landlock"), "sealed without landlock"),
    "coverage": (lambda told: told.update(not_covered=[]), "what is not covered"),
    "the policy": (lambda told: told["policy"].update(capabilities="all"), "not the one of its digest"),
    "time": (
        lambda told: told.update(expires=(NOW + timedelta(days=30_000)).isoformat()),
        "good for more than 3650 days",
    ),
}


@pytest.mark.parametrize("name", sorted(CHANGES))
def test_a_document_that_contradicts_itself_has_problems(document: dict[str, Any], name: str) -> None:
    change, problem = CHANGES[name]
    problems = check_evidence(resigned(document, change), KEY.public, model="0" * 64).problems
    assert any(problem in found for found in problems), problems


@pytest.mark.parametrize("wrong", [{}, {"predicate": 1}, {"_type": STATEMENT, "predicateType": PREDICATE}])
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


@pytest.mark.parametrize("mode", list(MODES))
@pytest.mark.parametrize("optimize", [0, 2])
def test_bytecode_of_other_code_is_seen(tmp_path: Path, mode: MODES, optimize: int) -> None:
    source = tmp_path / "a.py"
    source.write_text("def seal():\n    return 1\n")
    cached = Path(py_compile.compile(str(source), invalidation_mode=mode, optimize=optimize, doraise=True))
    assert foreign_bytecode(tmp_path) == []
    other = compile("def seal():\n    return 2\n", source, "exec", optimize=optimize)
    cached.write_bytes(cached.read_bytes()[:16] + marshal.dumps(other))
    assert foreign_bytecode(tmp_path) == [cached]
    cached.write_bytes(cached.read_bytes()[:16] + b"no code")
    assert foreign_bytecode(tmp_path) == [cached]


def test_bytecode_that_would_be_made_anew_is_not(tmp_path: Path) -> None:
    source = tmp_path / "a.py"
    source.write_text("x = 1")
    cached = Path(py_compile.compile(str(source), doraise=True))
    source.write_text("x = 22")
    assert foreign_bytecode(tmp_path) == []
    py_compile.compile(str(source), invalidation_mode=MODES.UNCHECKED_HASH, doraise=True)
    source.write_text("x = 3")
    assert foreign_bytecode(tmp_path) == [cached]  # never checked, so it would run


def test_foreign_bytecode_spoils_evidence(document: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evidence_module, "foreign_bytecode", lambda _: [Path("x.pyc")])
    problems = check_evidence(document, KEY.public).problems
    assert problems == ["Python would run bytecode that is not of the sources beside it: x.pyc"]
    with pytest.raises(GovernanceError, match=r"x\.pyc\. Remove it"):
        evidence(matrix(), KEY, version="9.9")


def test_the_package_runs_what_its_sources_say() -> None:
    assert REAL_CHECK(Path(evidence_module.__file__).parents[2]) == []
