"""The `freehold` command: a group whose subcommands are imported when they are called, not before."""

from __future__ import annotations

import os
from typing import Any

import click

from freehold import __version__
from freehold.cli.lazy import LazyCommand, LazyCommands
from freehold.core.errors import FreeholdError

DEBUG_VARIABLE = "FREEHOLD_DEBUG"


COMMANDS: dict[str, LazyCommand] = {
    "audit": LazyCommand("freehold.cli.cmd_audit", "audit", "Prove that nothing leaves and that records are whole."),
    "bench": LazyCommand("freehold.bench.main", "command", "Measure Freehold beside its rivals."),
    "cache": LazyCommand(
        "freehold.cli.cmd_cache", "cache", "Look at, check, pin, prune, export and import stored blocks."
    ),
    "chat": LazyCommand("freehold.cli.cmd_chat", "chat", "Talk with a model in the terminal."),
    "disclose": LazyCommand(
        "freehold.cli.cmd_disclose",
        "disclose",
        "State what a model on a path is, under whose law, and who says so; or verify such a document.",
    ),
    "cost": LazyCommand("freehold.cli.cmd_cost", "cost", "What requests cost, here and elsewhere."),
    "doctor": LazyCommand(
        "freehold.cli.cmd_doctor", "doctor", "Look at the machine and the installation, and say what is wrong."
    ),
    "gateway": LazyCommand(
        "freehold.cli.cmd_gateway", "gateway", "One door in front of several endpoints, with a policy that decides."
    ),
    "generate": LazyCommand("freehold.cli.cmd_generate", "generate", "Continue a text, or answer it with --chat."),
    "keys": LazyCommand("freehold.cli.cmd_keys", "keys", "Make, list and revoke the API keys of servers."),
    "models": LazyCommand("freehold.cli.cmd_models", "models", "List the models that were pulled."),
    "plan": LazyCommand("freehold.cli.cmd_plan", "plan", "Say what a model needs, what fits and how fast it may be."),
    "policy": LazyCommand("freehold.cli.cmd_policy", "policy", "Show, test and explain policies of the gateway."),
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


class Commands(LazyCommands):
    """The subcommands of `freehold`. A FreeholdError, or what the system refuses, for example because a disk is full,
    ends one with `error: ...` and status 1."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the subcommand; with FREEHOLD_DEBUG=1 errors keep their traceback."""
        try:
            return super().invoke(ctx)
        except (FreeholdError, OSError) as error:
            if isinstance(error, BrokenPipeError):  # click's: whoever reads has gone
                raise
            if os.environ.get(DEBUG_VARIABLE) == "1":
                raise
            click.echo(f"error: {error}", err=True)
            ctx.exit(1)
        except KeyboardInterrupt:
            click.echo(err=True)
            ctx.exit(130)  # 128 + SIGINT, what shells report for an interrupted program


@click.group(
    cls=Commands,
    entries=COMMANDS,
    epilog="Exit status: 0 done, 1 an error, 2 wrong usage. FREEHOLD_DEBUG=1 shows tracebacks.",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
@click.version_option(__version__, prog_name="freehold")
def main() -> None:
    """Run MiniMax-M3-class and Llama-type models on hardware that you own."""


if __name__ == "__main__":
    main()
