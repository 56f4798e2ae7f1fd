"""`freehold disclose`: what a model on a path is, under whose law, who says so; and whether such a document holds."""

from __future__ import annotations

import json
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from freehold.governance.disclosure import Disclosure
    from freehold.governance.disclosure.verify import Check
    from freehold.governance.signing import PublicKey

FORMATS = ("cyclonedx", "html", "text", "spdx", "hf")
VERIFY = "verify"

_path = click.Path(path_type=Path)


@click.command()
@click.argument("subject", required=False)
@click.argument("file", required=False, type=_path)
@click.option(
    "--format",
    "form",
    type=click.Choice(FORMATS),
    help="cyclonedx: the signed document. html, text: to read. spdx (3.0.1), hf (model card): exports.",
    default=FORMATS[0],
    show_default=True,
)
@click.option("--out", type=_path, help="Where it goes; left out: standard output.")
@click.option(
    "--key",
    type=_path,
    help="PEM file: the private key to sign with, made where there is none; with `verify`, the signer's public key."
    " Left out: `disclosure-key.pem` in FREEHOLD_HOME.",
)
@click.option(
    "--weights", type=str, help="A directory, .gguf file or pulled model: compute its digests, or compare with them."
)
@click.option("--json", "as_json", is_flag=True, help="With `verify`: print one JSON object instead of text.")
def disclose(
    subject: str | None,
    file: Path | None,
    form: str,
    out: Path | None,
    key: Path | None,
    weights: str | None,
    as_json: bool,
) -> None:
    """State what a model on a path is, under whose law, and who says so; or verify such a document.

    SUBJECT is a shipped disclosure (without SUBJECT, they are listed), a file of facts, a signed document, or weights:
    a directory, a .gguf file, a pulled model. `freehold disclose verify FILE` checks a signed document; its exit status
    is 0 only if nothing fails.
    """
    if subject is None:
        _list()
    elif subject == VERIFY:
        if form != FORMATS[0] or out is not None:
            raise click.UsageError("`verify` takes neither --format nor --out")
        if file is None:
            raise click.UsageError("`verify` needs the FILE of a signed document")
        _verify(file, key, weights, as_json)
    else:
        if file is not None or as_json:
            raise click.UsageError("FILE and --json belong to `freehold disclose verify`")
        if key is not None and form != FORMATS[0]:
            raise click.UsageError(f"--key signs the CycloneDX document; {form} has no signature")
        _write(subject, form, out, key, weights)


def _list() -> None:
    from freehold.governance.disclosure.loading import load_disclosure, shipped_names

    for name in shipped_names():
        disclosure = load_disclosure(name)
        click.echo(f"{name:<24} {disclosure.title}; to be read again after {disclosure.valid_until}")


def _write(subject: str, form: str, out: Path | None, key: Path | None, weights: str | None) -> None:
    now = _now()
    disclosure = _disclosure(subject, weights, now)
    if now.date() > disclosure.valid_until:
        click.echo(f"warning: {disclosure.name} was to be read again after {disclosure.valid_until}", err=True)
    elif disclosure.expired(now.date()):
        click.echo(f"warning: {disclosure.name} is issued on {disclosure.issued}, which is in the future", err=True)
    stranger = _stranger(disclosure, key)
    if stranger is not None and form != FORMATS[0]:
        click.echo(
            f"warning: {subject} is signed with the key {stranger}, which is none of those known here; what it calls"
            " verified-here was verified by its author, if at all",
            err=True,
        )
    text = _rendered(disclosure, form, key, now)
    if out is None:
        click.echo(text, nl=False)
        return
    try:
        out.write_text(text, encoding="utf-8")
    except OSError as error:
        raise click.ClickException(f"{out} cannot be written: {error.strerror}") from error
    click.echo(f"{disclosure.title}: written to {out}", err=True)


