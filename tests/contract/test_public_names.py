"""What other people may import, and that importing it needs nothing optional."""

from __future__ import annotations

import subprocess
import sys

import freehold
import freehold.attention
from support.repository import PACKAGE, ROOT

OPTIONAL = ("transformers", "accelerate", "av", "llama_cpp", "openai", "betterleaks", "hypothesis", "pytest")


def test_names_of_the_package() -> None:
    assert sorted(freehold.__all__) == ["LLM", "__version__"]
    assert [name for name in freehold.__all__ if not hasattr(freehold, name)] == []


def test_names_of_the_attention_operator() -> None:
    assert sorted(freehold.attention.__all__) == [
        "attend_blocks",
        "dense_attention",
        "index_kl_loss",
        "select_blocks",
        "sparse_attention",
    ]
    assert [name for name in freehold.attention.__all__ if not callable(getattr(freehold.attention, name))] == []


def test_unknown_names_are_refused() -> None:
    assert not hasattr(freehold, "Llm")


def run_blocked(code: str, blocked: tuple[str, ...]) -> subprocess.CompletedProcess[str]:
    guard = f"""
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked!r}:
            raise ImportError(f"{{name}} is not installed (blocked by the test)")
sys.meta_path.insert(0, Blocked())
"""
    return subprocess.run([sys.executable, "-c", guard + code], capture_output=True, text=True, cwd=ROOT)


def test_every_room_imports_without_optional_packages() -> None:
    rooms = sorted(path.parent.name for path in PACKAGE.glob("*/__init__.py"))
    code = "\n".join(["import freehold", "freehold.LLM", *(f"import freehold.{room}" for room in rooms)])
    done = run_blocked(code, OPTIONAL)
    assert done.returncode == 0, done.stderr


def test_the_block_on_optional_packages_works() -> None:
    done = run_blocked("import hypothesis.strategies", OPTIONAL)
    assert done.returncode != 0
    assert "blocked by the test" in done.stderr


def test_every_module_imports_without_optional_packages() -> None:
    """Modules, not only rooms. A bench/side_*.py is one side of a comparison, run in a process of its own:
    it imports its rival, and nothing but that process imports it."""
    modules = sorted(
        ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)
        for path in PACKAGE.rglob("*.py")
        if path.name not in ("__init__.py", "__main__.py") and not path.name.startswith("side_")
    )
    done = run_blocked("\n".join(f"import {name}" for name in modules), OPTIONAL)
    assert done.returncode == 0, done.stderr


def test_importing_the_package_costs_no_torch() -> None:
    code = "import freehold, freehold.core, sys; assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
