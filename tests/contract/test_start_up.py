"""`freehold --help` answers at once: it imports neither torch nor a subcommand."""

from __future__ import annotations

import subprocess
import sys
import time

import click
import pytest

from freehold.cli.main import COMMANDS, main

RUN = "from freehold.cli.main import main; main({arguments!r}, standalone_mode=False)"
HEAVY = ("torch", "transformers", "fastapi", "uvicorn", "numpy", "huggingface_hub")
ALLOWED_SECONDS = 0.3  # above what the bare interpreter takes


def python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def fastest(code: str, times: int = 5) -> float:
    """Seconds of the fastest of some runs: the one that other work on the machine disturbed least."""
    taken = []
    for _ in range(times):
        start = time.perf_counter()
        python(code)
        taken.append(time.perf_counter() - start)
    return min(taken)


@pytest.mark.parametrize("arguments", [["--help"], ["--version"]], ids=" ".join)
def test_answers_at_once(arguments: list[str]) -> None:
    assert fastest(RUN.format(arguments=arguments)) - fastest("pass") < ALLOWED_SECONDS


@pytest.mark.parametrize(
    "arguments", [["--help"], ["--version"], *([name, "--help"] for name in sorted(COMMANDS))], ids=" ".join
)
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    code = f"import sys; {RUN.format(arguments=arguments)}; print(sorted(set(sys.modules) & set({HEAVY!r})))"
    assert python(code).splitlines()[-1] == "[]"


def test_help_imports_no_subcommand() -> None:
    code = f"import sys; {RUN.format(arguments=['--help'])}; print([m for m in sys.modules if '.cmd_' in m])"
    assert python(code).splitlines()[-1] == "[]"


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_summary_is_the_first_sentence_of_the_command(name: str) -> None:
    command = main.get_command(click.Context(main), name)
    assert command is not None
    assert command.get_short_help_str(limit=200).rstrip(".") == COMMANDS[name].summary.rstrip(".")
