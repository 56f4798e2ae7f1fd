"""`freehold generate`: one prompt, one answer on stdout, what it took on stderr."""

from __future__ import annotations

import json
import sys
from typing import IO, Any

import click

from freehold.cli.model import engine_options, model_option, opened
from freehold.cli.options import MODELS_OWN, build, dataclass_options, given
from freehold.core.sampling import SamplingParams


@click.command()
@model_option
@click.option("--prompt", help="The prompt itself. Without --prompt and --file it is read from stdin.")
@click.option("--file", type=click.File(encoding="utf-8"), help="A file that holds the prompt; - is stdin.")
@click.option(
    "--chat/--raw",
    default=False,
    help="--raw continues the prompt as it stands; --chat makes it a message in the model's chat format.",
    show_default="raw",
)
@click.option("--system", help="A system message before the prompt; needs --chat.")
@click.option(
    "--image",
    "images",
    type=click.Path(exists=True, dir_okay=False),
    multiple=True,
    help="An image before the prompt; needs --chat and a model that sees. May be given several times.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of the text.")
@dataclass_options(SamplingParams, into="sampling", models_own=MODELS_OWN)
@engine_options
def generate(
    model: str | None,
    prompt: str | None,
    file: IO[str] | None,
    chat: bool,
    system: str | None,
    images: tuple[str, ...],
    as_json: bool,
    sampling: dict[str, Any],
    engine: dict[str, Any],
) -> None:
    """Continue a text, or answer it with --chat.

    The text streams to stdout; token counts and speeds follow on stderr. Ctrl-C ends the answer, with
    status 130.
    """
    if system is not None and not chat:
        raise click.UsageError("--system is part of a conversation; add --chat")
    if images and not chat:
        raise click.UsageError("--image is part of a conversation; add --chat")
    build(SamplingParams, sampling)  # what is wrong with it is said before the model is loaded
    text = read_prompt(prompt, file)

    from freehold.cli.answer import follow, interruptible, show_speed

    with opened(model, engine) as llm, interruptible() as interrupt:
        params = build(SamplingParams, {**sampling, **llm.sampling_defaults, **given(sampling)})
        if chat:
            messages = [{"role": "system", "content": system}] if system is not None else []
            content = [*({"type": "image", "path": path} for path in images), {"type": "text", "text": text}]
            user = {"role": "user", "content": content if images else text}
            prompt_ids, visuals = llm.prompt([*messages, user])
        else:
            prompt_ids, visuals = llm.encode(text), ()
        answer = follow(
            llm.events(prompt_ids, params, visuals=visuals),
            write=(lambda piece: None) if as_json else (lambda piece: click.echo(piece, nl=False)),
            interrupt=interrupt,
        )
    if as_json:
        click.echo(json.dumps(answer.as_json()))
    elif not answer.text.endswith("\n"):
        click.echo()
    show_speed(answer)
    if interrupt.pressed:
        raise KeyboardInterrupt


def read_prompt(prompt: str | None, file: IO[str] | None) -> str:
    """The prompt from --prompt, --file or stdin; a usage error if two are named or it is empty."""
    if prompt is not None and file is not None:
        raise click.UsageError("--prompt and --file are both given; give one of them")
    if prompt is None:
        source = file or sys.stdin
        if source.isatty():
            click.echo("Reading the prompt from the terminal; Ctrl-D ends it.", err=True)
        try:
            prompt = source.read()
        except UnicodeDecodeError as error:
            raise click.UsageError(f"{source.name} is no UTF-8 text ({error.reason} at byte {error.start})") from None
    if not prompt:
        raise click.UsageError("the prompt is empty; give it with --prompt, --file or on stdin")
    return prompt
