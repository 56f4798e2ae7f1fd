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
@click.option(
    "--no-store",
    is_flag=True,
    help="Keep no blocks on the disk; without it, and without --store-dir, they are kept in FREEHOLD_HOME/blocks.",
)
@engine_options
def serve(
    model: str | None,
    host: str | None,
    port: int | None,
    api_key: str | None,
    aliases: tuple[str, ...],
    no_store: bool,
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
    choose_store(engine, no_store=no_store)
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


def choose_store(engine: dict[str, Any], *, no_store: bool) -> None:
    """Fill in the usual place of the block store where none is named. If another server has it, this one keeps no
    blocks and says so: two servers are more useful than one."""
    if no_store and engine["store_dir"] is not None:
        raise click.UsageError(f"--no-store and --store-dir {engine['store_dir']} exclude each other")
    if no_store or engine["store_dir"] is not None or engine["impl"] == "reference":
        return

    from freehold.cache import StoreLock
    from freehold.core.errors import StoreLockedError
    from freehold.loading.home import blocks_dir

    try:
        StoreLock(blocks_dir()).close()
    except StoreLockedError as error:
        click.echo(f"Blocks are not kept on the disk: {error}", err=True)
        return
    except OSError:
        pass  # the store itself says what is wrong with the directory, and serves without it
    engine["store_dir"] = str(blocks_dir())


def announce(url: str, model_name: str, *, with_key: bool) -> None:
    """Print the address, and a request to paste into another terminal. The key itself is not printed."""
    body = json.dumps({"model": model_name, "messages": [{"role": "user", "content": "Hello!"}]})
    # In double quotes, so that the shell fills in the variable.
    key = f' -H "Authorization: Bearer ${KEY_VARIABLE}"' if with_key else ""
    click.echo(f"Serving {model_name} on {url}/v1  (Ctrl-C ends)")
    click.echo(f"Try: curl {url}/v1/chat/completions -H 'Content-Type: application/json'{key} -d {shlex.quote(body)}")
