"""A report as a table, as Markdown and as JSON: what goes where."""

from __future__ import annotations

import json

import pytest

from freehold.bench.report import SCHEMA, Report, show, to_markdown

REPORT = Report(
    suite="kernels",
    title="a title",
    head=("a machine",),
    columns=("kernel", "ratio"),
    rows=[["linear", "2.00"], ["a|b", "0.50"]],
    notes=("a note",),
    data={"rows": [{"ratio": 2.0}]},
)


def test_table_alone_on_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    show(REPORT, as_json=False, markdown=False)
    out, err = capsys.readouterr()
    assert err == ""
    assert out.splitlines()[0] == "a machine"
    assert out.splitlines()[-1] == "- a note"
    for text in ("a title", "kernel", "linear", "2.00"):
        assert text in out
    assert "{" not in out


@pytest.mark.parametrize("markdown", [False, True])
def test_json_is_the_only_line_of_stdout(capsys: pytest.CaptureFixture[str], markdown: bool) -> None:
    show(REPORT, as_json=True, markdown=markdown)
    out, err = capsys.readouterr()
    assert json.loads(out) == {
        "suite": "kernels",
        "schema": SCHEMA,
        "rows": [{"ratio": 2.0}],
        "notes": ["a note"],
    }
    assert len(out.splitlines()) == 1
    assert "linear" in err


def test_markdown() -> None:
    assert to_markdown(REPORT).splitlines() == [
        "| kernel | ratio |",
        "| :-- | --: |",
        "| linear | 2.00 |",
        "| a\\|b | 0.50 |",
        "",
        "- a machine",
        "- a note",
    ]


def test_figures_that_json_lacks_are_not_written() -> None:
    broken = Report("kernels", "", (), ("a",), [], data={"value": float("nan")})
    with pytest.raises(ValueError, match="not JSON compliant"):
        show(broken, as_json=True, markdown=True)


def test_a_row_has_a_cell_for_each_column() -> None:
    with pytest.raises(AssertionError):
        Report("kernels", "", (), ("a", "b"), [["1"]])
