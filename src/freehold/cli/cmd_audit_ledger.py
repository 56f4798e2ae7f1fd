"""`freehold audit verify`, `prove`, `erase` and others: what a ledger of requests shows, and to whom."""

from __future__ import annotations

import json
import shlex
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from freehold.cli.ledger import ledger_key
from freehold.cli.quantities import Duration
from freehold.core.errors import GovernanceError
from freehold.core.printable import printable

if TYPE_CHECKING:
    from freehold.governance.ledger.verify import AgainstCheckpoint, Report
    from freehold.governance.signing import PublicKey

_ledger = click.argument("ledger", type=click.Path(path_type=Path))
_json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object on the last line.")
_key_option = click.option(
    "--key",
    "key_path",
    type=click.Path(path_type=Path),
    help="PEM file with the ledger's public key, from whoever keeps it; left out: the one that the ledger names.",
)
_signing_option = click.option(
    "--ledger-key",
    "signing_path",
    type=click.Path(path_type=Path),
    help="PEM file with the key that signs the ledger; by default `ledger-key.pem` in FREEHOLD_HOME.",
)


def _public(path: Path | None) -> PublicKey | None:
    from freehold.governance.signing import PublicKey

    return None if path is None else PublicKey.read(path)


@click.command()
@_ledger
@click.option(
    "--checkpoint",
    "checkpoints",
    multiple=True,
    type=click.Path(path_type=Path, exists=True),
    help="A checkpoint that was kept elsewhere, or a directory with all of this ledger's. May be given several times.",
)
@_key_option
@_json_option
def verify(ledger: Path, checkpoints: tuple[Path, ...], key_path: Path | None, as_json: bool) -> None:
    """Say what a ledger proves, and what it does not.

    Status 1 if anything is wrong: the ledger itself, or a checkpoint that it does not fit.
    """
    from freehold.governance.ledger.verify import verify as verify_ledger

    files = [file for path in checkpoints for file in _checkpoint_files(ledger, path)]
    given = [(str(path), path.read_text("utf-8", errors="replace")) for path in files]
    report = verify_ledger(ledger, given, _public(key_path))
    _print_report(report)
    if as_json:
        click.echo(json.dumps(report.body()))
    if not report.holds:
        click.get_current_context().exit(1)


def _checkpoint_files(ledger: Path, path: Path) -> list[Path]:
    """A checkpoint's file, or those in a directory that are named after the ledger, the smallest first."""
    from freehold.governance.ledger.export import checkpoint_name
    from freehold.governance.ledger.files import LedgerFiles

    if not path.is_dir():
        return [path]
    pattern = checkpoint_name(LedgerFiles(ledger).origin, None)
    found = sorted(file for file in path.glob(pattern) if file.is_file())
    if not found:
        raise GovernanceError(f"In {path} there is no checkpoint of the ledger {ledger} ({pattern}).")
    return found


def _print_report(report: Report) -> None:
    click.echo(f"Ledger {report.path}  {printable(report.origin)}  key {report.key_id or '(unknown)'}")
    inside = "yes" if report.internally_consistent else "NO"
    click.echo(f"internally consistent       {inside:<4} {report.size} records, root {report.root.hex()[:16]}")
    for finding in report.findings[:20]:
        click.echo(f"                                 {printable(finding)}")
    if len(report.findings) > 20:
        click.echo(f"                                 ... and {len(report.findings) - 20} more")
    for found in _told(report.checkpoints):
        word = "yes" if found.consistent else "NO"
        size = f", {found.size} records" if found.size else ""
        click.echo(f"consistent with checkpoint  {word:<4} {found.name}{size}")
        if found.problem:
            click.echo(f"                                 {printable(found.problem)}")
    if hidden := len(report.checkpoints) - len(_told(report.checkpoints)):
        click.echo(f"                                 and with {hidden} smaller ones")
    if not report.checkpoints:
        click.echo("consistent with checkpoint  -    none was given")
    if report.proven_size:
        click.echo(f"complete up to checkpoint   yes  records 0 to {report.proven_size - 1}")
    else:
        click.echo(f"complete up to checkpoint   {'NO' if report.checkpoints else '-':<4} not proven for any record")
    if report.erased or report.salts_erased:
        click.echo(f"erased                           {report.erased} records, {report.salts_erased} salts of others")
    for note in report.notes:
        click.echo(f"note: {note}")
    click.echo("not proven:")
    for line in report.not_proven():
        click.echo(f"  - {line}")


def _told(checkpoints: list[AgainstCheckpoint]) -> list[AgainstCheckpoint]:
    """All that are wrong; of many that are not, the largest."""
    right = [found for found in checkpoints if found.consistent]
    if len(right) > 5:
        right = [max(right, key=lambda found: found.size)]
    return [found for found in checkpoints if not found.consistent or found in right]


