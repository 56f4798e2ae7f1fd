"""Names with values somewhere in noise, and questions for them: what a model must be able to look up."""

from __future__ import annotations

import random
from dataclasses import dataclass

import torch

from freehold.core.errors import ArgumentError
from freehold.training.m3_forward import NO_TARGET
from freehold.training.rows import Row


@dataclass(frozen=True, slots=True)
class RetrievalWords:
    """Token ids of the task: `first` is <set>, then <get>, names, values and noise."""

    first: int
    names: int
    values: int
    noise: int

    @property
    def count(self) -> int:
        """All of them."""
        return 2 + self.names + self.values + self.noise

    def spelt(self) -> list[str]:
        """The words, in the order of their ids."""
        kinds = (("name", self.names), ("value", self.values), ("noise", self.noise))
        return ["<set>", "<get>", *(f"<{kind}-{i}>" for kind, n in kinds for i in range(n))]

    def fact(self, name: int, value: int) -> list[int]:
        """<set> name value."""
        return [self.first, self.first + 2 + name, self.value_id(value)]

    def question(self, name: int) -> list[int]:
        """<get> name."""
        return [self.first + 1, self.first + 2 + name]

    def value_id(self, value: int) -> int:
        """The token of a value."""
        return self.first + 2 + self.names + value

    def draw_noise(self, rng: random.Random, count: int) -> list[int]:
        """`count` tokens that mean nothing."""
        begin = self.first + 2 + self.names + self.values
        return [begin + i for i in rng.choices(range(self.noise), k=count)]


class RetrievalRows:
    """Rows of facts in noise, then questions about them; only the answers are learnt."""

    def __init__(self, words: RetrievalWords, length: int, *, facts: int, questions: int, seed: int) -> None:
        """facts, questions: of a row. Raises ArgumentError if they do not fit."""
        if facts > words.names or 3 * (facts + questions) > length or questions > facts:
            raise ArgumentError(
                f"{facts} facts and {questions} questions do not fit into {length} tokens and {words.names} names"
            )
        self.words, self.length, self.facts, self.questions, self._seed = words, length, facts, questions, seed

    @property
    def name(self) -> str:
        """See `Rows`."""
        return f"retrieval, {self.facts} facts, {self.questions} questions, {self.words}, seed {self._seed}"

    def row(self, number: int) -> Row:
        """See `Rows`."""
        rng, words = random.Random(f"{self._seed} {number}"), self.words
        names = rng.sample(range(words.names), self.facts)
        values = [rng.randrange(words.values) for _ in names]
        facts = [words.fact(n, v) for n, v in zip(names, values, strict=True)]
        asked = rng.sample(range(self.facts), self.questions)
        tail = [token for i in asked for token in (*words.question(names[i]), words.value_id(values[i]))]
        room = self.length - len(tail) - 3 * self.facts
        cuts = sorted(rng.randrange(room + 1) for _ in facts)
        noise, tokens, done = words.draw_noise(rng, room), [], 0
        for cut, fact in zip(cuts, facts, strict=True):
            tokens += noise[done:cut] + fact
            done = cut
        tokens += noise[done:] + tail
        ids = torch.tensor(tokens)
        targets = torch.full_like(ids, NO_TARGET)
        answers = torch.arange(self.length - len(tail) + 1, self.length, 3)  # the name of each question
        targets[answers] = ids[answers + 1]
        return Row(ids, targets, (0,))
