"""An answer parser that gives parts by a script, whatever the text is."""

from __future__ import annotations

from collections.abc import Sequence

from freehold.core.parts import Part


class ScriptedParser:
    """`pushes[n]` comes with push number n, nothing with later ones; `last` at the end."""

    def __init__(self, pushes: Sequence[Sequence[Part]], last: Sequence[Part] = ()) -> None:
        self._pushes = list(pushes)
        self._last = list(last)

    def push(self, text: str) -> list[Part]:
        """See AnswerParser."""
        return list(self._pushes.pop(0)) if self._pushes else []

    def finish(self) -> list[Part]:
        """See AnswerParser."""
        return self._last
