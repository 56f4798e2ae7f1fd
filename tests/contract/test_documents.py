"""Documents name files, commands, options and versions that exist."""

from __future__ import annotations

import ast
import re
import shlex
from pathlib import Path

import click
import pytest

import freehold
from freehold.cli.main import main
from support.repository import PACKAGE, ROOT, code_spans, documents, relative

PAGES = documents()
TOP_FOLDERS = "|".join(re.escape(path.name) for path in ROOT.iterdir() if path.is_dir() and path.name != ".git")
MADE_BY_TOOLS = (".venv", "build", "dist")


def named_paths(markdown: str) -> set[str]:
    """What looks like a path of the repository: `folder/file`, with or without `./` and `:symbol`."""
    rooms = "|".join(path.name for path in PACKAGE.iterdir() if path.is_dir())
    path = rf"(?<![\w./-])(?:\./)?((?:{TOP_FOLDERS}|{rooms})/[\w./-]*\w(?::[A-Za-z_]\w*)?)"
    return {found for span in code_spans(markdown) for found in re.findall(path, span)}


def problem_with_path(named: str) -> str | None:
    """None if the path, and the symbol after a colon, exist. Paths of rooms may leave out `src/freehold/`."""
    name, _, symbol = named.partition(":")
    if name.partition("/")[0] in MADE_BY_TOOLS:
        return None
    path = next((base / name for base in (ROOT, PACKAGE) if (base / name).exists()), None)
    if path is None:
        return f"{name} does not exist"
    if symbol:
        names = {getattr(node, "name", None) for node in ast.walk(ast.parse(path.read_text("utf-8")))}
        return None if symbol in names else f"{name} defines no {symbol}"
    return None


@pytest.mark.parametrize("page", PAGES, ids=relative)
def test_named_paths_exist(page: Path) -> None:
    problems = {problem_with_path(path) for path in named_paths(page.read_text("utf-8"))} - {None}
    assert problems == set()


@pytest.mark.parametrize("page", PAGES, ids=relative)
def test_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\((?!https?:|mailto:|#)([^)#\s]+)", page.read_text("utf-8"))
    assert [link for link in links if not (page.parent / link).exists()] == []


def problem_with_command(line: str) -> str | None:
    """None if `freehold WORDS --options` is a call that the command line knows, as far as names go."""
    command: click.Command = main
    context = click.Context(command)
    words = shlex.split(line, comments=True)[1:]
    while isinstance(command, click.Group) and words and re.fullmatch(r"[a-z][\w-]*", words[0]):
        found = command.get_command(context, words[0])
        if found is None:
            return f"no subcommand {words[0]!r} in: {line}"
        command, words = found, words[1:]
    known = {name for param in command.params for name in (*param.opts, *param.secondary_opts)} | {"--help"}
    unknown = [w for w in words if w.startswith("--") and w != "--" and w.partition("=")[0] not in known]
    return f"{command.name} has no option {unknown[0]} in: {line}" if unknown else None


def named_commands(markdown: str) -> list[str]:
    """Lines of code that call `freehold`, continued lines joined, pipes and redirections cut off."""
    spans = [span.replace("\\\n", " ") for span in code_spans(markdown)]
    serve = [
        re.sub(r"^(\s*(?:\$ )?)\./scripts/serve\b", r"\1freehold serve", line) for s in spans for line in s.split("\n")
    ]
    calls = (re.match(r"\s*(?:\$ )?(?:[A-Z_]+=\S+ )*(freehold(?: [^|>&;]*)?)", line) for line in serve)
    return [call.group(1).strip() for call in calls if call and not call.group(1).startswith("freehold.")]


@pytest.mark.parametrize("page", PAGES, ids=relative)
def test_named_commands_exist(page: Path) -> None:
    problems = {problem_with_command(line) for line in named_commands(page.read_text("utf-8"))} - {None}
    assert problems == set()


def test_the_checks_see_wrong_names() -> None:
    page = "`freehold fly`, `freehold serve --wings 2`, `./scripts/serve --tail`\n"
    page += "```sh\nfreehold pull x --name y\n```\n"
    problems = [problem_with_command(line) for line in named_commands(page)]
    assert [problem and problem.partition(" in:")[0] for problem in problems] == [
        None,
        "no subcommand 'fly'",
        "serve has no option --wings",
        "serve has no option --tail",
    ]
    paths = named_paths("`core/errors.py:FreeholdError` `core/errors.py:Nope` `./scripts/nope` `and/or` `x/core/y`")
    assert {problem_with_path(path) for path in paths} == {
        None,
        "core/errors.py defines no Nope",
        "scripts/nope does not exist",
    }


def test_one_version_everywhere() -> None:
    changelog = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.M)
    project = re.search(r'^version = "(.+)"', (ROOT / "pyproject.toml").read_text("utf-8"), re.M)
    assert changelog
    assert project
    assert changelog.group(1) == project.group(1) == freehold.__version__


def test_log_entries_are_dated() -> None:
    names = {path.name for path in (ROOT / "docs" / "log").iterdir()}
    assert "README.md" in names
    wrong = [n for n in names - {"README.md"} if not re.match(r"\d{4}-\d{2}-\d{2}-[a-z0-9-]+(\.|$)", n)]
    assert wrong == []
