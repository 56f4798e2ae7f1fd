"""The `freehold` command: a group whose subcommands are imported when they are called, not before."""

from __future__ import annotations

import os
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import click

from freehold import __version__
from freehold.core.errors import FreeholdError

DEBUG_VARIABLE = "FREEHOLD_DEBUG"


@dataclass(frozen=True, slots=True)
class LazyCommand:
    """Where a subcommand is defined, and the line that `freehold --help` shows without importing it."""

    module: str
    attribute: str
    summary: str


COMMANDS: dict[str, LazyCommand] = {
    "bench": LazyCommand("freehold.bench.main", "command", "Measure Freehold beside its rivals."),
    "cache": LazyCommand("freehold.cli.cmd_cache", "cache", "Look at, check, prune, export and import stored blocks."),
    "chat": LazyCommand("freehold.cli.cmd_chat", "chat", "Talk with a model in the terminal."),
    "disclose": LazyCommand(
        "freehold.cli.cmd_disclose",
        "disclose",
        "State what a model on a path is, under whose law, and who says so; or verify such a document.",
    ),
    "doctor": LazyCommand(
        "freehold.cli.cmd_doctor", "doctor", "Look at the machine and the installation, and say what is wrong."
    ),
    "generate": LazyCommand("freehold.cli.cmd_generate", "generate", "Continue a text, or answer it with --chat."),
    "keys": LazyCommand("freehold.cli.cmd_keys", "keys", "Make, list and revoke the API keys of servers."),
    "models": LazyCommand("freehold.cli.cmd_models", "models", "List the models that were pulled."),
    "plan": LazyCommand("freehold.cli.cmd_plan", "plan", "Say what a model needs, what fits and how fast it may be."),
    "pull": LazyCommand("freehold.cli.cmd_pull", "pull", "Fetch a model and keep it under a name."),
    "convert": LazyCommand(
        "freehold.cli.cmd_convert", "convert", "Give a dense model an index branch, so that it reads chosen blocks."
    ),
    "eval": LazyCommand("freehold.cli.cmd_eval", "evaluate", "How well a model predicts held-out text."),
    "quantize": LazyCommand(
        "freehold.cli.cmd_quantize", "quantize", "Write a model with its weights as codes of 8 or 4 bits."
    ),
    "serve": LazyCommand("freehold.cli.cmd_serve", "serve", "Serve a model over the OpenAI-compatible API."),
    "tasks": LazyCommand("freehold.cli.cmd_tasks", "tasks", "What a model finds in long texts."),
    "train": LazyCommand("freehold.cli.cmd_train", "train", "Train a small model in MiniMax-M3's shape from scratch."),
}


class LazyGroup(click.Group):
    """A click group over `COMMANDS`. A FreeholdError ends it with `error: ...` and status 1."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The subcommands' names, sorted."""
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import and return one subcommand; None if there is none of that name."""
        entry = COMMANDS.get(cmd_name)
        if entry is None:
            return None
        command = getattr(import_module(entry.module), entry.attribute)
        assert isinstance(command, click.Command), entry
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the table of subcommands from their summaries, importing none of them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, COMMANDS[name].summary) for name in self.list_commands(ctx)])

    def invoke(self, ctx: click.Context) -> Any:
        """Run the subcommand; with FREEHOLD_DEBUG=1 errors keep their traceback."""
        try:
            return super().invoke(ctx)
        except FreeholdError as error:
            if os.environ.get(DEBUG_VARIABLE) == "1":
                raise
            click.echo(f"error: {error}", err=True)
            ctx.exit(1)
        except KeyboardInterrupt:
            click.echo(err=True)
            ctx.exit(130)  # 128 + SIGINT, what shells report for an interrupted program


@click.group(
    cls=LazyGroup,
    epilog="Exit status: 0 done, 1 an error, 2 wrong usage. FREEHOLD_DEBUG=1 shows tracebacks.",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
@click.version_option(__version__, prog_name="freehold")
def main() -> None:
    """Run MiniMax-M3-class and Llama-type models on hardware that you own."""


if __name__ == "__main__":
    main()
