"""What clients send without any effect here: told in the log, once for each name."""

from __future__ import annotations

import logging
from collections.abc import Iterable

logger = logging.getLogger("freehold.server")

_MOST_NAMES = 200  # clients choose them


class Unheeded:
    """Names that were told. api: where they come from."""

    def __init__(self, api: str) -> None:
        self._api = api
        self._told: set[str] = set()

    def note(self, names: Iterable[str]) -> None:
        """Tells of names that were not told before. Callable from any thread; at worst one is told twice."""
        for name in names:
            shown = repr(name[:80])
            if shown not in self._told and len(self._told) < _MOST_NAMES:
                self._told.add(shown)
                logger.warning("%s: %s has no effect here and is ignored; this is told once", self._api, shown)