@click.command()
@_ledger
@click.argument("name", metavar="ID")
@click.option("--out", type=click.Path(path_type=Path), help="The proof's file; left out: standard output.")
@click.option(
    "--checkpoint",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="In whose tree the record is shown; left out: the ledger's newest.",
)
@click.option("--with-salt", is_flag=True, help="Let the reader check the request's and the answer's bytes too.")
def prove(ledger: Path, name: str, out: Path | None, checkpoint: Path | None, with_salt: bool) -> None:
    """Write a proof that one record stands in the ledger.

    ID is a request's id, as its answer had it in x-request-id, or '#12' for record number 12.
    """
    from freehold.governance.ledger.checkpoint import Checkpoint
    from freehold.governance.ledger.files import LedgerFiles
    from freehold.governance.ledger.proof import prove as prove_record

    tree = None if checkpoint is None else Checkpoint.parse(checkpoint.read_text("utf-8", errors="replace"))
    text = json.dumps(prove_record(LedgerFiles(ledger), name, tree, with_salt=with_salt), indent=1)
    if out is None:
        click.echo(text)
    else:
        out.write_text(text + "\n")
        check = f"freehold audit verify-proof {shlex.quote(str(out))} --key FILE"
        click.echo(f"Wrote {out}; check it with: {check}", err=True)


def _content_options(command: Any) -> Any:
    for name in ("answer", "request"):
        text = f"File with the bytes of the {name}'s body, to be compared."
        kind = click.Path(path_type=Path, exists=True, dir_okay=False)
        command = click.option(f"--{name}", f"{name}_path", type=kind, help=text)(command)
    return command


@click.command("verify-proof")
@click.argument("proof", type=click.Path(path_type=Path))
@click.option(
    "--key",
    "key_path",
    type=click.Path(path_type=Path),
    required=True,
    help="PEM file with the ledger's public key, from whoever keeps it.",
)
@_content_options
@_json_option
def verify_proof(
    proof: Path, key_path: Path, request_path: Path | None, answer_path: Path | None, as_json: bool
) -> None:
    """Check a proof alone, without the ledger.

    Shows that the record stands in a tree that the key has signed; with --request and --answer, that these are its
    bytes, if the proof has its salt.
    """
    from freehold.governance.ledger.proof import check_proof

    key = _public(key_path)
    assert key is not None
    proven = check_proof(proof, key)
    content = {
        name: proven.fits(**{name: path.read_bytes()})
        for name, path in (("request", request_path), ("answer", answer_path))
        if path is not None
    }
    place = f"number {proven.index} of {proven.checkpoint.size}"
    click.echo(f"Record {printable(proven.record.id)} is {place}, signed by {key.id}.")
    for name, fits in content.items():
        click.echo(f"The {name} {'is' if fits else 'IS NOT'} the one that was recorded.")
    if as_json:
        record = json.loads(proven.record.line(proven.index))
        click.echo(json.dumps({"record": record, "checkpoint": proven.checkpoint.text, "content": content}))
    if not all(content.values()):
        click.get_current_context().exit(1)


@click.command()
@_ledger
@click.argument("name", metavar="ID")
@_content_options
def show(ledger: Path, name: str, request_path: Path | None, answer_path: Path | None) -> None:
    """Show one record, and whether texts are those it was made of."""
    from freehold.governance.ledger.files import LedgerFiles
    from freehold.governance.ledger.proof import find, require_salt
    from freehold.governance.ledger.salted import SaltedHashes

    found = find(LedgerFiles(ledger), name)
    if found.line is None or found.record is None:
        click.echo(f"Record {found.position} was erased; only its hash is left.")
        return
    wrong = False
    for what, path in (("request", request_path), ("answer", answer_path)):
        if path is None:
            continue
        if found.salt is None:
            raise GovernanceError(f"The salt of record {name!r} was erased; its hashes fit nothing any more.")
        require_salt(found.record, found.salt)
        hashes = SaltedHashes(found.salt)
        hashes.add_request(path.read_bytes())
        hashes.add_answer(path.read_bytes())
        fits = getattr(hashes, what) == getattr(found.record, f"{what}_hash")
        wrong |= not fits
        click.echo(f"The {what} {'is' if fits else 'IS NOT'} the one that was recorded.")
    click.echo(json.dumps(json.loads(found.line), indent=1))
    if wrong:
        click.get_current_context().exit(1)


