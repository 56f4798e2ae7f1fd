"""`freehold doctor`: is this machine sound, and what would make it better."""

from __future__ import annotations

import json

import click


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of the table.")
@click.pass_context
def doctor(ctx: click.Context, as_json: bool) -> None:
    """Look at the machine and the installation, and say what is wrong.

    Takes a few seconds. Exit status 1 if something keeps the engine from running.
    """
    from freehold.bench.report import show
    from freehold.plan.doctor import as_json as json_of
    from freehold.plan.doctor import diagnose, is_sound, report

    findings = diagnose()
    if as_json:
        click.echo(json.dumps(json_of(findings)))
    else:
        show(report(findings), as_json=False, markdown=False)
    if not is_sound(findings):
        ctx.exit(1)
