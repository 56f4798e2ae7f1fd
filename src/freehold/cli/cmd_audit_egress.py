"""`freehold audit egress`: the matrix of escape routes, run here and now, as signed evidence."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from freehold.core.errors import ConfigError, GovernanceError

if TYPE_CHECKING:
    from freehold.governance.egress.matrix import Matrix

_MARKS = {True: "OUT", False: "-"}
_json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object on the last line.")


@click.group(invoke_without_command=True)
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="Where to write the signed evidence.")
@click.option(
    "--key",
    type=click.Path(path_type=Path, dir_okay=False),
    help="The private key (PEM) that signs, made where there is none; left out: `audit-key.pem` in FREEHOLD_HOME.",
)
@click.option("--model", "-m", help="A model whose digest the evidence is bound to: a pulled name, directory or file.")
@click.option(
    "--days",
    type=click.FloatRange(min=0, max=3650, min_open=True),
    default=30,
    show_default=True,
    help="How long it is good for.",
)
@click.option("--layers/--no-layers", default=True, help="Try each layer of the seal alone as well.", show_default=True)
@_json_option
@click.pass_context
def egress(
    context: click.Context,
    out: Path | None,
    key: Path | None,
    model: str | None,
    days: float,
    layers: bool,
    as_json: bool,
) -> None:
    """Try every way out of a sealed process, and sign what happened.

    Each route is tried without the lock first, and must then really arrive at a listener; only such a route can count
    as blocked. Run by root, everything is tried as root and as nobody. Status 0: nothing got out of the seal.
    """
    if context.invoked_subcommand is not None:
        return
    from freehold import __version__
    from freehold.governance.egress.evidence import evidence
    from freehold.governance.egress.matrix import run_matrix
    from freehold.governance.signing import SigningKey
    from freehold.loading.home import freehold_home

    signing = SigningKey.load_or_create(freehold_home() / "audit-key.pem" if key is None else key)
    weights = None if model is None else _model_digest(model)
    matrix = run_matrix(single_layers=layers, progress=lambda text: click.echo(f"trying as {text}", err=True))
    document = evidence(matrix, signing, version=__version__, model=weights, days=days)
    if out is not None:
        try:
            out.write_text(json.dumps(document, indent=1) + "\n", "utf-8")
        except OSError as error:
            raise ConfigError(f"the evidence cannot be written to {out}: {error.strerror}") from error
    for line in _table(matrix):
        click.echo(line)
    _say_the_rest(document, out, signing.public.id)
    if as_json:
        click.echo(json.dumps(document))
    if not matrix.holds:
        raise GovernanceError("The seal does not hold on this machine; see the rows above.")


@egress.command()
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@click.option(
    "--key", type=click.Path(path_type=Path, dir_okay=False), help="The public key (PEM) that must have signed it."
)
@click.option("--model", "-m", help="The model that it must be bound to: a pulled name, directory or file.")
@click.option(
    "--elsewhere", is_flag=True, help="It was made on another machine, kernel or boot; that is then only noted."
)
@_json_option
def verify(file: Path, key: Path | None, model: str | None, elsewhere: bool, as_json: bool) -> None:
    """Check evidence against the key, the code that is installed here, and this machine."""
    from freehold.governance.egress.evidence import check_evidence
    from freehold.governance.signing import PublicKey

    document = _read(file)
    public = None if key is None else PublicKey.read(key)
    weights = None if model is None else _model_digest(model)["sha256"]
    check = check_evidence(document, public, model=weights, elsewhere=elsewhere)
    click.echo(f"signature of key {check.key.id} fits")
    for text in (*(f"problem: {problem}" for problem in check.problems), *(f"note: {note}" for note in check.notes)):
        click.echo(text)
    predicate = document["predicate"]
    click.echo(f"made {predicate['made']}, good until {predicate['expires']}; {predicate['attestedBy']}")
    click.echo("It does not cover:")
    for text in predicate["not_covered"]:
        click.echo(f"  {text}")
    if as_json:
        told = {"ok": not check.problems, "key": check.key.id, "problems": check.problems, "notes": check.notes}
        click.echo(json.dumps(told))
    if check.problems:
        raise GovernanceError(f"{file} proves nothing here: {'; '.join(check.problems)}.")


def _read(file: Path) -> dict[str, Any]:
    try:
        document = json.loads(file.read_text("utf-8"))
    except OSError as error:
        raise ConfigError(f"the evidence {file} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise GovernanceError(f"{file} is no JSON document: {error}.") from error
    if not isinstance(document, dict):
        raise GovernanceError(f"{file} is no JSON object.")
    return document


def _model_digest(model: str) -> dict[str, str]:
    """The name and digest of a model's files. Raises as opening it does."""
    from freehold.loading.checkpoint import open_checkpoint
    from freehold.loading.content_digest import content_digest
    from freehold.loading.registry import resolve

    path = resolve(model)
    with open_checkpoint(path) as checkpoint:
        return {"name": model, "sha256": content_digest(checkpoint)}


def _table(matrix: Matrix) -> list[str]:
    """One line for each route and user; OUT where the token arrived."""
    modes = list(dict.fromkeys(mode for row in matrix.rows for mode in row.cells))
    modes.sort(key=lambda mode: (mode != "open", mode == "sealed"))
    what = max(len(row.what) for row in matrix.rows)
    user = max(4, *(len(row.user) for row in matrix.rows))
    lines = [f"{'route':{what}}  {'user':{user}}  {'  '.join(modes)}  verdict"]
    for row in matrix.rows:
        cells = "  ".join(
            f"{_MARKS[row.cells[mode].arrived] if mode in row.cells else '':{len(mode)}}" for mode in modes
        )
        why = f": {row.reason}" if row.reason else ""
        lines.append(f"{row.what:{what}}  {row.user:{user}}  {cells}  {row.verdict}{why}")
    return lines


def _say_the_rest(document: Mapping[str, Any], out: Path | None, key: str) -> None:
    predicate = document["predicate"]
    counts = [len(predicate[name]) for name in ("passedTests", "warnedTests", "failedTests")]
    click.echo()
    click.echo(f"{counts[0]} blocked, {counts[1]} not provable here, {counts[2]} escaped: {predicate['result']}")
    click.echo("open: without a lock. A route counts as blocked only if its token arrived then. -: nothing arrived.")
    for user, number in predicate["attempts_recorded"].items():
        packets = sum(predicate["packets_in_namespace"][user].values())
        click.echo(f"as {user}: {number} attempts were recorded, {packets} packets counted in the sealed namespace")
    click.echo(f"{predicate['attestedBy']}. It does not cover:")
    for text in predicate["not_covered"]:
        click.echo(f"  {text}")
    if out is not None:
        click.echo(f"written to {out}, signed by key {key}")
