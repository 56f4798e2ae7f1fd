"""`freehold audit`: proofs that somebody else can run again."""

from __future__ import annotations

import click

from freehold.cli.lazy import LazyCommand, LazyCommands

_LEDGER = "freehold.cli.cmd_audit_ledger"

AUDITS: dict[str, LazyCommand] = {
    "checkpoint": LazyCommand(_LEDGER, "checkpoint", "Sign what the ledger is now, to be kept elsewhere."),
    "egress": LazyCommand(
        "freehold.cli.cmd_audit_egress", "egress", "Try every way out of a sealed process, and sign what happened."
    ),
    "erase": LazyCommand(_LEDGER, "erase", "Erase salts or records, so that the proofs stay."),
    "list": LazyCommand(_LEDGER, "list_records", "List the records of a ledger."),
    "prove": LazyCommand(_LEDGER, "prove", "Write a proof that one record stands in the ledger."),
    "show": LazyCommand(_LEDGER, "show", "Show one record, and whether texts are those it was made of."),
    "verify": LazyCommand(_LEDGER, "verify", "Say what a ledger proves, and what it does not."),
    "verify-proof": LazyCommand(_LEDGER, "verify_proof", "Check a proof alone, without the ledger."),
}


@click.group(cls=LazyCommands, entries=AUDITS)
def audit() -> None:
    """Prove that nothing leaves and that records are whole."""
