"""Answers of models without a format for reasoning or tool calls: everything is text."""

from __future__ import annotations

from freehold.core.parts import Part, TextPart


class PlainParser:
    """Passes everything on as text, at once."""

    def push(self, text: str) -> list[Part]:
        """The text itself; nothing for an empty one."""
        return [TextPart(text)] if text else []

    def finish(self) -> list[Part]:
        """Nothing: nothing was held back."""
        return []
