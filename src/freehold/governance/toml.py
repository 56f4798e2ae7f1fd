"""TOML files of users, with exact decimals."""

from __future__ import annotations

import sys
from decimal import Decimal
from pathlib import Path
from typing import Any

from freehold.core.errors import ConfigError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


def read_toml(path: Path, what: str) -> dict[str, Any]:
    """The file's members; fractions as Decimal. what: for the message. Raises ConfigError."""
    try:
        document: dict[str, Any] = tomllib.loads(path.read_text("utf-8"), parse_float=Decimal)
    except OSError as error:
        raise ConfigError(f"{what} {path} cannot be read: {error.strerror}") from error
    except ValueError as error:  # wrong TOML, or no UTF-8
        raise ConfigError(f"{what} {path} is no TOML: {error}") from error
    return document
