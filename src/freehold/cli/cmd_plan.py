"""`freehold plan`: what a model needs, what fits, and how fast it may be, before anything is loaded."""

from __future__ import annotations

import json
from typing import Any

import click

from freehold.cli.quantities import Size


@click.command()
@click.argument("model", required=False)
@click.option("--context", type=click.IntRange(min=1), help="Tokens of each session; left out: a few lengths.")
@click.option("--ram", type=Size(), help="Memory to plan for; left out: this machine's.")
@click.option(
    "--disk-bandwidth", type=Size(), help="Bytes a second that the disk is read with; left out: as it was calibrated."
)
@click.option("--users", type=click.IntRange(min=1), default=1, show_default=True, help="Sessions at the same time.")
@click.option(
    "--weights",
    type=click.Choice(["as-stored", "bf16", "int8", "int4"]),
    default="as-stored",
    show_default=True,
    help="The type that weights are computed from.",
)
@click.option(
    "--kv-dtype",
    type=click.Choice(["float32", "bfloat16"]),
    default="float32",
    show_default=True,
    help="How K, V and index keys are stored.",
)
@click.option(
    "--activations",
    type=click.Choice(["float32", "int8"]),
    default="float32",
    show_default=True,
    help="What codes of weights are multiplied with.",
)
@click.option("--index", default="auto", show_default=True, help="Its index branch, as `freehold serve` has it.")
@click.option("--calibrate", is_flag=True, help="First measure memory, products and disk: about 20 seconds.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of the tables.")
def plan(model: str | None, index: str, calibrate: bool, as_json: bool, **options: Any) -> None:
    """Say what a model needs, what fits and how fast it may be.

    MODEL is a directory, a .gguf file, a pulled name or a config.json; without it, the default model. Only headers are
    read. Rates are upper bounds from this machine's last calibration.
    """
    from freehold.bench.report import show
    from freehold.loading.pull import DEFAULT_MODEL
    from freehold.plan import calibration as calibrations
    from freehold.plan.plan import PlanSettings, make_plan
    from freehold.plan.subject import open_subject
    from freehold.plan.tables import reports

    settings, subject = PlanSettings(**options), open_subject(model or DEFAULT_MODEL, index)
    if calibrate:
        click.echo("measuring memory, products and disk", err=True)
        path = calibrations.save_calibration(calibrations.calibrate())
        click.echo(f"kept in {path}", err=True)
    made = make_plan(subject, settings, *calibrations.load_calibration())
    if as_json:
        click.echo(json.dumps(made.as_json(), allow_nan=False))
        return
    for report in reports(made):
        show(report, as_json=False, markdown=False)
