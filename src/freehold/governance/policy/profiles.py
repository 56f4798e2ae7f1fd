"""Policies that come with the package: each in Cedar, with the settings of its classes and the cases it is for."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import files

from freehold.core.errors import ConfigError

PROFILES = (
    "open-source",
    "product-company",
    "regulated-finance",
    "regulated-health",
    "regulated-defence",
    "critical-infrastructure",
)


@dataclass(frozen=True, slots=True)
class Profile:
    """policy: Cedar. classes: TOML, see settings.py. cases: TOML, see cases.py."""

    name: str
    policy: str
    classes: str
    cases: str


def profile(name: str) -> Profile:
    """A shipped profile. Raises ConfigError for an unknown name."""
    if name not in PROFILES:
        raise ConfigError(f"there is no profile {name!r}; there are {', '.join(PROFILES)}")
    folder = files("freehold.governance.policy").joinpath("profiles")

    def text(ending: str) -> str:
        return folder.joinpath(name + ending).read_text("utf-8")

    return Profile(name, text(".cedar"), text(".toml"), text(".cases.toml"))
