"""What every answer parser does, and the two tools they share: a list that merges parts, and how much to hold back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from freehold.core.parts import Part, ReasoningPart, TextPart, ToolCallArguments


class AnswerParser(Protocol):
    """Turns an answer into parts, piece by piece.

    A parser is a function of the characters so far: the parts, with adjacent pieces of one kind joined, are the
    same however the text is cut. Its time is in proportion to the text, and it holds back only what may still
    become a marker, or a value whose type the rest of it decides.
    """

    def push(self, text: str) -> list[Part]:
        """The parts that became certain with `text`; often none."""
        ...

    def finish(self) -> list[Part]:
        """What was held back, as the answer is over; to be called once, after the last push.

        A call that is still open ends here with `complete=False`.
        """
        ...


class PartList:
    """Parts in order; pieces of one kind that follow each other become one part, empty pieces none."""

    __slots__ = ("_kind", "_parts", "_pieces")

    def __init__(self) -> None:
        self._parts: list[Part] = []
        self._kind: type[ReasoningPart] | type[TextPart] | int | None = None  # a number: the arguments of that call
        self._pieces: list[str] = []

    def _piece(self, kind: type[ReasoningPart] | type[TextPart] | int, piece: str) -> None:
        if piece:
            if kind != self._kind:
                self._close()
                self._kind = kind
            self._pieces.append(piece)

    def _close(self) -> None:
        whole, kind = "".join(self._pieces), self._kind
        if isinstance(kind, int):
            self._parts.append(ToolCallArguments(kind, whole))
        elif kind is not None:
            self._parts.append(kind(whole))
        self._kind, self._pieces = None, []

    def reasoning(self, piece: str) -> None:
        """Adds a piece of reasoning."""
        self._piece(ReasoningPart, piece)

    def text(self, piece: str) -> None:
        """Adds a piece of text."""
        self._piece(TextPart, piece)

    def arguments(self, index: int, piece: str) -> None:
        """Adds a piece of a call's arguments."""
        self._piece(index, piece)

    def add(self, part: Part) -> None:
        """Adds any other part."""
        self._close()
        self._parts.append(part)

    def take(self) -> list[Part]:
        """All parts; the list is used up."""
        self._close()
        return self._parts


def held_len(text: str, at: int, markers: Sequence[str]) -> int:
    """Length of the longest end of text[at:] that begins one of the markers without being the whole of it."""
    longest = max(map(len, markers)) - 1
    for length in range(min(longest, len(text) - at), 0, -1):
        end = text[len(text) - length :]
        if any(len(marker) > length and marker.startswith(end) for marker in markers):
            return length
    return 0
