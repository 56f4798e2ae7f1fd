"""`freehold keys`: who may use this machine's server, for what, and how much."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import click

from freehold.cli.quantities import Duration
from freehold.core.errors import ConfigError

# Shown in the help only, which must not import the server; a test holds them equal to the server's own.
SHOWN_SCOPES = ("inference", "metrics", "admin")
SHOWN_PERIODS = ("day", "month")

Command = Callable[..., Any]

_file_option = click.option(
    "--file",
    "path",
    type=click.Path(path_type=Path, dir_okay=False),
    help="The key file; by default `keys.json` in FREEHOLD_HOME.",
)
_json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text.")


def _place(path: Path | None) -> Path:
    from freehold.loading.home import keys_file

    return keys_file() if path is None else path


@click.group()
def keys() -> None:
    """Make, list and revoke the API keys of servers.

    Running servers of the same FREEHOLD_HOME notice changes within a second.
    """


@keys.command()
@click.argument("name")
@click.option(
    "--scopes",
    default="inference",
    show_default=True,
    help=f"What the key is for, separated by commas: {', '.join(SHOWN_SCOPES)}.",
)
@click.option("--requests-per-minute", type=click.INT, help="Most requests in a minute; left out: any number.")
@click.option("--tokens-per-minute", type=click.INT, help="Most tokens, of prompts and answers, in a minute.")
@click.option("--budget-tokens", type=click.INT, help="Most tokens, of prompts and answers, in a budget period.")
@click.option(
    "--budget-period",
    type=click.Choice(SHOWN_PERIODS),
    help="A calendar day or month, in UTC.",
    show_default=SHOWN_PERIODS[0],
)
@click.option("--expires", help="When the key ends: a date or time (2027-01-31), or from now (90d). Left out: never.")
@click.option(
    "--priority", type=click.INT, default=0, show_default=True, help="Lower is sooner; the best its requests may have."
)
@_file_option
@_json_option
def add(name: str, scopes: str, expires: str | None, path: Path | None, as_json: bool, **fields: Any) -> None:
    """Make a key and show it, this once."""
    from freehold.server.operation.key_file import add_key

    if fields["budget_period"] is None:
        fields["budget_period"] = SHOWN_PERIODS[0]
    elif fields["budget_tokens"] is None:
        raise click.UsageError("--budget-period needs --budget-tokens")
    now = datetime.now(timezone.utc)
    place = _place(path)
    fields["expires"] = None if expires is None else _expiry(expires, now)
    wanted = tuple(dict.fromkeys(word.strip() for word in scopes.split(",")))
    key = add_key(place, name, now=now, scopes=wanted, **fields)
    if as_json:
        click.echo(json.dumps({"name": name, "key": key, "file": str(place)}))
        return
    click.echo(key)
    click.echo(f"This is the only time the key {name!r} is shown; {place} holds a hash of it.", err=True)


def _expiry(text: str, now: datetime) -> str:
    """A time in ISO 8601. Raises ConfigError for what is no time, and for one that has passed."""
    from freehold.server.operation.key_file import parse_time

    try:
        time = now + timedelta(seconds=Duration().convert(text, None, None))
    except click.BadParameter:
        time = parse_time(text, "--expires")
    except OverflowError as error:
        raise ConfigError(f"--expires is {text!r}, which no calendar holds") from error
    if time <= now:
        raise ConfigError(f"--expires is {text!r}, which has passed")
    return time.astimezone(timezone.utc).isoformat(timespec="seconds")


@keys.command("list")
@click.option("--all", "with_revoked", is_flag=True, help="Show revoked keys too.")
@_file_option
@_json_option
def list_keys(with_revoked: bool, path: Path | None, as_json: bool) -> None:
    """List the keys; never the keys themselves, which are not kept."""
    from freehold.server.operation.key_file import read_keys

    now = datetime.now(timezone.utc)
    place = _place(path)
    shown = [record for record in read_keys(place) if with_revoked or record.revoked is None]
    if as_json:
        entries = [_entry(record, record.state(now)) for record in shown]
        click.echo(json.dumps({"file": str(place), "keys": entries}))
        return
    if not shown:
        click.echo(f"There are no keys in {place}.", err=True)
    for record in shown:
        entry = _entry(record, record.state(now))
        words = [f"{field}={value}" for field, value in entry.items() if field not in ("name", "state", "scopes")]
        click.echo(f"{record.name}  {entry['state']}  {','.join(record.scopes)}  {' '.join(words)}".rstrip())


def _entry(record: Any, state: str) -> dict[str, Any]:
    """What may be told about a key; limits that it does not have are left out."""
    entry: dict[str, Any] = {"name": record.name, "state": state, "scopes": list(record.scopes), "id": record.id}
    for field in ("created", "expires", "revoked", "requests_per_minute", "tokens_per_minute", "budget_tokens"):
        if getattr(record, field) is not None:
            entry[field] = getattr(record, field)
    if record.budget_tokens is not None:
        entry["budget_period"] = record.budget_period
    return entry | {"priority": record.priority}


@keys.command()
@click.argument("name")
@_file_option
def revoke(name: str, path: Path | None) -> None:
    """Make a key useless, at once and for good."""
    from freehold.server.operation.key_file import revoke_key

    revoke_key(_place(path), name, now=datetime.now(timezone.utc))
    click.echo(f"Revoked {name!r}; running servers notice within a second.", err=True)
