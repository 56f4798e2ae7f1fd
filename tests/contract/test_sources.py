"""Habits that hold for every source file: docstrings, short functions, no notes to ourselves."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.repository import PACKAGE, module_name, relative, sources, text_files, tree

FunctionNode = ast.FunctionDef | ast.AsyncFunctionDef

LONGEST_FUNCTION = 60
DOCUMENTED_ROOMS = ("attention", "kernels", "engine")


def functions(node: ast.AST) -> Iterator[FunctionNode]:
    return (child for child in ast.walk(node) if isinstance(child, FunctionNode))


def code_lines(function: FunctionNode) -> int:
    """Lines from `def` to the end, the docstring left out."""
    assert function.end_lineno is not None
    first = function.body[0]
    documented = ast.get_docstring(function) is not None
    docstring = (first.end_lineno or first.lineno) - first.lineno + 1 if documented else 0
    return function.end_lineno - function.lineno + 1 - docstring


def public_without_docstring(source: ast.Module) -> list[str]:
    """Public functions, classes and methods of a module that say nothing about themselves."""
    found = []
    todo: list[tuple[str, ast.stmt]] = [("", statement) for statement in source.body]
    for prefix, node in todo:
        if not isinstance(node, FunctionNode | ast.ClassDef) or node.name.startswith("_"):
            continue
        overloaded = any("overload" in ast.unparse(decorator) for decorator in node.decorator_list)
        if ast.get_docstring(node) is None and not overloaded:
            found.append(f"line {node.lineno}: {prefix}{node.name}")
        if isinstance(node, ast.ClassDef):
            todo += [(f"{node.name}.", statement) for statement in node.body]
    return found


@pytest.mark.parametrize("path", sources(), ids=module_name)
def test_every_module_says_what_it_is(path: Path) -> None:
    assert ast.get_docstring(tree(path)), f"{relative(path)} has no docstring"


@pytest.mark.parametrize("path", sources(), ids=module_name)
def test_functions_are_short(path: Path) -> None:
    if path.is_relative_to(PACKAGE / "kernels"):
        return
    long = {f"{f.name} (line {f.lineno})": code_lines(f) for f in functions(tree(path))}
    assert {name: lines for name, lines in long.items() if lines > LONGEST_FUNCTION} == {}


@pytest.mark.parametrize("room", DOCUMENTED_ROOMS)
def test_public_functions_are_documented(room: str) -> None:
    silent = {relative(path): public_without_docstring(tree(path)) for path in sources(PACKAGE / room)}
    assert {path: names for path, names in silent.items() if names} == {}


def test_the_checks_see_what_they_look_for() -> None:
    source = ast.parse(
        "def f():\n    '''One.\n\n    Two.\n    '''\n    return 1\n"
        "class C:\n    '''C.'''\n    def g(self): pass\n    def _h(self): pass\n"
    )
    assert [code_lines(f) for f in functions(source)] == [2, 1, 1]
    assert public_without_docstring(source) == ["line 9: C.g"]


# Put together here, so that this file does not hold the words it looks for.
NOTES = re.compile("|".join(["TO" + "DO", "FIX" + "ME", "(?i:issue) " + r"#\d"]))


@pytest.mark.parametrize("path", text_files(), ids=relative)
def test_no_notes_to_ourselves(path: Path) -> None:
    lines = path.read_text("utf-8").splitlines()
    assert [f"{number}: {line}" for number, line in enumerate(lines, 1) if NOTES.search(line)] == []