@click.command("list")
@_ledger
@click.option("--last", type=click.IntRange(min=1), help="Only so many, the newest.")
@click.option("--outcome", help="Only those that ended so: served, refused, failed, aborted, disconnected.")
@_json_option
def list_records(ledger: Path, last: int | None, outcome: str | None, as_json: bool) -> None:
    """List the records of a ledger."""
    from freehold.governance.ledger.files import LedgerFiles
    from freehold.governance.ledger.record import OUTCOMES

    if outcome is not None and outcome not in OUTCOMES:
        raise click.UsageError(f"--outcome is {outcome!r}; it must be one of {', '.join(OUTCOMES)}")
    lines = []
    for leaf in LedgerFiles(ledger).leaves():
        record = leaf.record()
        if outcome is None or (record is not None and record.outcome == outcome):
            lines.append((leaf.position, record, leaf.line))
    chosen = lines if last is None else lines[-last:]
    if as_json:
        records = [json.loads(line) if line else {"seq": position, "erased": True} for position, _, line in chosen]
        click.echo(json.dumps({"ledger": str(ledger), "records": records}))
        return
    for position, record, _ in chosen:
        if record is None:
            click.echo(f"#{position}  (erased)")
            continue
        usage = record.usage
        tokens = "-" if usage is None else f"{usage.input_tokens}+{usage.output_tokens}{'~' if usage.estimated else ''}"
        words = (record.outcome or record.kind, record.reason, record.key, record.model or record.model_asked, tokens)
        shown = (record.time, record.id, *(word or "-" for word in words))
        click.echo(f"#{position}  {'  '.join(printable(word) for word in shown)}")


@click.command()
@_ledger
@click.option(
    "--to",
    "directory",
    type=click.Path(path_type=Path, file_okay=False),
    help="Directory elsewhere that gets the file.",
)
@click.option("--command", help="Started with the checkpoint on its standard input.")
@_signing_option
def checkpoint(ledger: Path, directory: Path | None, command: str | None, signing_path: Path | None) -> None:
    """Sign what the ledger is now, to be kept elsewhere.

    Prints the checkpoint. The ledger's earlier records are checked first: what does not fit them is not signed.
    """
    from freehold.governance.ledger.appender import Appender
    from freehold.governance.ledger.checkpoint import verifier_key
    from freehold.governance.ledger.export import export
    from freehold.governance.ledger.files import LedgerFiles

    files = LedgerFiles(ledger)
    key = ledger_key(signing_path)
    appender = Appender(files, key, lambda text: click.echo(text, err=True))
    appender.close()
    head = appender.head
    try:
        place = export(files, head, directory, shlex.split(command or ""))
    except Exception as error:
        raise GovernanceError(f"The checkpoint was not exported: {error}") from error
    click.echo(head.text, nl=False)
    click.echo(f"For tools that read signed notes, the key is: {verifier_key(files.origin, key.public)}", err=True)
    if place is not None:
        click.echo(f"Wrote {place}", err=True)
    elif not command:
        click.echo("Keep it where this machine's keeper cannot change it; here it proves nothing more.", err=True)


@click.command()
@_ledger
@click.argument("names", metavar="[ID]...", nargs=-1)
@click.option("--older-than", type=Duration(), help="All requests that ended so long ago, such as 90d.")
@click.option(
    "--records",
    "whole",
    is_flag=True,
    help="Erase the records but for their hash; without it, their salts, so that no text can be tried against them.",
)
@click.option(
    "--why",
    default="",
    help="Recorded with the erasure, and never to be erased itself: a number of a case, no names.",
)
@_signing_option
@_json_option
def erase(
    ledger: Path,
    names: tuple[str, ...],
    older_than: float | None,
    whole: bool,
    why: str,
    signing_path: Path | None,
    as_json: bool,
) -> None:
    """Erase salts or records, so that the proofs stay.

    A server may go on writing to the ledger. The erasure itself is recorded.
    """
    from freehold.governance.ledger import erase as erasure
    from freehold.governance.ledger.files import LedgerFiles
    from freehold.governance.ledger.proof import find

    if bool(names) == (older_than is not None):
        raise click.UsageError("give the IDs of records, or --older-than")
    files = LedgerFiles(ledger)
    what: erasure.What = "records" if whole else "salts"
    if older_than is not None:
        moment = datetime.now(timezone.utc) - timedelta(seconds=older_than)
        numbers = erasure.older_than(files, moment, what)
    else:
        numbers = [find(files, name).position for name in names]
    count = erasure.erase(files, ledger_key(signing_path), numbers, what, why, lambda text: click.echo(text, err=True))
    click.echo(f"Erased {count} {what}." if count else f"There are no {what} of these to be erased any more.", err=True)
    if as_json:
        click.echo(json.dumps({"ledger": str(ledger), "erased": count, "what": what}))
