"""`freehold train`: a small model in M3's shape, from scratch."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click


@click.command()
@click.argument("out", type=click.Path(file_okay=False, path_type=Path))
@click.option(
    "--config",
    "shape",
    default=None,
    metavar="NAME|FILE",
    help="small, retrieval, or a config.json with the release's keys. Left out: small, or retrieval for that task.",
)
@click.option(
    "--text",
    "texts",
    type=click.Path(exists=True, path_type=Path),
    multiple=True,
    help="A text file, or a directory of them; may be given several times. Left out: what Python itself brings.",
)
@click.option(
    "--tokenizer", metavar="MODEL", help="Whose tokenizer reads the texts. Left out: one token for each byte."
)
@click.option("--retrieval", is_flag=True, help="Learn to look up names in noise instead of a text.")
@click.option(
    "--row-tokens", type=click.IntRange(min=32), help="Tokens of a row. Left out: 1024, with --retrieval 512."
)
@click.option("--rows", type=click.IntRange(min=1), default=4, show_default=True, help="Rows of a step.")
@click.option(
    "--steps", type=click.IntRange(min=1), help="Updates of the weights. Left out: 1000, with --retrieval 2400."
)
@click.option(
    "--dense-steps",
    type=click.IntRange(min=0),
    help="Steps of the warm-up: attention reads everything, and the index branches learn from all of it. Left out: "
    "200, with --retrieval three quarters of the steps.",
)
@click.option("--learning-rate", type=float, default=3e-3, show_default=True, help="At its highest.")
@click.option("--index-rate", type=float, default=3e-3, show_default=True, help="The same, of the index branches.")
@click.option(
    "--exit-weight",
    type=float,
    help="Of the loss that each earlier layer would have as the last one. Left out: 0, with --retrieval 0.5.",
)
@click.option(
    "--looking-weight",
    type=float,
    help="Of the loss for looking elsewhere than where the answer stands. Left out: 0, with --retrieval 1.",
)
@click.option("--save-every", type=click.IntRange(min=1), default=50, show_default=True, help="Steps between savings.")
@click.option("--seed", type=int, default=0, show_default=True, help="Decides the first weights and the rows.")
@click.option(
    "--work", type=click.Path(file_okay=False, path_type=Path), help="Where the state is kept. Left out: OUT.work."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object at the end instead of text.")
def train(out: Path, work: Path | None, as_json: bool, **options: Any) -> None:
    """Train a small model in MiniMax-M3's shape from scratch.

    OUT becomes a checkpoint like the release's. The same command goes on where an interrupted one was, with the same
    bits. Over several processes: torchrun --nproc-per-node 2 --no-python freehold train OUT ...
    """
    from freehold.cli.training_run import TrainingRun
    from freehold.training.places import work_of

    run = TrainingRun(out, work_of(out, work), options)
    last = run.run()
    if last is None:
        return  # another process writes and tells
    result = {"path": str(out), "work": str(run.work), **asdict(last)}
    if as_json:
        click.echo(json.dumps(result, allow_nan=False))
        return
    click.echo(f"{out}: {last.step} steps; last loss {last.language:.4f} nats, of the index {last.index:.4f}")
    click.echo(f"losses: {run.work / 'losses.jsonl'}; use it: freehold generate --model {out} --prompt ...")
