"""`freehold tasks`: what a model finds in long texts."""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import click

from freehold.bench.main import Sizes
from freehold.core.errors import ArgumentError


@click.command()
@click.argument("model")
@click.option("--index", help="Its index branch; as `freehold serve` has it. Left out: auto.")
@click.option("--url", help="Ask MODEL behind an OpenAI-compatible address, up to and with /v1, instead of running it.")
@click.option("--api-key", envvar="OPENAI_API_KEY", help="For --url. Left out: OPENAI_API_KEY, if it is set.")
@click.option(
    "--task",
    "tasks",
    type=click.Choice(["needle", "needles", "variables", "words", "lookup"]),
    multiple=True,
    help="May be given several times. Left out: all but lookup, whose words are those of `freehold train --retrieval`.",
)
@click.option("--lengths", type=Sizes(), default="1024,4096", show_default=True, help="Tokens of the prompts.")
@click.option("--depths", type=click.IntRange(min=1), default=5, show_default=True, help="Places of a needle.")
@click.option("--questions", type=click.IntRange(min=1), default=4, show_default=True, help="Of each task and place.")
@click.option("--dense", is_flag=True, help="Run the sparse layers densely, to compare.")
@click.option("--seed", type=int, default=0, show_default=True, help="Decides which questions.")
@click.option("--picture", type=click.Path(dir_okay=False, path_type=Path), help="Draw the needle's map as a PNG.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of a table.")
def tasks(
    model: str,
    index: str | None,
    url: str | None,
    api_key: str | None,
    tasks: tuple[str, ...],
    lengths: tuple[int, ...],
    depths: int,
    questions: int,
    dense: bool,
    seed: int,
    picture: Path | None,
    as_json: bool,
) -> None:
    """What a model finds in long texts.

    Generated questions as RULER has them: a number for a city somewhere in filler (needle), among many such (needles),
    names that stand for others' values (variables), the commonest words of a list (words). Small models that learnt
    nothing else are asked for the value of a name in noise (lookup); many questions are about one text, which is read
    once.
    """
    from freehold.cli.working import shown_work
    from freehold.evaluation.answers import Endpoint, LocalModel
    from freehold.evaluation.needle_map import ask_all, check_all, check_picture, draw
    from freehold.evaluation.tasks import TASKS

    wanted: Any = tuple(dict.fromkeys(tasks)) or TASKS
    drawn: Any = next((task for task in ("needle", "needles", "lookup") if task in wanted), None)
    if picture is not None and drawn is None:
        raise ArgumentError(f"--picture {picture} shows where needles are found; add --task needle")
    if picture is not None:
        check_picture(picture)
    if url is not None and (index is not None or dense):
        given = "--dense" if index is None else f"--index {index}"
        raise ArgumentError(f"{given} and --url exclude each other: the server decides how its model reads")
    with ExitStack() as stack:
        if url is not None:
            asked: Any = Endpoint(url, model, api_key)
        else:
            asked = LocalModel(model, allow_dense=dense, **({} if index is None else {"index": index}))
            stack.callback(asked.close)
        what: Any = {"depths": depths, "questions": questions, "seed": seed}
        check_all(asked, wanted, lengths, **what)
        progress = stack.enter_context(shown_work())
        cells = ask_all(asked, wanted, lengths, **what, progress=progress)
    if picture is not None and drawn is not None:
        draw(cells, drawn, picture)
    if as_json:
        click.echo(json.dumps({"model": model, "cells": [cell.as_json() for cell in cells]}, allow_nan=False))
        return
    click.echo(f"{'task':<10} {'tokens':>8} {'depth':>6} {'found':>6}")
    for cell in cells:
        depth = "-" if cell.depth is None else f"{100 * cell.depth:.0f} %"
        click.echo(f"{cell.task:<10} {cell.length:>8,} {depth:>6} {cell.score:>6.3f}")
