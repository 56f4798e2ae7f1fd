"""What decides at the gateway, from the files and the profile that a command was given."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from freehold.core.errors import ConfigError

if TYPE_CHECKING:
    from freehold.governance.policy.classify import Classifier
    from freehold.governance.policy.rules import Rules

# Shown in the help only, which must not import Cedar; a test holds them equal to the shipped ones.
SHOWN_PROFILES = (
    "open-source",
    "product-company",
    "regulated-finance",
    "regulated-health",
    "regulated-defence",
    "critical-infrastructure",
)


def policy_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Gives a command --profile, --policy and --classes."""
    file = click.Path(path_type=Path, dir_okay=False)
    for option in (
        click.option("--classes", type=file, help="Which finding means which class (TOML); instead of the profile's."),
        click.option("--policy", type=file, help="The policy (Cedar); instead of the profile's."),
        click.option("--profile", type=click.Choice(SHOWN_PROFILES), help="A policy that comes with Freehold."),
    ):
        command = option(command)
    return command


def load_policy(profile: str | None, policy: Path | None, classes: Path | None) -> tuple[Rules, Classifier]:
    """Read and check it all.

    Without classes and profile every class is the strictest there is. Raises ConfigError and GovernanceError for
    files that cannot be used, and click.UsageError where nothing says what the policy is.
    """
    from freehold.governance.policy.classify import Classifier
    from freehold.governance.policy.profiles import profile as shipped
    from freehold.governance.policy.rules import Rules
    from freehold.governance.policy.settings import ClassSettings, read_settings

    if profile is None and policy is None:
        raise click.UsageError("give --policy FILE, or --profile NAME for a policy that comes with Freehold")
    known = None if profile is None else shipped(profile)
    if policy is not None:
        rules = Rules(read_file(policy), str(policy))
    else:
        assert known is not None
        rules = Rules(known.policy, f"the profile {known.name}")
    if classes is not None:
        settings = read_settings(read_file(classes), str(classes))
    else:
        settings = ClassSettings() if known is None else read_settings(known.classes, f"the profile {known.name}")
    return rules, Classifier(settings)


def read_file(path: Path) -> str:
    """A text. Raises ConfigError where there is none."""
    from freehold.core.text_file import read_utf8

    try:
        return read_utf8(path)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error
