"""A suite's result: a table for people, one JSON object for programs, a Markdown table for documents."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import click

SCHEMA = 1
"""Version of the JSON object; it rises when a key changes its meaning or goes away."""

_WIDTH = 180  # columns where stdout is no terminal


@dataclass(frozen=True, slots=True)
class Report:
    """head: lines above the table, such as the machine. columns, rows: the table, cells as text; the first column
    is a name. notes: what a reader has to know to read the figures. data: the figures, as JSON values.
    text_columns: so many columns from the left hold words, and are aligned to the left."""

    suite: str
    title: str
    head: Sequence[str]
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = ()
    data: dict[str, Any] = field(default_factory=dict)
    text_columns: int = 1

    def __post_init__(self) -> None:
        for row in self.rows:
            assert len(row) == len(self.columns), (row, self.columns)

    def as_json(self) -> dict[str, Any]:
        """{"suite", "schema", "notes"} and the data."""
        return {"suite": self.suite, "schema": SCHEMA, **self.data, "notes": list(self.notes)}


def show(report: Report, *, as_json: bool, markdown: bool) -> None:
    """Writes the report to stdout: the table, or the Markdown text. With as_json, that goes to stderr, and stdout
    gets one line, the JSON object."""
    if markdown:
        click.echo(to_markdown(report), err=as_json)
    else:
        _print_table(report, err=as_json)
    if as_json:
        click.echo(json.dumps(report.as_json(), allow_nan=False))


def to_markdown(report: Report) -> str:
    """The table in GitHub's Markdown, the head and the notes below it as a list; figures are right-aligned."""
    lines = [
        _markdown_row(report.columns),
        _markdown_row([":--" if number < report.text_columns else "--:" for number in range(len(report.columns))]),
    ]
    lines += [_markdown_row(row) for row in report.rows]
    return "\n".join([*lines, "", *(f"- {line}" for line in (*report.head, *report.notes))])


def _markdown_row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"


def _print_table(report: Report, *, err: bool) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(stderr=err, highlight=False)
    if not console.is_terminal:
        console = Console(stderr=err, highlight=False, width=_WIDTH)
    table = Table(title=report.title, title_justify="left")
    for number, column in enumerate(report.columns):
        table.add_column(Text(column), justify="left" if number < report.text_columns else "right")
    for row in report.rows:
        table.add_row(*(Text(cell) for cell in row))
    for line in report.head:
        console.print(Text(line))
    console.print(table)
    for line in report.notes:
        # Not wrapped: a line may hold a command, which is copied whole.
        console.print(Text(f"- {line}"), soft_wrap=True)
