"""Betterleaks' rules for secrets, where its package is installed (the extra `secrets`). Its live checks stay off."""

from __future__ import annotations

from collections.abc import Iterator

from freehold.core.errors import ConfigError
from freehold.governance.policy.detector import Detector


def betterleaks_detector() -> Detector:
    """The detector "betterleaks". Raises ConfigError where the package is missing."""
    try:
        from betterleaks import scan_string
    except ImportError as error:
        raise ConfigError(
            "the detector 'betterleaks' needs its package: pip install 'freehold[secrets]'; or set it to \"off\""
        ) from error

    def find(text: str) -> Iterator[str]:
        for finding in scan_string(text):
            yield f"{finding.rule_id}:{finding.match.value}"

    return Detector("betterleaks", find)
