"""Which parts came with which token of an answer, so that a whole answer can be told as its stream would have been."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from freehold.core.parts import Part, ReasoningPart
from freehold.model.answers.parser import AnswerParser
from freehold.server.answer import Answer, Heard


class PartRecorder:
    """An answer parser that remembers what another one gave, push by push: one for each token, and one for the end."""

    def __init__(self, parser: AnswerParser) -> None:
        self._parser = parser
        self._pushes: list[list[Part]] = []

    def push(self, text: str) -> list[Part]:
        """See AnswerParser."""
        parts = self._parser.push(text)
        self._pushes.append(parts)
        return parts

    def finish(self) -> list[Part]:
        """See AnswerParser."""
        parts = self._parser.finish()
        self._pushes.append([*(self._pushes.pop() if self._pushes else ()), *parts])
        return parts

    def heard(self, answer: Answer) -> Iterator[Heard]:
        """What was heard of `answer`, which has ended and was read by this parser, in the steps in which it came."""
        for number, parts in enumerate(self._pushes):
            yield Heard(parts, answer.tokens[number : number + 1])

    def reasoning_tokens(self) -> int:
        """How many tokens were sampled for reasoning, when the answer has ended; see `count_reasoning`."""
        return count_reasoning(self._pushes)


def count_reasoning(pushes: Sequence[Sequence[Part]]) -> int:
    """Tokens of reasoning. A token belongs to what became certain with it or, where nothing did, to what did next; so
    a tag counts with what follows it. What became certain at the very end adds no token of its own."""
    count = waiting = 0
    for number, parts in enumerate(pushes):
        waiting += number < len(pushes) - 1
        if parts:
            count += waiting if any(isinstance(part, ReasoningPart) for part in parts) else 0
            waiting = 0
    return count
