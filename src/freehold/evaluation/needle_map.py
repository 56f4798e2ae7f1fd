"""Where a model finds what it is asked for: depth by length, as a table and as a picture."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from freehold.evaluation.answers import Asked
from freehold.evaluation.tasks import Task, make_question

_ANSWER_TOKENS = 24


@dataclass(frozen=True, slots=True)
class Cell:
    """One task at one length and depth: the mean score of `questions`. tokens: of the longest prompt."""

    task: Task
    length: int
    depth: float | None
    score: float
    questions: int
    tokens: int

    def as_json(self) -> dict[str, Any]:
        """All fields."""
        return asdict(self)


def ask_all(
    asked: Asked,
    tasks: Sequence[Task],
    lengths: Sequence[int],
    *,
    depths: int,
    questions: int,
    seed: int,
    progress: Callable[[str, int, int], None],
) -> list[Cell]:
    """Asks `questions` of each task at each length; those with a needle at each of `depths` places."""
    found: list[Cell] = []
    places = {task: _depths(depths) if task in ("needle", "needles") else [None] for task in tasks}
    total = len(lengths) * sum(len(p) for p in places.values()) * questions
    done = 0
    for task in tasks:
        for length in lengths:
            for depth in places[task]:
                scores, longest = [], 0
                for n in range(questions):
                    where = 0.5 if depth is None else depth
                    question = make_question(task, length - _ANSWER_TOKENS, asked.count, depth=where, seed=seed + n)
                    scores.append(question.score(asked.answer(question.prompt, _ANSWER_TOKENS)))
                    longest = max(longest, asked.count(question.prompt))
                    done += 1
                    progress("questions", done, total)
                found.append(Cell(task, length, depth, sum(scores) / len(scores), questions, longest))
    return found


def _depths(count: int) -> list[float | None]:
    return [0.5] if count == 1 else [i / (count - 1) for i in range(count)]


def draw(cells: Sequence[Cell], task: Task, path: Path) -> None:
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
    figure.savefig(path, dpi=130)
    pyplot.close(figure)
