"""Which model a command runs, how it is fetched if it must be, and the engine around it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any

import click

from freehold.cli.options import build, dataclass_options
from freehold.core.config import EngineConfig
from freehold.core.errors import ModelNotFoundError

if TYPE_CHECKING:
    from freehold.engine.llm import LLM
    from freehold.loading.pull import Progress as Report

    Shown = Callable[[str], AbstractContextManager[Report]]
    """Where the progress of fetching a model is reported, by the model's name."""

MODEL_HELP = "A pulled name, a directory or a .gguf file; without it, the default model, fetched if it is missing."

model_argument = click.argument("model", required=False)
model_option = click.option("--model", "-m", help=MODEL_HELP)
# default_block_tokens is the cache's page for models without a block size; it is for tests of the engine.
engine_options = dataclass_options(EngineConfig, into="engine", without=("default_block_tokens",))


def obtain(model: str | None, shown: Shown | None = None) -> str:
    """The name or path to give to `LLM`: what was asked for, or the default model, fetched if it is missing.

    shown: where progress is reported; None: on stderr, for people.
    Only the default model is fetched unasked. Raises DownloadError if that fails.
    """
    from freehold.loading.pull import DEFAULT_MODEL, pull, resolve

    if model is not None and model != DEFAULT_MODEL:
        return model
    try:
        resolve(DEFAULT_MODEL)
    except ModelNotFoundError:
        from freehold.cli.fetching import shown_progress

        with (shown or shown_progress)(DEFAULT_MODEL) as progress:
            pull(DEFAULT_MODEL, progress=progress)
    return DEFAULT_MODEL


@contextmanager
def opened(model: str | None, engine: dict[str, Any], *, shown: Shown | None = None) -> Iterator[LLM]:
    """The model with its engine, closed at the end. Options that the engine refuses are wrong usage. shown: as in
    `obtain`."""
    build(EngineConfig, engine)
    name = obtain(model, shown)

    from freehold.engine.llm import LLM

    with LLM(name, **engine) as llm:
        yield llm
