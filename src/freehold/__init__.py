"""Freehold runs MiniMax-M3-class models on hardware that you own: exactly, fast, and provably private."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from freehold.engine.llm import LLM

__all__ = ["LLM", "__version__"]

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    # Imported on first use, so that `import freehold` and `freehold --help` do not pay for torch.
    if name == "LLM":
        from freehold.engine.llm import LLM

        return LLM
    raise AttributeError(f"module 'freehold' has no attribute {name!r}")
