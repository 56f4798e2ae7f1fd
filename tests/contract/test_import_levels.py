"""A room imports only rooms with a strictly smaller level, wherever in a file the import stands."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.repository import PACKAGE, ROOT, module_name, relative, sources, tree

LEVELS = {
    "core": 0,
    "kernels": 1,
    "governance": 1,
    "attention": 2,
    "cache": 2,
    "loading": 2,
    "model": 3,
    "engine": 4,
    "training": 4,
    "integrations": 4,
    "server": 5,
    "bench": 5,
    "evaluation": 5,
    "quantize": 5,
    "plan": 6,
    "cli": 7,
}

# `freehold/__init__.py` stands above all rooms; this name is a constant and may be read from anywhere.
OPEN_NAMES = {"__version__"}
NATIVE_LIBRARY = "freehold._native"


def imported_modules(node: ast.AST) -> Iterator[str]:
    """Dotted names of what one syntax node imports, `import_module` with a literal name among them."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        assert node.level == 0, f"line {node.lineno}: relative import; write the full name"
        yield from (f"{node.module}.{alias.name}" for alias in node.names)
    elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
        name = getattr(node.func, "attr", None) or getattr(node.func, "id", None)
        if name in ("import_module", "__import__"):
            yield str(node.args[0].value)


def violations(source: ast.AST, room: str) -> list[str]:
    found = []
    for node in ast.walk(source):
        for target in imported_modules(node):
            top, _, rest = target.partition(".")
            other = rest.partition(".")[0]
            if top != "freehold" or other == room or other in OPEN_NAMES:
                continue
            where = f"line {getattr(node, 'lineno', '?')}: {room} imports {target}"
            if target.startswith(NATIVE_LIBRARY):
                if room != "kernels":
                    found.append(f"{where}; only kernels knows that a compiled library exists")
            elif other not in LEVELS:
                found.append(f"{where}, which is no room")
            elif LEVELS[other] >= LEVELS[room]:
                found.append(f"{where}: level {LEVELS[room]} needs levels below, {other} has {LEVELS[other]}")
    return found


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0]


ROOM_FILES = [path for path in sources() if path.parent != PACKAGE]


@pytest.mark.parametrize("path", ROOM_FILES, ids=module_name)
def test_file_imports_only_lower_levels(path: Path) -> None:
    assert violations(tree(path), room_of(path)) == [], relative(path)


def test_every_folder_of_the_package_has_a_level() -> None:
    folders = {path.name for path in PACKAGE.iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert folders <= LEVELS.keys()


@pytest.mark.parametrize(
    ("room", "source"),
    [
        ("cache", "import freehold.attention"),
        ("attention", "from freehold.cache import pool"),
        ("kernels", "from freehold import engine"),
        ("core", "def f():\n    from freehold.kernels import x"),
        ("model", "if TYPE_CHECKING:\n    from freehold.engine.llm import LLM"),
        ("loading", "importlib.import_module('freehold.model.llama')"),
        ("server", "from freehold import LLM"),
        ("cli", "import freehold"),
        ("model", "from freehold import _native"),
    ],
)
def test_the_check_sees_every_kind_of_import(room: str, source: str) -> None:
    assert len(violations(ast.parse(source), room)) == 1


@pytest.mark.parametrize(
    ("room", "source"),
    [
        ("cli", "from freehold.server.app import create_app"),
        ("server", "from freehold import __version__"),
        ("kernels", "from freehold import _native"),
        ("cache", "from freehold.cache.pool import Pool"),
        ("core", "import freeholdings"),
    ],
)
def test_the_check_allows_what_the_rule_allows(room: str, source: str) -> None:
    assert violations(ast.parse(source), room) == []


def test_contributing_shows_the_same_levels() -> None:
    rows = re.findall(r"^\| (\d+) \| ([^|]+) \|", (ROOT / "CONTRIBUTING.md").read_text("utf-8"), re.M)
    shown = {room: int(level) for level, rooms in rows for room in re.findall(r"`(\w+)`", rooms)}
    present = {path.name for path in PACKAGE.iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert shown == {room: level for room, level in LEVELS.items() if room in present}
