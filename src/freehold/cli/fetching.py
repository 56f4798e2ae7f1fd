"""The progress of a pull, on stderr: a bar on a terminal, one line for each stage elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from freehold.loading.pull import Progress as Report


@contextmanager
def shown_progress(name: str) -> Iterator[Report]:
    """Give `pull` something to report to. The reports may come from another thread."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    tasks: dict[str, TaskID] = {}
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:

        def report(what: str, done: int, total: int | None) -> None:
            if what not in tasks:
                tasks[what] = bar.add_task(f"{what} {name}", total=total)
                if not console.is_terminal:
                    size = "" if total is None else f" ({total / 1e6:.0f} MB)"
                    console.print(f"{what} {name}{size}", highlight=False, soft_wrap=True)
            bar.update(tasks[what], completed=done, total=total)

        yield report
