"""Names with values somewhere in noise, and questions for them: what a model must be able to look up."""

from __future__ import annotations

import random
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from freehold.core.errors import ArgumentError
from freehold.training.m3_forward import NO_TARGET
from freehold.training.rows import Row

SHORTEST = 32
"""Tokens of the shortest texts."""
_TOKENS_A_FACT = 7
_LONGER = 1500


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
    """Rows of texts: facts in noise, then questions about them. Learnt are the answers, and at the value of each fact
    whose value it is: the token before. To say that makes an early layer carry the name to the value, where a
    question can find it.

    The texts of a row are as long as the row, or a half, a quarter, and so on, down to `SHORTEST` tokens. The first
    rows have the shortest alone, and every `_LONGER` rows texts may be twice as long: what is learnt in short ones is
    soon found in long ones, and long ones alone teach nothing for thousands of steps. A text of n tokens has n // 7
    facts, and as many questions; any may come again, or what was not asked yet would be a hint.
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
        texts = [self._text(rng, end - begin) for begin, end in pairwise([*starts, self.length])]
        return Row(torch.cat([ids for ids, _ in texts]), torch.cat([targets for _, targets in texts]), tuple(starts))

    def _text(self, rng: random.Random, length: int) -> tuple[Tensor, Tensor]:
        """Tokens, and what is to be learnt at each."""
        words, count = self.words, length // _TOKENS_A_FACT
        names = rng.sample(range(words.names), count)
        values = [rng.randrange(words.values) for _ in names]
        facts = [words.fact(n, v) for n, v in zip(names, values, strict=True)]
        asked = rng.choices(range(count), k=count)
        tail = [token for i in asked for token in (*words.question(names[i]), words.value_id(values[i]))]
        room = length - len(tail) - 3 * count
        cuts = sorted(rng.randrange(room + 1) for _ in facts)
        noise, tokens, done = words.draw_noise(rng, room), [], 0
        told = []  # where the values of facts stand
        for cut, fact in zip(cuts, facts, strict=True):
            tokens += noise[done:cut] + fact
            done = cut
            told.append(len(tokens) - 1)
        tokens += noise[done:] + tail
        ids = torch.tensor(tokens)
        targets = torch.full_like(ids, NO_TARGET)
        targets[told] = ids[told].new_tensor([words.first + 2 + name for name in names])
        answers = torch.arange(length - len(tail) + 1, length, 3)  # the name of each question
        targets[answers] = ids[answers + 1]
        return ids, targets
