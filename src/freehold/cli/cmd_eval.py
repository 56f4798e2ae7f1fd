"""`freehold eval`: how well a model predicts held-out text."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from freehold.core.errors import ArgumentError

if TYPE_CHECKING:
    from freehold.evaluation.block_recall import GroupRecall
    from freehold.evaluation.perplexity import Progress, Reading
    from freehold.training.corpus import Document


@click.command(name="eval")
@click.argument("model")
@click.option("--index", default="auto", show_default=True, help="Its index branch; as `freehold serve` has it.")
@click.option("--url", help="Ask MODEL behind an OpenAI-compatible address, up to and with /v1, that scores prompts.")
@click.option("--api-key", envvar="OPENAI_API_KEY", help="For --url. Left out: OPENAI_API_KEY, if it is set.")
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
@click.option(
    "--work",
    type=click.Path(file_okay=False, path_type=Path),
    help="Keep what each window gives in this directory; what is there is not read again.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of a table.")
def evaluate(
    model: str,
    index: str,
    url: str | None,
    api_key: str | None,
    texts: tuple[Path, ...],
    windows: int,
    window_tokens: int,
    ways: tuple[str, ...],
    with_recall: bool,
    seed: int,
    work: Path | None,
    as_json: bool,
) -> None:
    """How well a model predicts held-out text.

    Its perplexity, dense and with the blocks that its index branch chooses, on the same windows. Changes are beside
    the dense model, token by token; each stands with its standard error. The first block and the most recent ones, in
    the same number, are what an index has to beat; the oracle knows the attention. With --recall: for each sparse
    layer and group, how much of its attention lies inside the chosen blocks (mass) and inside the best ones (oracle),
    and which part of the best was chosen (blocks).
    """
    from freehold.cli.working import shown_work
    from freehold.evaluation.answers import Endpoint
    from freehold.evaluation.perplexity import read_endpoint
    from freehold.training.corpus import documents_at_hand, documents_in

    if url is not None and (ways or with_recall or index != "auto" or work is not None):
        given = "--way" if ways else "--recall" if with_recall else "--index" if index != "auto" else "--work"
        raise ArgumentError(f"{given} and --url exclude each other: the server decides how its model reads")
    documents = documents_in(texts) if texts else [d for d in documents_at_hand() if d.held_out]
    recalls: list[GroupRecall] = []
    with shown_work() as progress:
        if url is not None:
            endpoint = Endpoint(url, model, api_key)
            readings = [read_endpoint(endpoint, documents, window_tokens, windows, seed, progress)]
        else:
            readings, recalls = _read(
                model, index, documents, windows, window_tokens, ways, with_recall, seed, work, progress
            )
    dense = readings[0]
    result: dict[str, Any] = {
        "tokens": dense.losses.numel(),
        "windows": len(dense.losses),
        "window_tokens": dense.losses.shape[1] + 1,
        "readings": [reading.as_json(dense) for reading in readings],
        **({"recall": [one.as_json() for one in recalls]} if with_recall else {}),
    }
    click.echo(json.dumps(result, allow_nan=False) if as_json else "\n".join(_lines(readings, recalls)))


def _read(
    model: str,
    index: str,
    documents: Sequence[Document],
    windows: int,
    window_tokens: int,
    ways: Sequence[str],
    with_recall: bool,
    seed: int,
    work: Path | None,
    progress: Progress,
) -> tuple[list[Reading], list[GroupRecall]]:
    """What a model that runs here makes of the windows."""
    from freehold.evaluation.block_recall import check_recall
    from freehold.evaluation.perplexity import check_sparse, is_sparse, read, recall
    from freehold.loading.checkpoint import open_checkpoint
    from freehold.loading.pull import resolve
    from freehold.model.index_branches import index_for
    from freehold.model.registry import load_tokenizer
    from freehold.training.corpus import windows_of

    if with_recall:
        check_recall(window_tokens)
    with open_checkpoint(resolve(model)) as checkpoint:
        held = windows_of(documents, load_tokenizer(checkpoint).encode, window_tokens, windows, seed=seed)
        sidecar = index_for(checkpoint, index)
        if with_recall:
            check_sparse(checkpoint, sidecar)  # not after hours of reading
        standard = ["index", "first and recent"] if is_sparse(checkpoint, sidecar) else ["dense"]
        wanted: Any = [way.replace("-", " ") for way in dict.fromkeys(ways)] or standard
        readings = read(checkpoint, sidecar, held, wanted, progress, work=work)
        return readings, recall(checkpoint, sidecar, held, progress) if with_recall else []


def _lines(readings: Sequence[Reading], recalls: Sequence[GroupRecall]) -> Iterator[str]:
    """For people."""
    first = readings[0]
    windows, tokens = first.losses.shape
    yield f"{windows * tokens} tokens in {windows} windows of {tokens + 1}"
    for reading in readings:
        shown = [f"{reading.way}: perplexity {reading.perplexity():.4f}"]
        if reading is not first:
            for name, begin in (("", 0.0), (" in the second half", 0.5)):
                change, error = reading.change(first, begin)
                shown.append(f"{change:+.2%} (± {error:.2%}){name}")
        yield ", ".join(shown)
    if recalls:
        yield f"{'layer':>5} {'group':>5} {'mass':>7} {'oracle':>7} {'blocks':>7}"
    for one in recalls:
        r = one.recall
        yield f"{one.layer:>5} {one.group:>5} {r.mass:>7.4f} {r.oracle:>7.4f} {r.blocks:>7.4f}"
