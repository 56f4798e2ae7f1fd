"""Names with values somewhere in noise, and questions for them: what a model must be able to look up."""

from __future__ import annotations

import random
from dataclasses import dataclass
from itertools import pairwise

import torch

from freehold.core.errors import ArgumentError
from freehold.training.looking import NO_SOURCE
from freehold.training.m3_forward import NO_TARGET
from freehold.training.rows import Row

SHORTEST = 32
"""Tokens of the shortest texts."""
_TOKENS_A_FACT, _TOKENS_A_QUESTION = 6, 8
"""Of the texts with the most facts; of every text."""
_LONGER = 1000


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
    """Rows of texts: facts in noise, then questions about them. Learnt are the answers, which no text has, and at the
    value of each fact whose value it is: the token before. To say that makes an early layer carry the name to where a
    question can find it. Where to look is told too: in the first layer from a value to its name, in the last from a
    question to the value.

    The texts of a row are as long as the row, or a half, a quarter, and so on, down to `SHORTEST` tokens. The first
    rows have the shortest alone, and every `_LONGER` rows texts may be twice as long: what is learnt in short ones is
    soon found in long ones. A text of n tokens has n // 8 questions, and 2 to n // 6 facts, so that noise is from a
    fourth of it to nearly all. Any fact may be asked for again.
    """

    def __init__(self, words: RetrievalWords, length: int, *, seed: int) -> None:
        """Raises ArgumentError for rows too short for a text, or too long for the names."""
        if length < SHORTEST or length // _TOKENS_A_FACT > words.names:
            raise ArgumentError(
                f"row_tokens is {length}; rows for {words.names} names have {SHORTEST} to "
                f"{(words.names + 1) * _TOKENS_A_FACT - 1} tokens"
            )
        self.words, self.length, self._seed = words, length, seed
        self._parts = [2**i for i in range((length // SHORTEST).bit_length())]

    @property
    def name(self) -> str:
        """See `Rows`."""
        return f"retrieval in {self.length} tokens, {self.words}, seed {self._seed}"

    def row(self, number: int) -> Row:
        """See `Rows`."""
        rng = random.Random(f"{self._seed} {number}")
        longest = min(number // _LONGER, len(self._parts) - 1)
        parts = rng.choice(self._parts[len(self._parts) - 1 - longest :])
        starts = [self.length * i // parts for i in range(parts)]
        texts = [self._text(rng, begin, end - begin) for begin, end in pairwise([*starts, self.length])]
        ids, targets, first, last = (torch.tensor([x for text in texts for x in text[i]]) for i in range(4))
        return Row(ids, targets, tuple(starts), torch.stack([first, last]))

    def _text(self, rng: random.Random, begin: int, length: int) -> tuple[list[int], ...]:
        """Tokens; what is to be learnt at each; where each should look in the first layer, and in the last, in a row
        where the text stands at `begin`."""
        words, questions = self.words, length // _TOKENS_A_QUESTION
        count = rng.randint(2, length // _TOKENS_A_FACT)
        names = rng.sample(range(words.names), count)
        values = [rng.randrange(words.values) for _ in names]
        room = length - 2 * questions - 3 * count
        cuts = sorted(rng.randrange(room + 1) for _ in names)
        noise, ids, told, done = words.draw_noise(rng, room), [], [], 0
        for cut, name, value in zip(cuts, names, values, strict=True):
            ids += noise[done:cut] + words.fact(name, value)
            done = cut
            told.append(len(ids) - 1)
        ids += noise[done:]
        targets, first, last = [NO_TARGET] * length, [NO_SOURCE] * length, [NO_SOURCE] * length
        for place in told:
            targets[place], first[place] = ids[place - 1], begin + place - 1
        for i in rng.choices(range(count), k=questions):
            ids += words.question(names[i])
            targets[len(ids) - 1], last[len(ids) - 1] = words.value_id(values[i]), begin + told[i]
        return ids, targets, first, last
