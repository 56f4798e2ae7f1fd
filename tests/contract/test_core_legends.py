"""What `core` says about itself in words is what the code does: the error tree and the axis legend."""

from __future__ import annotations

import inspect
import re

import pytest

from freehold.core import axes, errors
from support.repository import PACKAGE, sources

ErrorTree = dict[str, tuple[str, ...]]


def drawn_tree(text: str) -> ErrorTree:
    """Error name -> names of its bases, from a drawing with box characters; order is kept."""
    found: ErrorTree = {}
    path: list[str] = []
    for line in text.splitlines():
        match = re.match(r"    ((?:[│ ]   )*)(├── |└── )?(\w+Error)(?: \((\w+)\))?(?:\s|$)", line)
        if match is None:
            continue
        rails, branch, name, other = match.groups()
        depth = len(rails) // 4 + (branch is not None)
        del path[depth:]
        bases = (path[-1], other) if path else ("Exception", other)
        found[name] = tuple(base for base in bases if base)
        path.append(name)
    return found


def real_tree() -> ErrorTree:
    """The same of the classes of the module, in their order of definition."""
    classes = [c for _, c in inspect.getmembers(errors, inspect.isclass) if c.__module__ == errors.__name__]
    classes.sort(key=lambda c: inspect.getsourcelines(c)[1])
    return {c.__name__: tuple(base.__name__ for base in c.__bases__) for c in classes}


def test_error_tree_is_drawn_as_it_is() -> None:
    drawn = drawn_tree(errors.__doc__ or "")
    assert list(drawn) == list(real_tree())
    assert drawn == real_tree()


def test_the_drawing_is_read_with_its_depth() -> None:
    drawing = """
    AError
    ├── BError (ValueError)   text
    │   └── CError
    └── DError  x
        └── EError
"""
    assert drawn_tree(drawing) == {
        "AError": ("Exception",),
        "BError": ("AError", "ValueError"),
        "CError": ("BError",),
        "DError": ("AError",),
        "EError": ("DError",),
    }


LEGEND = re.findall(r"^\| (\w+) +\|", axes.__doc__ or "", re.M)[1:]
OPERATOR_AXES = [name for name in LEGEND if name != "hidden_size"]  # the operator never sees the residual stream


@pytest.mark.parametrize("name", LEGEND)
def test_name_of_the_legend_is_used(name: str) -> None:
    others = [path for path in sources() if path != PACKAGE / "core" / "axes.py"]
    assert any(re.search(rf"\b{name}\b", path.read_text("utf-8")) for path in others)


@pytest.mark.parametrize("name", OPERATOR_AXES)
def test_operator_speaks_in_the_legend(name: str) -> None:
    assert re.search(rf"\b{name}\b", (PACKAGE / "attention" / "api.py").read_text("utf-8"))
