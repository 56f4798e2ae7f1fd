"""Where a model finds what it is asked for: depth by length, as a table and as a picture."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from freehold.core.errors import ArgumentError
from freehold.evaluation.answers import Asked, LocalModel
from freehold.evaluation.lookup import lookups
from freehold.evaluation.tasks import Question, Task, make_question
from freehold.training.shapes import RETRIEVAL_WORDS

_ANSWER_TOKENS = 24

_PLACED = frozenset({"needle", "needles", "lookup"})

Asking = Task | Literal["lookup"]
"""What can be asked: texts for everybody, and `lookups` for models that know their words."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One task at one length and depth: the mean score of `questions`. tokens: of the longest prompt."""

    task: Asking
    length: int
    depth: float | None
    score: float
    questions: int
    tokens: int

    def as_json(self) -> dict[str, Any]:
        """All fields."""
        return asdict(self)


def check_all(
    asked: Asked, tasks: Sequence[Asking], lengths: Sequence[int], *, depths: int, questions: int, seed: int
) -> None:
    """Before anything is asked, raises ArgumentError for questions that do not fit into the shortest length, lengths
    that the model's context does not have, and words that it does not know."""
    if isinstance(asked, LocalModel):
        if max(lengths) > asked.context_length:
            raise ArgumentError(
                f"lengths has {max(lengths)}; the model's context has {asked.context_length} tokens, with the answer"
            )
        words = RETRIEVAL_WORDS.spelt()
        if "lookup" in tasks and asked.count("".join(words)) != len(words):
            raise ArgumentError(
                "task lookup asks in the words of freehold train --retrieval, which are no tokens of this model; leave "
                "it out, or name a model that was trained so"
            )
    # Questions of one kind differ by a few words: what fits into twice the tokens fits surely.
    for task, length in itertools.product(tasks, sorted({n for n in lengths if n <= 2 * min(lengths)})):
        try:
            for _ in _questions(asked, task, length - _room(task), depths, questions, seed):
                pass
        except ArgumentError as error:
            raise ArgumentError(f"lengths has {length}, of which {_room(task)} are for the answer: {error}") from None


def _room(task: Asking) -> int:
    """Tokens of an answer."""
    return 1 if task == "lookup" else _ANSWER_TOKENS


def ask_all(
    asked: Asked,
    tasks: Sequence[Asking],
    lengths: Sequence[int],
    *,
    depths: int,
    questions: int,
    seed: int,
    progress: Callable[[str, int, int], None],
) -> list[Cell]:
    """Asks `questions` of each task at each length; those with a needle at each of `depths` places."""
    found: list[Cell] = []
    total = len(lengths) * questions * sum(depths if task in _PLACED else 1 for task in tasks)
    done = 0
    for task in tasks:
        for length in lengths:
            scores: dict[float | None, list[float]] = {}
            longest, room = 0, _room(task)
            for question in _questions(asked, task, length - room, depths, questions, seed):
                score = question.score(asked.answer(question.prompt, room))
                scores.setdefault(question.depth, []).append(score)
                longest = max(longest, asked.count(question.prompt))
                done += 1
                progress("questions", done, total)
            found += [
                Cell(task, length, depth, sum(each) / len(each), len(each), longest)
                for depth, each in sorted(scores.items(), key=lambda item: item[0] or 0.0)
            ]
    return found


def _questions(asked: Asked, task: Asking, tokens: int, depths: int, questions: int, seed: int) -> Iterator[Question]:
    if task == "lookup":
        yield from lookups(RETRIEVAL_WORDS, tokens, questions * depths, depths=depths, seed=seed)
        return
    for depth in _depths(depths) if task in _PLACED else [None]:
        for n in range(questions):
            where = 0.5 if depth is None else depth
            yield make_question(task, tokens, asked.count, depth=where, seed=seed + n)


def _depths(count: int) -> list[float | None]:
    return [0.5] if count == 1 else [i / (count - 1) for i in range(count)]


def check_picture(path: Path) -> None:
    """Raises ArgumentError if `draw` could not write there, or not at all."""
    if find_spec("matplotlib") is None:
        raise ArgumentError(f"a picture {path} needs matplotlib, which is not installed: pip install matplotlib")
    there = path.exists()
    try:
        with path.open("ab"):
            pass
        if not there:
            path.unlink()
    except OSError as error:
        raise ArgumentError(f"{path}: no picture can be written there ({error.strerror}); name another file") from None


def draw(cells: Sequence[Cell], task: Asking, path: Path) -> None:
    """Writes a picture of one task: lengths to the right, depths downwards. Needs matplotlib."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    mine = [cell for cell in cells if cell.task == task and cell.depth is not None]
    lengths, depths = sorted({c.length for c in mine}), sorted({c.depth for c in mine if c.depth is not None})
    scores = {(c.length, c.depth): c.score for c in mine}
    figure, axes = pyplot.subplots(figsize=(1.6 + 0.8 * len(lengths), 1.4 + 0.45 * len(depths)), layout="constrained")
    image = axes.imshow(
        [[scores[length, depth] for length in lengths] for depth in depths],
        vmin=0,
        vmax=1,
        cmap="RdYlGn",
        aspect="auto",
    )
    axes.set_xticks(range(len(lengths)), [f"{length:,}" for length in lengths])
    axes.set_yticks(range(len(depths)), [f"{100 * depth:.0f} %" for depth in depths])
    axes.set(xlabel="tokens of the prompt", ylabel="depth of the needle", title=task)
    figure.colorbar(image, label="found")
    figure.savefig(path, dpi=130, format="png")
    pyplot.close(figure)
