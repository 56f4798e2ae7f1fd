"""`freehold models`: what was pulled, and where it is."""

from __future__ import annotations

import json
from dataclasses import asdict

import click


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of the table.")
def models(as_json: bool) -> None:
    """List the models that were pulled.

    Sizes are those of the files that hold tensors.
    """
    from freehold.loading.home import models_dir
    from freehold.loading.pull import list_models

    known = list_models()
    if as_json:
        click.echo(json.dumps({"models": [asdict(model) for model in known]}, default=str))
        return
    if not known:
        click.echo(f"No model was pulled into {models_dir()} yet; `freehold pull` fetches the default one.", err=True)
        return
    width = max(len(model.name) for model in known)
    for model in known:
        click.echo(f"{model.name:<{width}}  {model.size / 1e9:8.2f} GB  {model.path}")
