"""What every run of the tests does shortly, and ./scripts/prove at full length."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings

PROVE = bool(os.environ.get("FREEHOLD_PROVE"))
NO_LLAMA_CPP = "llama-cpp-python is not installed: ./scripts/prove compiles it, or pip install 'freehold[rivals]'"


def tried(few: int, many: int, *strategies: Any, **named: Any) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """In place of `given`: tries a property on few examples, and on many where tests marked slow run.

    The examples are new ones in every run, so that many short runs see as much as a long one.
    """

    def decorate(check: Callable[..., None]) -> Callable[..., None]:
        @pytest.mark.parametrize("examples", [few, pytest.param(many, marks=pytest.mark.slow)])
        def test(examples: int) -> None:
            settings(max_examples=examples, deadline=None)(given(*strategies, **named)(check))()

        test.__name__, test.__doc__, test.__module__ = check.__name__, check.__doc__, check.__module__
        return test

    return decorate
