"""Gradients beside torch's: both sides compute the same, and whatever does not is refused."""

from __future__ import annotations

import json

import pytest
import torch
from click.testing import CliRunner

from freehold.bench import suite_backward
from freehold.bench.suite_backward import BackwardSettings, run
from freehold.cli.main import main
from freehold.core.errors import FreeholdError

SMALL = {"heads": 4, "kv_heads": 2, "head_dim": 32, "block_tokens": 16, "topk": 3, "threads": 1, "rounds": 2}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_both_sides_of_all_lengths(dtype: torch.dtype) -> None:
    report = run(BackwardSettings(tokens=(80, 200), dtype=dtype, **SMALL), lambda _: None)
    rows = report.data["rows"]
    assert [(row["tokens"], row["rival_groups"], row["peak_bytes"] is None) for row in rows] == [
        (80, 2, True),
        (200, 2, False),
    ]
    assert all(row["speed_ratio"] > 0 for row in rows)


def test_a_long_rival_is_measured_on_one_group(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(suite_backward, "_ONCE", 100)
    (row,) = run(BackwardSettings(tokens=(130,), **SMALL), lambda _: None).data["rows"]
    assert row["rival_groups"] == 1
    assert len(set(row["seconds"]["theirs"]["samples"])) == 1


@pytest.mark.parametrize("faster", ["float32", "bfloat16"])
def test_a_long_rival_is_of_the_type_that_is_faster_here(monkeypatch: pytest.MonkeyPatch, faster: str) -> None:
    monkeypatch.setattr(suite_backward, "_ONCE", 100)
    monkeypatch.setattr(suite_backward, "fastest", lambda ways: faster if len(ways) > 1 else next(iter(ways)))
    (row,) = run(BackwardSettings(tokens=(130,), **SMALL), lambda _: None).data["rows"]
    assert row["rival"] == faster


def test_another_gradient_is_no_rival(monkeypatch: pytest.MonkeyPatch) -> None:
    ours = suite_backward._Case.ours
    monkeypatch.setattr(suite_backward._Case, "ours", lambda self: tuple(1.2 * x for x in ours(self)))
    with pytest.raises(FreeholdError, match="differs from ours"):
        run(BackwardSettings(tokens=(80,), **SMALL), lambda _: None)


def test_the_command_gives_json() -> None:
    done = CliRunner().invoke(main, ["bench", "backward", "--tokens", "32", "--rounds", "1", "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout.splitlines()[-1])["suite"] == "backward"
