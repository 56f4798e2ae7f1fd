"""`freehold cost`: what the requests of a ledger cost, and what they would have cost elsewhere."""

from __future__ import annotations

import json
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING

import click

from freehold.cli.ledger import price_table

if TYPE_CHECKING:
    from freehold.governance.cost.traffic import Period, Traffic

_ledger = click.argument("ledger", type=click.Path(path_type=Path))
_json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object on the last line.")
_month_option = click.option(
    "--month", help="Only requests that ended in it, UTC, like 2026-11; left out: all of them."
)
_prices_option = click.option(
    "--prices",
    "prices_path",
    type=click.Path(path_type=Path),
    help="TOML file with prices of your own, each with its source and date.",
)


@click.group()
def cost() -> None:
    """What requests cost, here and elsewhere."""


def _traffic(ledger: Path, month: str | None, endpoint: str | None = None) -> Traffic:
    from freehold.governance.cost.traffic import Period, read_traffic
    from freehold.governance.ledger.files import LedgerFiles

    period: Period | None = None if month is None else Period.month(month)
    return read_traffic(
        LedgerFiles(ledger), period, lambda record: endpoint is None or record.endpoint == endpoint, _now()
    )


def _now() -> datetime:
    return datetime.now(timezone.utc)


@cost.command()
@_ledger
@_month_option
@_json_option
def report(ledger: Path, month: str | None, as_json: bool) -> None:
    """What a ledger's requests cost, by the prices recorded with them.

    Charged is what endpoints took; list is what the model's own API would have taken for what own hardware answered.
    """
    from freehold.governance.cost.report import cost_report
    from freehold.governance.cost.text import report_text

    found = cost_report(_traffic(ledger, month))
    click.echo(report_text(found), nl=False)
    if as_json:
        click.echo(json.dumps(found.body()))


@cost.command()
@_ledger
@_month_option
@click.option(
    "--alternatives",
    default="minimax-m3,claude-opus-4-8,gpt-5.5",
    show_default=True,
    help="Models, separated by commas; provider:model for one at a certain host.",
)
@click.option("--own", "own_path", type=click.Path(path_type=Path), help="TOML file with own hardware and its power.")
@click.option("--endpoint", help="Only requests that were answered there; 'local' is here.")
@_prices_option
@click.option("--plot", type=click.Path(path_type=Path, dir_okay=False), help="Draw cost by load into this file.")
@_json_option
def compare(
    ledger: Path,
    month: str | None,
    alternatives: str,
    own_path: Path | None,
    endpoint: str | None,
    prices_path: Path | None,
    plot: Path | None,
    as_json: bool,
) -> None:
    """What the same requests would have cost elsewhere, and what they cost here.

    List prices of the table; each request's own length decides on its tier. With --own also the load from which own
    hardware is cheaper.
    """
    from freehold.governance.cost.compare import compare as compare_traffic
    from freehold.governance.cost.hardware import read_hardware
    from freehold.governance.cost.text import comparison_text

    names = [name.strip() for name in alternatives.split(",") if name.strip()]
    if not names:
        raise click.UsageError("--alternatives names no model")
    if plot is not None and own_path is None:
        raise click.UsageError("--plot draws own hardware beside the others; it needs --own")
    hardware = None if own_path is None else read_hardware(own_path)
    found = compare_traffic(_traffic(ledger, month, endpoint), price_table(prices_path), names, hardware)
    click.echo(comparison_text(found), nl=False)
    if plot is not None:
        from freehold.governance.cost.plot import plot_comparison

        plot_comparison(found, plot)
        click.echo(f"Wrote {plot}", err=True)
    if as_json:
        click.echo(json.dumps(found.body()))


@cost.command()
@click.argument("names", metavar="[MODEL]...", nargs=-1)
@_prices_option
@_json_option
def prices(names: tuple[str, ...], prices_path: Path | None, as_json: bool) -> None:
    """Show the price table: its date, its hash, and models' prices.

    Without MODEL the names of all models.
    """
    from freehold.governance.cost.text import entry_text

    table = price_table(prices_path)
    entries = [table.require(name) for name in names]
    click.echo(f"Prices of {table.day}, {table.source}; SHA-256 {table.hash}")
    for entry in entries:
        click.echo(entry_text(entry))
    if not names:
        for name in sorted({entry.id for entry in table.entries}):
            click.echo(name)
    if as_json:
        shown = [entry.body() for entry in (entries if names else table.entries)]
        click.echo(json.dumps({"date": table.day.isoformat(), "hash": table.hash, "entries": shown}))
