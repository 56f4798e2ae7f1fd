"""The index branches that come with Freehold, and which one a model gets."""

from __future__ import annotations

from pathlib import Path

from freehold.core.errors import ConfigError
from freehold.loading.checkpoint import Checkpoint
from freehold.model.index_sidecar import IndexSidecar, open_index

BRANCHES = Path(__file__).parent / "branches"
"""A directory of `freehold convert` for each model; `base_digest` in its config.json says for which weights."""
AUTO, NONE = "auto", "none"


def second_branch(index: str | Path, model: Path) -> ConfigError:
    """The refusal of a branch for a model that was trained with one."""
    return ConfigError(f"{index}: {model} has an index branch of its own. Leave index out")


def index_for(checkpoint: Checkpoint, wanted: str) -> IndexSidecar | None:
    """The branch for a model's weights. wanted: a directory; `AUTO`: what comes with Freehold for exactly these
    weights, if anything does; `NONE`: no branch. Raises as `open_index`."""
    if wanted == NONE:
        return None
    if wanted != AUTO:
        return open_index(wanted)
    for path in sorted(BRANCHES.iterdir()) if BRANCHES.is_dir() else ():
        branch = open_index(path)
        if branch.base_digest == checkpoint.digest():
            return branch
        branch.checkpoint.close()
    return None
