"""`freehold chat`: a conversation in the terminal, or one read from a pipe."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import suppress
from importlib import import_module
from typing import TYPE_CHECKING, Any

import click

from freehold.cli.model import engine_options, model_argument, opened
from freehold.cli.options import build, dataclass_options, given
from freehold.core.errors import RequestError
from freehold.core.sampling import SamplingParams

if TYPE_CHECKING:
    from freehold.engine.llm import LLM

HELP = "/reset forgets the conversation, /exit or Ctrl-D leaves, Ctrl-C stops an answer."


class Conversation:
    """The messages so far, and how the next one is answered."""

    def __init__(self, llm: LLM, params: SamplingParams, system: str | None) -> None:
        self._llm = llm
        self._params = params
        self._start = [] if system is None else [{"role": "system", "content": system}]
        self.messages = list(self._start)

    def reset(self) -> None:
        """Forget everything but the system message."""
        self.messages = list(self._start)

    def say(self, text: str) -> None:
        """Answer one message on stdout. A request that fails leaves the conversation as it was."""
        from freehold.cli.answer import follow, interruptible, show_speed

        asked = [*self.messages, {"role": "user", "content": text}]
        with interruptible() as interrupt:
            prompt_ids = self._llm.render_chat(asked)
            events = self._llm.events(prompt_ids, self._params)
            answer = follow(events, lambda piece: click.echo(piece, nl=False), interrupt)
        click.echo()
        show_speed(answer)
        self.messages = [*asked, {"role": "assistant", "content": answer.text}]


@click.command()
@model_argument
@click.option("--system", help="A system message at the start of the conversation.")
@dataclass_options(SamplingParams, into="sampling")
@engine_options
def chat(model: str | None, system: str | None, sampling: dict[str, Any], engine: dict[str, Any]) -> None:
    """Talk with a model in the terminal.

    MODEL is a pulled name, a directory or a .gguf file; without it, the default model is taken, and
    fetched if it is missing. /reset forgets the conversation, /exit or Ctrl-D leaves, Ctrl-C stops an answer.
    From a pipe, each line is one message.
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
        elif line.startswith("/"):
            click.echo(f"[{line.split()[0]} is no command: {HELP}]", err=True)
        elif line:
            try:
                conversation.say(line)
            except RequestError as error:
                click.echo(f"error: {error}\n[the message was not kept; /reset makes room]", err=True)


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
