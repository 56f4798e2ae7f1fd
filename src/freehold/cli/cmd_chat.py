"""`freehold chat`: a conversation in the terminal, or one read from a pipe."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import suppress
from importlib import import_module
from typing import TYPE_CHECKING, Any

import click

from freehold.cli.model import engine_options, model_argument, opened
from freehold.cli.options import MODELS_OWN, build, dataclass_options, given
from freehold.core.errors import RequestError
from freehold.core.sampling import SamplingParams

if TYPE_CHECKING:
    from freehold.engine.llm import LLM

HELP = (
    "/image FILE goes with the next message, /reset forgets the conversation, /exit or Ctrl-D leaves, "
    "Ctrl-C stops an answer."
)


class Conversation:
    """The messages so far, and how the next one is answered."""

    def __init__(self, llm: LLM, params: SamplingParams, system: str | None) -> None:
        self._llm = llm
        self._params = params
        self._start = [] if system is None else [{"role": "system", "content": system}]
        self.messages: list[dict[str, Any]] = list(self._start)
        self._images: list[str] = []

    def reset(self) -> None:
        """Forget everything but the system message."""
        self.messages = list(self._start)
        self._images.clear()

    def attach(self, path: str) -> None:
        """Show an image with the next message. Raises RequestError if the model sees nothing, or nothing is there."""
        if self._llm.visual_chat is None:
            raise RequestError("this model takes no images; it has no vision tower")
        if not os.path.isfile(os.path.expanduser(path)):
            raise RequestError(f"{path!r} is no file")
        self._images.append(os.path.expanduser(path))

    def say(self, text: str) -> None:
        """Answer one message on stdout. A request that fails leaves the conversation as it was, without the images."""
        from freehold.cli.answer import follow, interruptible, show_speed

        parts = [*({"type": "image", "path": path} for path in self._images), {"type": "text", "text": text}]
        asked = [*self.messages, {"role": "user", "content": parts if self._images else text}]
        self._images.clear()
        with interruptible() as interrupt:
            prompt_ids, visuals = self._llm.prompt(asked)
            events = self._llm.events(prompt_ids, self._params, visuals=visuals)
            answer = follow(events, lambda piece: click.echo(piece, nl=False), interrupt)
        click.echo()
        show_speed(answer)
        self.messages = [*asked, {"role": "assistant", "content": answer.text}]


@click.command()
@model_argument
@click.option("--system", help="A system message at the start of the conversation.")
@dataclass_options(SamplingParams, into="sampling", models_own=MODELS_OWN)
@engine_options
def chat(model: str | None, system: str | None, sampling: dict[str, Any], engine: dict[str, Any]) -> None:
    """Talk with a model in the terminal.

    MODEL is a pulled name, a directory or a .gguf file; without it, the default model is taken, and
    fetched if it is missing. /image FILE goes with the next message, /reset forgets the conversation, /exit or
    Ctrl-D leaves, Ctrl-C stops an answer. From a pipe, each line is one message.
    """
    build(SamplingParams, sampling)  # what is wrong with it is said before the model is loaded
    with opened(model, engine) as llm:
        params = build(SamplingParams, {**sampling, **llm.sampling_defaults, **given(sampling)})
        conversation = Conversation(llm, params, system)
        if sys.stdin.isatty():
            click.echo(f"{llm.description}\n{HELP}", err=True)
            converse(conversation)
        else:
            for line in sys.stdin:
                if line.strip() in ("/exit", "/quit"):
                    return
                if line.strip() == "/reset":
                    conversation.reset()
                elif line.startswith("/image "):
                    conversation.attach(line.removeprefix("/image ").strip())
                elif line.strip():
                    conversation.say(line.rstrip("\n"))


def converse(conversation: Conversation) -> None:
    """Read and answer messages until the user leaves; errors of a request are shown and survived."""
    for line in typed_lines():
        if line in ("/exit", "/quit"):
            return
        if line == "/reset":
            conversation.reset()
            click.echo("[the conversation was forgotten]", err=True)
        elif line.startswith("/image "):
            attach(conversation, line.removeprefix("/image ").strip())
        elif line.startswith("/"):
            click.echo(f"[{line.split()[0]} is no command: {HELP}]", err=True)
        elif line:
            try:
                conversation.say(line)
            except RequestError as error:
                click.echo(f"error: {error}\n[the message was not kept; /reset makes room]", err=True)


def attach(conversation: Conversation, path: str) -> None:
    """Attach an image, and say what became of it."""
    try:
        conversation.attach(path)
        click.echo("[the image goes with the next message]", err=True)
    except RequestError as error:
        click.echo(f"error: {error}", err=True)


def typed_lines() -> Iterator[str]:
    """What the user types, line by line. Ctrl-C at the prompt drops the line, Ctrl-D ends."""
    with suppress(ImportError):  # some builds of Python lack it; input() then reads plain lines
        import_module("readline")  # importing it gives input() line editing and history
    while True:
        try:
            yield input("> ").strip()
        except EOFError:
            click.echo(err=True)
            return
        except KeyboardInterrupt:
            click.echo(f"\n[{HELP}]", err=True)
