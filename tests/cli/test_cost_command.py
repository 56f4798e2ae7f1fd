"""`freehold cost`: the reports in the documentation are what the command prints."""

from __future__ import annotations

import json
import re
from datetime import datetime, timezone
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from freehold.cli import cmd_cost
from freehold.cli.main import main
from freehold.governance.cost.prices import shipped_table
from freehold.governance.signing import SigningKey
from support.ledgers import example_month
from support.repository import ROOT

PAGE = ROOT / "docs" / "how-to" / "cost.md"


def cost(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["cost", *map(str, arguments)])


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)


@pytest.fixture(scope="module")
def ledger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return example_month(tmp_path_factory.mktemp("example") / "ledger", SigningKey.generate())


@pytest.fixture(autouse=True)
def december(monkeypatch: pytest.MonkeyPatch) -> None:
    """The month of the example is over."""
    monkeypatch.setattr(cmd_cost, "_now", lambda: datetime(2026, 12, 7, tzinfo=timezone.utc))


@pytest.fixture
def hardware(tmp_path: Path) -> Path:
    """The file of the documentation."""
    path = tmp_path / "hardware.toml"
    path.write_text(blocks("toml")[0])
    return path


def test_the_report_of_the_documentation(ledger: Path) -> None:
    done = cost("report", ledger, "--month", "2026-11")
    assert done.exit_code == 0, done.output
    assert done.stdout == blocks("text")[0]


def test_the_comparison_of_the_documentation(ledger: Path, hardware: Path) -> None:
    done = cost("compare", ledger, "--month", "2026-11", "--own", hardware)
    assert done.exit_code == 0, done.output
    assert done.stdout == blocks("text")[1]


def test_numbers_on_the_last_line(ledger: Path, hardware: Path) -> None:
    month = ("--month", "2026-11", "--json")
    report = json.loads(cost("report", ledger, *month).stdout.splitlines()[-1])
    found = json.loads(cost("compare", ledger, "--own", hardware, *month).stdout.splitlines()[-1])
    # All of it was answered by M3, so that its list price is what the records add up to.
    assert found["alternatives"][0]["usd"] == report["list_usd"]
    assert found["price_table"] == shipped_table().hash
    assert report["requests"] == 3000
    assert found["requests"] == 2950
    assert 0 < found["here"]["utilisation"] < 1


def test_other_months_are_empty(ledger: Path, hardware: Path) -> None:
    done = cost("report", ledger, "--month", "2026-10", "--json")
    assert json.loads(done.stdout.splitlines()[-1])["requests"] == 1
    assert json.loads(done.stdout.splitlines()[-1])["notes"] == [
        "the ledger began at 2026-10-30 12:00 UTC, so that only the time since then counts"
    ]
    done = cost("compare", ledger, "--month", "2026-10", "--own", hardware)
    assert done.exit_code == 0
    assert "not known: no request with tokens was answered here" in done.stdout
    assert "power alone" not in done.stdout


def test_a_month_that_is_not_over_counts_until_now(
    ledger: Path, hardware: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cmd_cost, "_now", lambda: datetime(2026, 11, 6, tzinfo=timezone.utc))
    done = cost("compare", ledger, "--month", "2026-11", "--own", hardware, "--json")
    body = json.loads(done.stdout.splitlines()[-1])
    assert body["end"] == "2026-11-06T00:00:00+00:00"
    assert body["notes"] == [
        "2026-11 is not over, so that only the time until now counts",
        "the period has 120.00 hours; what is said of a month is extrapolated from it",
    ]
    assert "Note: 2026-11 is not over" in done.stdout
    for month in ("2026-12", "9999-12", "0001-01"):
        done = cost("report", ledger, "--month", month)
        assert done.exit_code == 1
        assert isinstance(done.exception, SystemExit)


def test_a_plot(ledger: Path, hardware: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    out = tmp_path / "cost.png"
    done = cost("compare", ledger, "--month", "2026-11", "--own", hardware, "--plot", out)
    assert done.exit_code == 0, done.output
    assert out.read_bytes().startswith(b"\x89PNG")
    assert cost("compare", ledger, "--plot", out).exit_code == 2


def test_the_prices_of_the_documentation_are_taken(ledger: Path, tmp_path: Path) -> None:
    prices = tmp_path / "prices.toml"
    prices.write_text(blocks("toml")[1])
    done = cost("prices", "minimax-m3", "--prices", prices)
    assert "minimax:minimax-m3  input 0.25, cached 0.05, output 1.00 (>512,000: 2.00)" in done.stdout
    assert "contract 17" in done.stdout
    own = json.loads(cost("compare", ledger, "--prices", prices, "--json").stdout.splitlines()[-1])
    shipped = json.loads(cost("compare", ledger, "--json").stdout.splitlines()[-1])
    assert float(own["alternatives"][0]["usd"]) < float(shipped["alternatives"][0]["usd"])


def test_unknown_models_are_refused_with_similar_ones(ledger: Path) -> None:
    done = cost("compare", ledger, "--alternatives", "MiniMaxAI/MiniMax-M3")
    assert done.exit_code == 1
    assert "minimax:minimax-m3" in done.stderr
    assert cost("compare", ledger, "--alternatives", ",").exit_code == 2


def test_all_models_are_listed() -> None:
    lines = cost("prices").stdout.splitlines()
    assert shipped_table().hash in lines[0]
    assert "anthropic:claude-opus-4-8" in lines
