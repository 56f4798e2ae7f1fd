"""TOML, by the standard library where it has it."""

from __future__ import annotations

import sys
from typing import Any

from freehold.core.errors import ConfigError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


def parse_toml(text: str) -> dict[str, Any]:
    """The members of a TOML text. Raises ConfigError, which says where it is none."""
    try:
        found: dict[str, Any] = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"is no TOML: {error}") from error
    return found
