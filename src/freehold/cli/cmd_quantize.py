"""`freehold quantize`: write a model with its weights as codes of 8 or 4 bits."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click


@click.command()
@click.argument("model")
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--bits", type=click.Choice(["8", "4"]), required=True, help="Bits of a weight's code.")
@click.option(
    "--text",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="A text that neither model has seen: the perplexity of both on it is shown. Both must fit into memory.",
)
@click.option("--text-tokens", type=click.IntRange(min=2), default=4096, show_default=True, help="So much of the text.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text.")
def quantize(model: str, out: Path, bits: str, text: Path | None, text_tokens: int, as_json: bool) -> None:
    """Write a model with its weights as codes of 8 or 4 bits.

    Every 32 weights of a row share a scale; what every token passes through, and what chooses blocks, keeps 8 bits.
    MODEL is a directory, a .gguf file or a pulled name. OUT becomes a directory if MODEL is one, and a .gguf file if
    MODEL is one. What was interrupted goes on when the same command is given again.
    """
    from freehold.cli.fetching import shown_progress
    from freehold.cli.quantities import shown_size
    from freehold.core.text_file import read_utf8
    from freehold.loading.checkpoint import open_checkpoint
    from freehold.loading.pull import resolve
    from freehold.quantize.job import quantize as write
    from freehold.quantize.report import first_tokens, layer_errors

    source = resolve(model)
    content = None if text is None else read_utf8(text)  # now: what is wrong with it is no news for the end
    with open_checkpoint(source) as checkpoint, shown_progress(model) as progress:
        ids = None if content is None else first_tokens(checkpoint, content, text_tokens)
        before = sum(file.stat().st_size for file in checkpoint.files)
        written = write(checkpoint, out, 8 if bits == "8" else 4, progress=progress)
    errors = {name: error.relative for name, error in layer_errors(written.done).items()}
    result: dict[str, Any] = {
        "path": str(written.path),
        "bits": int(bits),
        "bytes": written.nbytes,
        "bytes_before": before,
        "tensors": len(written.done),
        "resumed": written.resumed,
        "relative_errors": errors,
    }
    if ids is not None:
        result.update(_read_both(source, written.path, ids))
    if as_json:
        click.echo(json.dumps(result, allow_nan=False))
        return
    click.echo(f"{written.path}: {shown_size(written.nbytes)}, before {shown_size(before)}")
    if written.resumed:
        click.echo(f"{written.resumed} of {len(written.done)} tensors were there already")
    click.echo("error of the weights, relative to their size (root mean square):")
    for name, error in errors.items():
        click.echo(f"  {name}: {error:.4f}")
    if text is not None:
        click.echo(
            f"perplexity over {result['text_tokens']} tokens of {text.name}: {result['perplexity']:.4f}, before"
            f" {result['perplexity_before']:.4f} ({result['perplexity_change']:+.2%})"
        )
        if result["block_agreement"] is not None:
            click.echo(f"blocks chosen as before: {result['block_agreement']:.2%}")


def _read_both(source: Path, made: Path, ids: Sequence[int]) -> dict[str, Any]:
    from freehold.quantize.report import agreement, read_tokens

    before, after = (read_tokens(model, ids) for model in (source, made))
    return {
        "text_tokens": len(ids),
        "perplexity_before": before.perplexity,
        "perplexity": after.perplexity,
        "perplexity_change": after.perplexity / before.perplexity - 1,
        "block_agreement": agreement(before, after),
    }
