"""The repository as text: its files, its syntax trees and its documents, for the contract tests."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "src" / "freehold"

TEXT_SUFFIXES = {
    ".py",
    ".md",
    ".toml",
    ".cpp",
    ".h",
    ".txt",
    ".cmake",
    ".html",
    ".js",
    ".css",
    ".yml",
    ".yaml",
    "",
}
TEXT_PLACES = (".ci", "docs", "examples", "native", "scripts", "src", "tests")


def sources(folder: Path = PACKAGE) -> list[Path]:
    """Every Python file below a folder, sorted."""
    return sorted(path for path in folder.rglob("*.py") if "__pycache__" not in path.parts)


@cache
def tree(path: Path) -> ast.Module:
    """The syntax tree of one Python file."""
    return ast.parse(path.read_text("utf-8"), filename=str(path))


def module_name(path: Path) -> str:
    """The dotted name under which a file of the package is imported."""
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def text_files() -> list[Path]:
    """Every text file of the project that people write: sources, tests, scripts and documents."""
    found = [path for path in ROOT.iterdir() if path.is_file() and path.suffix in {".md", ".toml", ".txt"}]
    for place in TEXT_PLACES:
        found += [path for path in (ROOT / place).rglob("*") if path.is_file()]
    return sorted(p for p in found if p.suffix in TEXT_SUFFIXES and "__pycache__" not in p.parts)


def documents() -> list[Path]:
    """README, CONTRIBUTING and docs/. Entries of the log speak of their own day and are left out."""
    log = ROOT / "docs" / "log"
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
    return sorted(page for page in pages if page.parent != log or page.name == "README.md")


def code_spans(markdown: str) -> Iterator[str]:
    """The fenced blocks and the backticked spans of a Markdown text."""
    fence = re.compile(r"^(```|~~~)[^\n]*\n(.*?)^\1", re.M | re.S)
    for match in fence.finditer(markdown):
        yield match.group(2)
    for match in re.finditer(r"`([^`\n]+)`", fence.sub("", markdown)):
        yield match.group(1)


def relative(path: Path) -> str:
    """A path as the repository's readers write it."""
    return path.relative_to(ROOT).as_posix()
