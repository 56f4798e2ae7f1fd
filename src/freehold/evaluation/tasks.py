"""Generated questions about long texts, in the manner of RULER (arXiv 2404.06654): what a model finds, and where."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from freehold.core.errors import ArgumentError

Task = Literal["needle", "needles", "variables", "words"]
TASKS: tuple[Task, ...] = ("needle", "needles", "variables", "words")

_CITIES = (
    "Lisbon Oslo Cairo Lima Kyoto Dakar Quito Riga Hanoi Tunis Perth Bogota Turin Accra Izmir Leeds Malaga Osaka Porto "
    "Sofia Tampa Utrecht Varna Zagreb"
).split()
_WORDS = (
    "anchor basket candle desert engine feather garden hammer island jacket kettle ladder marble needle orange pillow "
    "quarry ribbon saddle tunnel umbrella velvet walnut yellow"
).split()
_FILLER = (
    "The grass is green.", "The sky is blue.", "The sun is yellow.", "Here we go.", "There and back again.",
    "The river runs to the sea.", "A train passes every hour.", "Nobody was at the door.",
)  # fmt: skip

Count = Callable[[str], int]
"""Tokens of a text."""


@dataclass(frozen=True, slots=True)
class Question:
    """prompt: ends where the answer begins. answers: each must stand in what comes. depth: where the needle lies, 0 the
    beginning and 1 the end; None where there is no single place."""

    prompt: str
    answers: tuple[str, ...]
    depth: float | None

    def score(self, text: str) -> float:
        """The share of the answers that the text holds."""
        return sum(answer in text for answer in self.answers) / len(self.answers)


def make_question(task: Task, tokens: int, count: Count, *, depth: float = 0.5, seed: int = 0) -> Question:
    """One question of a prompt of about `tokens` tokens, a little less. depth: of the needle, where there is one.

    "needle": a number for a city, in filler. "needles": one for each of many cities; one is asked for. "variables":
    names that stand for names that stand for a number. "words": the three words that come most often.
    Raises ArgumentError if the task does not fit.
    """
    rng = random.Random(f"{task} {tokens} {depth} {seed}")
    if task == "words":
        return _words(rng, tokens, count)
    if task == "variables":
        lines, end, answers = _variables(rng)
        places = sorted(rng.random() for _ in lines)
        return Question(_hidden(rng, tokens, count, list(zip(places, lines, strict=True)), end), answers, None)
    cities = rng.sample(_CITIES, len(_CITIES) if task == "needles" else 1)
    numbers = {city: str(rng.randrange(1_000_000, 10_000_000)) for city in cities}
    lines = [f"The magic number of {city} is {number}." for city, number in numbers.items()]
    places = [depth, *(rng.random() for _ in lines[1:])]
    asked = cities[0]
    end = f"Question: what is the magic number of {asked}?\nAnswer: The magic number of {asked} is"
    hidden = sorted(zip(places, lines, strict=True))
    return Question(_hidden(rng, tokens, count, hidden, end), (numbers[asked],), depth)


def _variables(rng: random.Random) -> tuple[list[str], str, tuple[str, ...]]:
    names = rng.sample([f"{a}{b}" for a in "ABCDEFGHKLMN" for b in "PQRSTUVWXYZ"], 6)
    numbers = [str(rng.randrange(10_000, 100_000)) for _ in range(2)]
    lines = []
    for chain, number in zip((names[:3], names[3:]), numbers, strict=True):
        lines += [f"VAR {chain[0]} = {number}."] + [f"VAR {b} = VAR {a}." for a, b in pairwise(chain)]
    order = sorted(range(len(lines)), key=lambda i: (i % 3, rng.random()))  # an assignment after what it copies
    end = f"Question: which variables have the value {numbers[0]}?\nAnswer: the variables with {numbers[0]} are"
    return [lines[i] for i in order], end, tuple(names[:3])


def _words(rng: random.Random, tokens: int, count: Count) -> Question:
    chosen = rng.sample(_WORDS, 13)
    common, rare = chosen[:3], chosen[3:]
    end = "\nQuestion: which three words come most often in the list?\nAnswer: the three most common words are"
    repeats = 1
    text = ""
    while True:
        words = common * (5 * repeats) + rare * repeats
        rng.shuffle(words)
        longer = "Here is a list of words: " + ", ".join(words) + "."
        if count(longer + end) > tokens:
            break
        text, repeats = longer, repeats + 1
    if not text:
        raise ArgumentError(
            f"a list of words does not fit into {tokens} tokens; at least {count(longer + end)} are needed"
        )
    return Question(text + end, tuple(common), None)


def _hidden(rng: random.Random, tokens: int, count: Count, needles: list[tuple[float, str]], end: str) -> str:
    """Filler with each needle before the sentence at its depth, as long as fits."""
    cost = count(" ".join(line for _, line in needles)) + count(f"\n{end}")
    per = max(1.0, count(" ".join(_FILLER)) / len(_FILLER))
    room = int((tokens - cost) / per)
    if room < 1:
        raise ArgumentError(f"the question does not fit into {tokens} tokens; it needs {cost} without any filler")
    sentences = [rng.choice(_FILLER) for _ in range(room)]
    while True:
        text = " ".join(_woven(sentences, needles)) + f"\n{end}"
        over = count(text) - tokens
        if over <= 0 or len(sentences) <= 1:
            return text
        del sentences[-max(1, int(over / per)) :]


def _woven(sentences: list[str], needles: list[tuple[float, str]]) -> list[str]:
    found, done = [], 0
    for depth, line in needles:
        place = max(done, round(depth * len(sentences)))
        found += [*sentences[done:place], line]
        done = place
    return found + sentences[done:]
