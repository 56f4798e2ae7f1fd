"""`freehold convert`: an index branch for a model that was trained dense."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click


class Layers(click.ParamType[tuple[int, ...]]):
    """`0,7,8`: numbers of layers; `none`: no layer."""

    name = "n,n,..."

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        """Split and convert; a usage error if something is no number."""
        if isinstance(value, tuple):
            return value
        if value == "none":
            return ()
        try:
            return tuple(int(part) for part in str(value).split(","))
        except ValueError:
            self.fail(f"{value!r} is not a list of layers, for example 0,7,8, or none", param, ctx)


@click.command()
@click.argument("model")
@click.argument("out", type=click.Path(path_type=Path))
@click.option(
    "--text",
    "texts",
    type=click.Path(exists=True, path_type=Path),
    multiple=True,
    help="A text file, or a directory of them; may be given several times. Left out: what Python itself brings.",
)
@click.option("--windows", type=click.IntRange(min=1), default=40, show_default=True, help="Windows to train with.")
@click.option("--window-tokens", type=click.IntRange(min=64), default=4096, show_default=True, help="Tokens of each.")
@click.option(
    "--block-tokens", type=click.IntRange(min=16), default=128, show_default=True, help="Tokens of a block; 16 x n."
)
@click.option("--topk", type=click.IntRange(min=1), default=16, show_default=True, help="Blocks that a query reads.")
@click.option(
    "--dense-layers",
    type=click.IntRange(min=0),
    default=3,
    show_default=True,
    help="How many layers stay dense: those whose sparseness costs most, measured one by one.",
)
@click.option("--keep-dense", type=Layers(), help="These layers stay dense, without measuring.")
@click.option(
    "--init",
    type=click.Choice(["svd", "mean", "random"]),
    default="svd",
    show_default=True,
    help="Where training begins: the layer's own projections as one key, their means, or anywhere.",
)
@click.option("--steps", type=click.IntRange(min=1), default=300, show_default=True, help="Updates of each layer.")
@click.option(
    "--sparse-steps",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Updates after those, over the blocks that the branch chooses instead of over every key.",
)
@click.option("--queries", type=click.IntRange(min=1), default=128, show_default=True, help="Queries of an update.")
@click.option("--learning-rate", type=float, default=7e-3, show_default=True, help="At its highest.")
@click.option("--seed", type=int, default=0, show_default=True, help="Decides windows, queries and random beginnings.")
@click.option(
    "--work",
    type=click.Path(file_okay=False, path_type=Path),
    help="Directory for what is kept until the end: about 2 bytes for each layer, token and channel. Left out: "
    "OUT.work, which is removed afterwards.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text.")
def convert(
    model: str,
    out: Path,
    texts: tuple[Path, ...],
    work: Path | None,
    steps: int,
    sparse_steps: int,
    queries: int,
    learning_rate: float,
    seed: int,
    as_json: bool,
    **options: Any,
) -> None:
    """Give a dense model an index branch, so that it reads chosen blocks.

    The model itself stays as it is. OUT becomes a directory, for `freehold serve MODEL --index OUT`. The same command
    goes on where an interrupted one was.
    """
    from freehold.cli.working import shown_work
    from freehold.loading.checkpoint import open_checkpoint
    from freehold.loading.pull import resolve
    from freehold.training.convert import ConvertSettings, remove_work
    from freehold.training.convert import convert as run
    from freehold.training.corpus import texts_of
    from freehold.training.curves import write_curves
    from freehold.training.distil import DistilSettings
    from freehold.training.places import alone_in, work_of

    distil = DistilSettings(
        steps=steps, sparse_steps=sparse_steps, queries=queries, learning_rate=learning_rate, seed=seed
    )
    settings = ConvertSettings(distil=distil, **options)
    documents, origin = texts_of(texts)
    place = work_of(out, work)
    with alone_in(place):
        with open_checkpoint(resolve(model)) as checkpoint, shown_work() as progress:
            made = run(checkpoint, out, documents, settings, work=place, origin=origin, progress=progress)
        drawn = write_curves(place, out)
        if work is None:
            remove_work(place)
    mean = {
        name: sum(getattr(r, name) for r in made.recalls.values()) / len(made.recalls)
        for name in ("mass", "oracle", "blocks")
    }
    result: dict[str, Any] = {
        "path": str(made.path),
        "sparse_layers": list(made.sparse_layers),
        "kl_nats": made.losses,
        "recall": mean,
        "perplexity": asdict(made.perplexities),
        "harm_nats": {harm.layer: harm.nats for harm in made.harms},
        "curves": [str(path) for path in drawn],
    }
    if as_json:
        click.echo(json.dumps(result, allow_nan=False))
        return
    dense = sorted(set(made.losses) - set(made.sparse_layers))
    click.echo(
        f"{made.path}: {len(made.sparse_layers)} sparse layers; dense stay {', '.join(map(str, dense)) or 'none'}"
    )
    click.echo(f"loss {sum(made.losses.values()) / len(made.losses):.4f} nats, the mean of the layers' last steps")
    click.echo(f"attention inside the chosen blocks {mean['mass']:.4f}, inside the best ones {mean['oracle']:.4f}")
    p = made.perplexities
    click.echo(f"perplexity {p.dense:.4f} -> {p.sparse:.4f} on {p.tokens} held-out tokens; more: freehold eval")
    click.echo(f"use it: freehold serve {model} --index {made.path}")
