"""`freehold audit`: proofs that somebody else can run again."""

from __future__ import annotations

import click

from freehold.cli.lazy import LazyCommand, LazyCommands

AUDITS: dict[str, LazyCommand] = {
    "egress": LazyCommand(
        "freehold.cli.cmd_audit_egress", "egress", "Try every way out of a sealed process, and sign what happened."
    ),
}


@click.group(cls=LazyCommands, entries=AUDITS)
def audit() -> None:
    """Prove that nothing leaves and that records are whole."""
