"""The task that small retrieval models learn, at any length: many names with values in noise, one of them asked for."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence

from freehold.core.errors import ArgumentError
from freehold.evaluation.tasks import Question
from freehold.training.retrieval_rows import RetrievalWords

FACTS = 48
"""Names with values of a text; the rest is noise."""


def lookups(words: RetrievalWords, tokens: int, count: int, *, depths: int, seed: int) -> list[Question]:
    """`count` questions of `tokens` tokens. Up to `FACTS` of them in turn are about the same text: prompts that differ
    in their last token alone.

    The facts of a text lie at random, as many in each of `depths` equal parts as in the others, and the parts are asked
    about in turn; a question's depth is the middle of its fact's part, 0 the beginning of the text and 1 its end.
    Raises ArgumentError if they do not fit.
    """
    if not 1 <= depths <= FACTS:
        raise ArgumentError(f"depths is {depths}; a text has {FACTS} facts, and each part needs one")
    found: list[Question] = []
    while len(found) < count:
        number = len(found) // FACTS
        found += _about_one_text(words, tokens, min(FACTS, count - len(found)), depths, f"{seed} {number}")
    return found


def _about_one_text(words: RetrievalWords, tokens: int, count: int, depths: int, seed: str) -> list[Question]:
    rng = random.Random(f"lookup {tokens} {seed}")
    room = tokens - 2 - 3 * FACTS
    if room < FACTS:
        raise ArgumentError(f"the text does not fit into {tokens} tokens; it needs {2 + 4 * FACTS}")
    names = rng.sample(range(words.names), FACTS)
    values = [rng.randrange(words.values) for _ in names]
    parts = [i * depths // FACTS for i in range(FACTS)]
    places = sorted(rng.uniform(part, part + 1) / depths * room for part in parts)
    noise, spelt = words.draw_noise(rng, room), words.spelt()
    ids, done = [], 0
    for name, value, place in zip(names, values, places, strict=True):
        ids += noise[done : int(place)] + words.fact(name, value)
        done = int(place)
    text = "".join(spelt[i - words.first] for i in ids + noise[done:])

    def question(i: int) -> Question:
        asked = "".join(spelt[t - words.first] for t in words.question(names[i]))
        return Question(text + asked, (spelt[words.value_id(values[i]) - words.first],), (parts[i] + 0.5) / depths)

    return [question(i) for i in _in_turn(rng.sample(range(FACTS), FACTS), parts)[:count]]


def _in_turn(facts: Sequence[int], parts: Sequence[int]) -> list[int]:
    """The facts so that every part has its turn before one has another: a few questions are about every depth."""
    asked = Counter[int]()
    turns = []
    for fact in facts:
        turns.append((asked[parts[fact]], fact))
        asked[parts[fact]] += 1
    return [fact for _, fact in sorted(turns, key=lambda turn: turn[0])]
