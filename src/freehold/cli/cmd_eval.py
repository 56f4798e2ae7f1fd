"""`freehold eval`: how well a model predicts held-out text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click


@click.command(name="eval")
@click.argument("model")
@click.option("--index", default="auto", show_default=True, help="Its index branch; as `freehold serve` has it.")
@click.option(
    "--text",
    "texts",
    type=click.Path(exists=True, path_type=Path),
    multiple=True,
    help="A text file, or a directory of them, all of which is read; may be given several times. Left out: what Python "
    "itself brings, of which one file in five is held out.",
)
@click.option(
    "--windows", type=click.IntRange(min=1), default=25, show_default=True, help="Windows, code and prose in turn."
)
@click.option("--window-tokens", type=click.IntRange(min=16), default=8192, show_default=True, help="Tokens of each.")
@click.option(
    "--way",
    "ways",
    type=click.Choice(["dense", "index", "first-and-recent", "oracle"]),
    multiple=True,
    help="How blocks are chosen; may be given several times. Left out: all but the oracle, which is slow.",
)
@click.option("--recall", "with_recall", is_flag=True, help="Also say how well each sparse layer and group chooses.")
@click.option("--seed", type=int, default=0, show_default=True, help="Decides which windows.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of a table.")
def evaluate(
    model: str,
    index: str,
    texts: tuple[Path, ...],
    windows: int,
    window_tokens: int,
    ways: tuple[str, ...],
    with_recall: bool,
    seed: int,
    as_json: bool,
) -> None:
    """How well a model predicts held-out text.

    Its perplexity, dense and with the blocks that its index branch chooses, on the same windows. Changes are beside
    the dense model, token by token; each stands with its standard error. The first block and the most recent ones, in
    the same number, are what an index has to beat; the oracle knows the attention.
    """
    from freehold.cli.working import shown_work
    from freehold.evaluation.perplexity import Reading, is_sparse, read, recall
    from freehold.loading.checkpoint import open_checkpoint
    from freehold.loading.pull import resolve
    from freehold.model.index_branches import index_for
    from freehold.model.registry import load_tokenizer
    from freehold.training.corpus import documents_at_hand, documents_in, windows_of

    documents = documents_in(texts) if texts else [d for d in documents_at_hand() if d.held_out]
    with open_checkpoint(resolve(model)) as checkpoint, shown_work() as progress:
        held = windows_of(documents, load_tokenizer(checkpoint).encode, window_tokens, windows, seed=seed)
        sidecar = index_for(checkpoint, index)
        standard = ["index", "first and recent"] if is_sparse(checkpoint, sidecar) else ["dense"]
        wanted: Any = [way.replace("-", " ") for way in ways] or standard
        readings = read(checkpoint, sidecar, held, wanted, progress)
        recalls = recall(checkpoint, sidecar, held, progress) if with_recall else []
    dense = readings[0]
    result: dict[str, Any] = {
        "tokens": dense.losses.numel(),
        "windows": len(held),
        "window_tokens": window_tokens,
        "readings": [reading.as_json(dense) for reading in readings],
        **({"recall": [one.as_json() for one in recalls]} if with_recall else {}),
    }
    if as_json:
        click.echo(json.dumps(result, allow_nan=False))
        return
    click.echo(f"{result['tokens']} tokens in {len(held)} windows of {window_tokens}")

    def line(reading: Reading) -> str:
        shown = [f"{reading.way}: perplexity {reading.perplexity():.4f}"]
        if reading is not dense:
            for name, begin in (("", 0.0), (" in the second half", 0.5)):
                change, error = reading.change(dense, begin)
                shown.append(f"{change:+.2%} (± {error:.2%}){name}")
        return ", ".join(shown)

    for reading in readings:
        click.echo(line(reading))
    if recalls:
        click.echo(f"{'layer':>5} {'group':>5} {'mass':>7} {'oracle':>7} {'blocks':>7}")
    for one in recalls:
        r = one.recall
        click.echo(f"{one.layer:>5} {one.group:>5} {r.mass:>7.4f} {r.oracle:>7.4f} {r.blocks:>7.4f}")