def _disclosure(subject: str, weights: str | None, now: datetime) -> Disclosure:
    """The disclosure that the command line means, with what was measured."""
    from freehold.cli.measuring import measured
    from freehold.governance.disclosure.loading import load_disclosure, shipped_names
    from freehold.governance.disclosure.own_weights import disclosure_of_weights
    from freehold.governance.disclosure.weights import with_weights
    from freehold.loading.registry import find_model, resolve

    path = Path(subject)
    if (subject in shipped_names() and not path.exists()) or (path.is_file() and path.suffix == ".json"):
        disclosure = load_disclosure(subject)
        return disclosure if weights is None else with_weights(disclosure, measured(resolve(weights)), now.date())
    if not path.exists() and find_model(subject) is None:
        raise click.UsageError(
            f"{subject!r} is neither a path nor a pulled model, and no shipped disclosure: {', '.join(shipped_names())}"
        )
    if weights is not None:
        raise click.UsageError(f"{subject} are weights themselves; --weights belongs to a named disclosure")
    place = resolve(subject)
    return disclosure_of_weights(place.name, measured(place), now.date())


def _rendered(disclosure: Disclosure, form: str, key: Path | None, now: datetime) -> str:
    if form == "html":
        from freehold.governance.disclosure.page import as_page

        return as_page(disclosure, None if disclosure.signed_by is None else disclosure.signed_by.id)
    if form == "text":
        from freehold.governance.disclosure.text import as_text

        return as_text(disclosure)
    if form == "spdx":
        from freehold.governance.disclosure.spdx import as_spdx

        return as_spdx(disclosure, now)
    if form == "hf":
        from freehold.governance.disclosure.card import as_card

        return as_card(disclosure)
    return _signed(disclosure, key, now)


def _signed(disclosure: Disclosure, key: Path | None, now: datetime) -> str:
    """The signed document; what would not verify is not written, but for facts that have expired."""
    from freehold.core.errors import GovernanceError
    from freehold.governance.disclosure.cyclonedx import document_of
    from freehold.governance.disclosure.verify import verify
    from freehold.governance.signing import SigningKey, canonical

    stranger = _stranger(disclosure, key)
    if stranger is not None:
        raise GovernanceError(
            f"{disclosure.name}: is signed with the key {stranger}, which is not yours; what it says was not checked or"
            " computed here. Pass the document on as it is, or write a file of facts of your own and sign that"
        )
    signing = SigningKey.load_or_create(_own_key() if key is None else key)
    document = document_of(disclosure, signing, now)
    for check in verify(document, now=now, keys=[signing.public]):
        if check.state == "fails" and check.name != "expiry":
            raise GovernanceError(f"{disclosure.name}: would be no valid document. {check.name}: {check.faults[0]}")
    return canonical(document).decode() + "\n"


def _stranger(disclosure: Disclosure, key: Path | None) -> str | None:
    """The name of the key that signed the document this was read from, if it is not the one that would sign now."""
    if disclosure.signed_by is None:
        return None
    own = _known_keys(key) if key is None or key.exists() else []
    return None if disclosure.signed_by in own else disclosure.signed_by.id


def _verify(file: Path, key: Path | None, weights: str | None, as_json: bool) -> None:
    from freehold.cli.measuring import measured
    from freehold.governance.disclosure.loading import read_json
    from freehold.governance.disclosure.verify import all_hold, verify
    from freehold.loading.registry import resolve

    checks = verify(
        read_json(file),
        now=_now(),
        keys=_known_keys(key),
        weights=None if weights is None else measured(resolve(weights)),
    )
    if as_json:
        rows = {check.name: {"state": check.state, "faults": list(check.faults)} for check in checks}
        click.echo(json.dumps({"file": str(file), "holds": all_hold(checks), "checks": rows}))
    else:
        for check in checks:
            _show(check)
    if not all_hold(checks):
        click.get_current_context().exit(1)


def _show(check: Check) -> None:
    shown = check.faults[:10]
    more = len(check.faults) - len(shown)
    lines = [*shown, *([f"and {more} more"] if more else [])]
    click.echo(f"{check.name:<12}{check.state}" + "".join(f"\n  {line}" for line in lines))


def _known_keys(key: Path | None) -> list[PublicKey]:
    """The key that was named, or this machine's own where there is one."""
    from freehold.governance.signing import PublicKey

    if key is not None:
        return [PublicKey.read(key)]
    return [PublicKey.read(_own_key())] if _own_key().exists() else []


def _now() -> datetime:
    return datetime.now(timezone.utc)


def _own_key() -> Path:
    from freehold.loading.home import freehold_home

    return freehold_home() / "disclosure-key.pem"
