"""`freehold serve`: take the port, then load the model, then answer until a signal comes."""

from __future__ import annotations

import json
import shlex
from typing import Any

import click

from freehold.cli.model import engine_options, model_argument, opened

# Shown in the help only, which must not import the server; a test holds them equal to the server's own.
SHOWN_HOST = "127.0.0.1"
SHOWN_PORT = "8000"
KEY_VARIABLE = "FREEHOLD_API_KEY"


@click.command()
@model_argument
@click.option("--host", help="Address to listen on; other than loopback needs a key.", show_default=SHOWN_HOST)
@click.option("--port", type=click.INT, help="Port to listen on; 0: any free one.", show_default=SHOWN_PORT)
@click.option(
    "--api-key",
    envvar=KEY_VARIABLE,
    help="The token that clients must send. Other users can see options; prefer the variable.",
    show_envvar=True,
)
@click.option("--alias", "aliases", multiple=True, help="A further name for the model. May be given several times.")
@engine_options
def serve(
    model: str | None,
    host: str | None,
    port: int | None,
    api_key: str | None,
    aliases: tuple[str, ...],
    engine: dict[str, Any],
) -> None:
    """Serve a model over the OpenAI-compatible API.

    MODEL is a pulled name, a directory or a .gguf file; without it, the default model is taken, and
    fetched if it is missing. The first Ctrl-C lets running answers end, the second one cuts them off.
    """
    from freehold.cli.served_model import ServedModel
    from freehold.server import run

    host = run.DEFAULT_HOST if host is None else host
    port = run.DEFAULT_PORT if port is None else port
    # Before anything slow: a taken port or a missing key should not cost the time of loading a model.
    run.require_key(host, api_key)
    with run.reserve_port(host, port) as listener, opened(model, engine) as llm:
        click.echo(llm.description, err=True)
        with ServedModel(llm) as backend:
            run.serve(
                backend,
                listener=listener,
                api_key=api_key,
                aliases=aliases,
                on_ready=lambda url: announce(url, llm.name, with_key=api_key is not None),
            )


def announce(url: str, model_name: str, *, with_key: bool) -> None:
    """Print the address, and a request to paste into another terminal. The key itself is not printed."""
    body = json.dumps({"model": model_name, "messages": [{"role": "user", "content": "Hello!"}]})
    # In double quotes, so that the shell fills in the variable.
    key = f' -H "Authorization: Bearer ${KEY_VARIABLE}"' if with_key else ""
    click.echo(f"Serving {model_name} on {url}/v1  (Ctrl-C ends)")
    click.echo(f"Try: curl {url}/v1/chat/completions -H 'Content-Type: application/json'{key} -d {shlex.quote(body)}")
