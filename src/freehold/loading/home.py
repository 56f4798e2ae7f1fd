"""Where Freehold keeps its data: one directory of the user's."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def freehold_home() -> Path:
    """The data directory, absolute; it need not exist yet.

    The environment's FREEHOLD_HOME if it is set and not empty. Otherwise the platform's place for a user's
    application data: `$XDG_DATA_HOME/freehold` or `~/.local/share/freehold`, on macOS
    `~/Library/Application Support/freehold`.
    """
    named = os.environ.get("FREEHOLD_HOME")
    if named:
        return Path(os.path.abspath(Path(named).expanduser()))
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Application Support" / "freehold"
    data = os.environ.get("XDG_DATA_HOME", "")
    # The XDG specification has relative paths ignored.
    return (Path(data) if os.path.isabs(data) else Path.home() / ".local" / "share") / "freehold"


def blocks_dir() -> Path:
    """Where computed blocks are kept, unless told otherwise."""
    return freehold_home() / "blocks"


def keys_file() -> Path:
    """Where API keys are kept, unless told otherwise."""
    return freehold_home() / "keys.json"


def budgets_file() -> Path:
    """Where the tokens that API keys have used are kept: in a directory of its own, which a sealed server may write."""
    return freehold_home() / "budgets" / "budgets.sqlite"


def experts_dir() -> Path:
    """Where experts that are read from the disk are laid out for it."""
    return freehold_home() / "experts"


def models_dir() -> Path:
    """Where pulled models are kept: one directory for each, named after it."""
    return freehold_home() / "models"
