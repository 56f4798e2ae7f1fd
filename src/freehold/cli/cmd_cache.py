"""`freehold cache`: look at the stored blocks, check, pin and remove them, carry them to another machine."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from freehold.cli.quantities import Duration, Size, shown_size
from freehold.core.errors import StoreError
from freehold.core.printable import printable

if TYPE_CHECKING:
    from freehold.cache.shelf import Shelf
    from freehold.cache.survey import ShelfSurvey

Command = Callable[..., Any]


def _options(command: Command) -> Command:
    command = click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text.")(command)
    return click.option(
        "--dir",
        "directory",
        type=click.Path(path_type=Path, file_okay=False),
        help="The store's directory; by default `blocks` in FREEHOLD_HOME.",
    )(command)


def _place(directory: Path | None) -> Path:
    from freehold.loading.home import blocks_dir

    return blocks_dir() if directory is None else directory


@click.group()
def cache() -> None:
    """Look at, check, pin, prune, export and import stored blocks."""


@cache.command("list")
@_options
def list_blocks(directory: Path | None, as_json: bool) -> None:
    """List what is stored, also while a server uses it.

    A session is a chain of blocks: a conversation, or a beginning that several have in common.
    """
    from freehold.cache.damage import DamageLog
    from freehold.cache.survey import open_shelves, survey

    place, damage = _place(directory), DamageLog()
    with open_shelves(place, damage) as shelves:
        found = [survey(shelf) for shelf in shelves]
    if as_json:
        identities = [_as_json(item) for item in found]
        click.echo(json.dumps({"directory": str(place), "identities": identities, "damage": _damage_json(damage)}))
        return
    if not found:
        click.echo(f"No blocks are stored in {place}.", err=True)
    for item in found:
        words = ", ".join(printable(f"{name} {value}") for name, value in item.description.items())
        click.echo(f"{item.identity}  {item.blocks} blocks  {shown_size(item.nbytes)}  {words}")
        for session in item.sessions:
            pinned = "  pinned" if session.pinned_tokens else ""
            if 0 < session.pinned_tokens < session.tokens:
                pinned += f" up to {session.pinned_tokens} tokens"
            click.echo(f"  {session.key[:16]}  {session.tokens:>9} tokens  {_shown_time(session.last_use)}{pinned}")


def _as_json(item: ShelfSurvey) -> dict[str, Any]:
    return {
        "identity": item.identity,
        "digest": item.digest,
        "description": item.description,
        "blocks": item.blocks,
        "bytes": item.nbytes,
        "sessions": [
            {
                "key": s.key,
                "tokens": s.tokens,
                "last_use": _shown_time(s.last_use),
                "pinned": s.pinned_tokens > 0,
                "pinned_tokens": s.pinned_tokens,
            }
            for s in item.sessions
        ],
    }


def _shown_time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, timezone.utc).isoformat(timespec="seconds")


def _damage_json(damage: Any) -> list[dict[str, str]]:
    return [{"where": event.where, "what": event.what} for event in damage.events]


@cache.command()
@_options
@click.pass_context
def verify(ctx: click.Context, directory: Path | None, as_json: bool) -> None:
    """Read every stored block again and check its checksums, also while a server uses it.

    Nothing is changed: a server removes a damaged block when it meets it. Exit status 1 if anything is damaged.
    """
    from freehold.cache.damage import DamageLog
    from freehold.cache.survey import open_shelves
    from freehold.cache.survey import verify as verify_shelf

    place, damage = _place(directory), DamageLog()
    with open_shelves(place, damage) as shelves:
        for shelf in shelves:
            verify_shelf(shelf)
        blocks = sum(len(shelf.catalog) for shelf in shelves)
    if as_json:
        click.echo(json.dumps({"directory": str(place), "blocks": blocks, "damage": _damage_json(damage)}))
    else:
        click.echo(f"{blocks} blocks read; {damage.num_events or 'no'} problems found.")
    if damage.num_events:
        ctx.exit(1)


@cache.command()
@_options
@click.option("--max-bytes", type=Size(), help="Remove the least recently used until this much stays, e.g. 20GB.")
@click.option("--older-than", type=Duration(), help="Remove what was not used for so long, e.g. 30d; pinned stays.")
@click.option("--identity", help="Only blocks of this identity, as `freehold cache list` shows it.")
@click.option("--all", "everything", is_flag=True, help="Remove all of it, pinned or not.")
@click.option("--yes", is_flag=True, help="Do not ask.")
def prune(
    directory: Path | None,
    as_json: bool,
    max_bytes: int | None,
    older_than: float | None,
    identity: str | None,
    everything: bool,
    yes: bool,
) -> None:
    """Remove stored blocks while no server uses them.

    Only --identity: removes all of that identity.
    """
    import sqlite3

    from freehold.cache.pruning import Pruning

    if max_bytes is None and older_than is None and identity is None and not everything:
        raise click.UsageError("say what to remove: --max-bytes, --older-than, --identity or --all")
    place = _place(directory)
    try:
        with Pruning(place, identity=identity) as pruning:
            if everything or (max_bytes is None and older_than is None):
                pruning.choose_all()
            if older_than is not None:
                pruning.choose_unused_since(time.time() - older_than)
            if max_bytes is not None:
                pruning.choose_beyond(max_bytes)
            question = f"Remove {pruning.blocks} blocks, {shown_size(pruning.nbytes)}, from {place}?"
            if not yes and pruning.nbytes:
                click.confirm(question, abort=True, err=True)
            pruning.carry_out()
            kept_blocks, kept_bytes = pruning.kept_blocks, pruning.kept_bytes
    except (OSError, sqlite3.Error) as error:
        raise StoreError(f"{place} cannot be written: {error}") from error
    if as_json:
        said = {"directory": str(place), "removed_blocks": pruning.blocks, "removed_bytes": pruning.nbytes}
        click.echo(json.dumps({**said, "blocks": kept_blocks, "bytes": kept_bytes}))
    else:
        click.echo(f"Removed {pruning.blocks} blocks, {shown_size(pruning.nbytes)}.")


@cache.command()
@click.argument("session")
@_options
@click.option("--identity", help="Whose session, where several have one of that name.")
def pin(session: str, directory: Path | None, as_json: bool, identity: str | None) -> None:
    """Evict SESSION only when nothing else is left to evict.

    SESSION is the beginning of its name in `freehold cache list`. No server may be using the store. When the session
    goes on, what is new in it is not pinned.
    """
    _set_pin(session, directory, as_json, identity, pinned=True)


@cache.command()
@click.argument("session")
@_options
@click.option("--identity", help="Whose session, where several have one of that name.")
def unpin(session: str, directory: Path | None, as_json: bool, identity: str | None) -> None:
    """Take all pins off SESSION, those in its beginning too."""
    _set_pin(session, directory, as_json, identity, pinned=False)


def _set_pin(session: str, directory: Path | None, as_json: bool, identity: str | None, *, pinned: bool) -> None:
    import sqlite3

    from freehold.cache.pinning import set_pin

    place = _place(directory)
    _check_name("SESSION", session)

    def choose(shelves: Sequence[Shelf]) -> tuple[Shelf, bytes]:
        found = [(shelf, key) for shelf in shelves for key in _sessions(shelf, session)]
        chosen: tuple[Shelf, bytes] = _only(found, "session", session, place)
        return chosen

    try:
        key, tokens = set_pin(place, choose, pinned=pinned, identity=identity)
    except (OSError, sqlite3.Error) as error:
        raise StoreError(f"{place} cannot be written: {error}") from error
    said = {"directory": str(place), "session": key.hex(), "tokens": tokens, "pinned": pinned}
    done = "Pinned" if pinned else "No longer pinned:"
    click.echo(json.dumps(said) if as_json else f"{done} session {key.hex()[:16]}, {tokens} tokens.")


@cache.command("export")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@_options
@click.option("--identity", help="Whose blocks, as `freehold cache list` shows it; not needed if there is only one.")
@click.option("--session", help="The session to export, as `freehold cache list` shows it; without it, all of them.")
def export_blocks(file: Path, directory: Path | None, as_json: bool, identity: str | None, session: str | None) -> None:
    """Write one session, or all, into a single FILE for another machine.

    FILE holds what the model computed from the conversation, and its tokens: treat it as you treat the text.
    """
    from freehold.cache.archive import chains_of
    from freehold.cache.archive import export_blocks as export
    from freehold.cache.damage import DamageLog
    from freehold.cache.survey import open_shelves

    place = _place(directory)
    _check_name("--session", session)
    _check_name("--identity", identity)
    with open_shelves(place, DamageLog()) as shelves:
        shelf = _only([s for s in shelves if s.identity.short.startswith(identity or "")], "identity", identity, place)
        leaves = _sessions(shelf, session or "")
        if session is not None:
            leaves = [_only(leaves, "session", session, place)]
        records = chains_of(shelf, leaves)
        try:
            nbytes = export(shelf, records, file)
        except OSError as error:
            raise StoreError(f"{file} cannot be written: {error}") from error
        said = {"file": str(file), "identity": shelf.identity.short, "blocks": len(records), "bytes": nbytes}
    click.echo(json.dumps(said) if as_json else f"Wrote {len(records)} blocks, {shown_size(nbytes)}, to {file}.")


def _sessions(shelf: Shelf, name: str) -> list[bytes]:
    """The last blocks of the sessions whose names begin so."""
    keys = (leaf.record.key for leaf in shelf.catalog.leaves())
    return [key for key in keys if key.hex().startswith(name.lower())]


def _check_name(what: str, name: str | None) -> None:
    if name == "":  # as from a variable that is not set
        raise click.UsageError(f"{what} is empty; give the beginning of a name that `freehold cache list` shows")


def _only(found: list[Any], noun: str, name: str | None, place: Path) -> Any:
    if len(found) == 1:
        return found[0]
    wanted = "" if name is None else f" {name!r}"
    problem = f"{len(found)} match; give more of the name" if found else "there is none"
    raise StoreError(f"{noun}{wanted} in {place}: {problem}. `freehold cache list` shows what there is")


@cache.command("import")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@_options
@click.option("--add-identity", is_flag=True, help="Also if the store has no blocks of that identity yet.")
def import_blocks(file: Path, directory: Path | None, as_json: bool, add_identity: bool) -> None:
    """Add the blocks of an exported FILE while no server uses the store.

    FILE is verified whole first. Its checksums find damage, not forgery: import only files that you trust.
    """
    from freehold.cache.archive import import_blocks as import_archive
    from freehold.cache.archive import open_archive

    place = _place(directory)
    try:
        archive = open_archive(file)
        blocks, new = import_archive(archive, place, add_identity=add_identity)
    except OSError as error:
        raise StoreError(f"{file} cannot be imported into {place}: {error}") from error
    said = {"directory": str(place), "identity": archive.identity.short, "blocks": blocks, "new_blocks": new}
    click.echo(json.dumps(said) if as_json else f"Imported {new} new blocks of {blocks} into {place}.")
