"""The kernel suite: its cases compute the same on both sides, and its report holds every figure."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
import torch
from click.testing import CliRunner

from freehold.bench import floors as floors_module
from freehold.bench import suite_kernels
from freehold.bench.case import Case, Turns, copies_for
from freehold.bench.cases_attention import attention_cases
from freehold.bench.cases_dense import dense_cases
from freehold.cli.main import main
from freehold.core.errors import FreeholdError

COLD = 2**20


def test_every_rival_gives_our_values() -> None:
    names = []
    for case in (*dense_cases(rows=5, cold_nbytes=COLD, quick=True), *attention_cases(cold_nbytes=COLD, quick=True)):
        case.check()
        names.append(case.name.partition(",")[0])
        assert case.flops > 0
        assert case.nbytes >= 0
    assert {"linear", "rms_norm", "attend dense", "attend sparse", "select"} == set(names)


def case_of(ours: torch.Tensor, theirs: torch.Tensor, tolerance: float) -> Case:
    return Case("k", "s", "t", 1.0, 0.0, lambda: ours, {"r": lambda: theirs}, tolerance=tolerance)


@pytest.mark.parametrize(
    ("theirs", "message"),
    [
        (torch.tensor([2.0, 1.001]), "k, s: r differs from ours by 5.0e-04"),
        (torch.tensor([2.0, float("nan")]), "r differs from ours by nan"),
        (torch.tensor([2.0]), r"k: r gives shape \(1,\), we \(2,\)"),
    ],
)
def test_a_rival_that_computes_something_else_is_refused(theirs: torch.Tensor, message: str) -> None:
    with pytest.raises(FreeholdError, match=message):
        case_of(torch.tensor([2.0, 1.0]), theirs, 1e-4).check()


def test_integers_may_differ_in_a_part_of_places() -> None:
    ours, theirs = torch.arange(10, dtype=torch.int32), torch.arange(10, dtype=torch.int32)
    theirs[3] = 7
    case_of(ours, theirs, 0.11).check()
    with pytest.raises(FreeholdError, match=r"differs from ours by 1\.0e-01"):
        case_of(ours, theirs, 0.09).check()


def test_copies_fill_what_caches_hold() -> None:
    assert [copies_for(nbytes, 100) for nbytes in (100, 99, 40, 1000)] == [1, 2, 3, 1]
    assert copies_for(5, 0) == 1
    turns = Turns(3)
    assert [turns() for _ in range(7)] == [0, 1, 2, 0, 1, 2, 0]


@pytest.fixture
def two_cases(monkeypatch: pytest.MonkeyPatch) -> None:
    """The suite with one product, bound by reading and by computing, and small limits."""

    def cases(quick: bool) -> Iterator[Case]:
        yield from list(dense_cases(rows=64, cold_nbytes=COLD, quick=quick))[:2]

    monkeypatch.setattr(suite_kernels, "_cases", cases)
    monkeypatch.setattr(floors_module, "READ_NBYTES", 8 * 2**20)
    monkeypatch.setattr(floors_module, "MATRIX_SIZE", 128)


@pytest.mark.usefixtures("two_cases")
def test_json_of_the_command() -> None:
    done = CliRunner().invoke(main, ["bench", "kernels", "--quick", "--threads", "2", "--json"], catch_exceptions=False)
    assert done.exit_code == 0
    report = json.loads(done.stdout.splitlines()[-1])
    assert len(done.stdout.splitlines()) == 1
    assert (report["suite"], report["schema"]) == ("kernels", 1)
    assert [floor["threads"] for floor in report["floors"]] == [1, 2]
    cases = [(row["shape"].partition(" ")[0], row["threads"]) for row in report["rows"]]
    assert cases == [("1", 1), ("1", 2), ("64", 1), ("64", 2)]
    for row in report["rows"]:
        seconds = row["seconds"]
        work = row["bytes"] if row["unit"] == "GB/s" else row["flops"]
        assert row["ours"] == pytest.approx(work / seconds["ours"]["median"] / 1e9)
        assert row["limit"] == pytest.approx(work / row["limit_seconds"] / 1e9)
        assert row["speed_ratio"] == pytest.approx(row["ours"] / row["theirs"])
        assert len(seconds["ours"]["samples"]) == len(seconds["theirs"]["samples"]) == 2
    assert report["machine"]["cores"] >= 1
    assert any("not for quoting" in note for note in report["notes"])
    assert "F.linear" in done.stderr


@pytest.mark.usefixtures("two_cases")
def test_markdown_of_the_command() -> None:
    done = CliRunner().invoke(main, ["bench", "kernels", "--quick", "--threads", "1", "--rounds", "1", "--markdown"])
    lines = done.stdout.splitlines()
    assert lines[0].startswith("| kernel | shape | type | threads |")
    assert [line.split(" | ")[0] for line in lines[2:4]] == ["| linear, SmolLM2 gate"] * 2
    assert any(line.startswith("- limits, 1 thread: reads ") for line in lines)
