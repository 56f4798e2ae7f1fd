"""How long work is shown: what is done, and how much of how much."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

Report = Callable[[str, int, int], None]

_LINE_SECONDS = 30.0
"""Without a terminal, at most so often a line."""


@contextmanager
def shown_work() -> Iterator[Report]:
    """Gives work something to report to: report(what, done, total). Bars on a terminal, else a line now and then."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    tasks: dict[str, TaskID] = {}
    spoken: dict[str, float] = {}
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:

        def report(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bar.add_task(what, total=total)
            bar.update(tasks[what], completed=done)
            now = time.monotonic()
            if not console.is_terminal and (done == total or now - spoken.get(what, -_LINE_SECONDS) >= _LINE_SECONDS):
                spoken[what] = now
                console.print(f"{what}: {done} of {total}", highlight=False, soft_wrap=True)

        yield report
