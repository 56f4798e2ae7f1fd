"""An answer in the terminal: its events to the end, Ctrl-C as a wish to stop, its speed in words."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from types import FrameType
from typing import Any, cast

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID

from freehold.core.errors import RequestError
from freehold.core.events import Event, FinishEvent, FinishReason, PrefillEvent, PromptLogprobsEvent, Usage


@dataclass(slots=True)
class Interrupt:
    """Whether Ctrl-C was pressed."""

    pressed: bool = False


@dataclass(frozen=True, slots=True)
class Answer:
    """What a request gave. `usage` is None for an answer that was stopped by hand."""

    text: str
    reason: FinishReason
    usage: Usage | None

    def as_json(self) -> dict[str, Any]:
        """Text, reason, token counts, and speeds in tokens per second (null where nothing was measured)."""
        usage = self.usage
        return {
            "text": self.text,
            "finish_reason": self.reason,
            "usage": None if usage is None else asdict(usage),
            "prefill_tokens_per_second": None if usage is None else prefill_speed(usage),
            "decode_tokens_per_second": None if usage is None else decode_speed(usage),
        }


@contextmanager
def interruptible() -> Iterator[Interrupt]:
    """The first Ctrl-C is noted, so that no step of the engine is torn; a second ends the program."""
    interrupt = Interrupt()

    def note(signum: int, frame: FrameType | None) -> None:
        if interrupt.pressed:
            raise KeyboardInterrupt
        interrupt.pressed = True

    before = signal.signal(signal.SIGINT, note)
    try:
        yield interrupt
    finally:
        signal.signal(signal.SIGINT, before)


def follow(events: Iterator[Event], write: Callable[[str], object], interrupt: Interrupt) -> Answer:
    """Write an answer's text while it comes; a noted Ctrl-C closes `events`, which cancels the request.

    Raises RequestError when the engine reports that the request failed.
    """
    pieces: list[str] = []

    def keep(text: str) -> None:
        if text:
            pieces.append(text)
            write(text)

    with PrefillBar() as bar:
        for event in events:
            if isinstance(event, PrefillEvent):
                bar.show(event.done, event.total)
            elif not isinstance(event, PromptLogprobsEvent):
                bar.hide()
                keep(event.text)
            if isinstance(event, FinishEvent):
                if event.reason == "error":
                    raise RequestError(f"the answer failed: {event.error or 'the engine gave no reason'}")
                return Answer("".join(pieces), event.reason, event.usage)
            if interrupt.pressed:
                break
    # Every source of events is a generator; closing it now, not when it is collected, frees the engine.
    cast("Generator[Event, None, None]", events).close()
    return Answer("".join(pieces), "cancelled", None)


class PrefillBar:
    """How much of a prompt was read, on the terminal behind stderr; nothing is shown where there is none."""

    def __init__(self) -> None:
        self._progress: Progress | None = None
        self._task: TaskID | None = None

    def __enter__(self) -> PrefillBar:
        return self

    def __exit__(self, *exception: object) -> None:
        self.hide()

    def show(self, done: int, total: int) -> None:
        """Draw the bar. A prompt that is read in one step gets none: it would only flicker."""
        if self._progress is None and done < total and sys.stderr.isatty():
            self._progress = Progress(
                "reading the prompt",
                BarColumn(),
                MofNCompleteColumn(),
                console=Console(stderr=True),
                transient=True,
            )
            self._task = self._progress.add_task("", total=total)
            self._progress.start()
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, completed=done)

    def hide(self) -> None:
        """Take the bar away, so that the answer stands where it was."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = self._task = None


def prefill_speed(usage: Usage) -> float | None:
    """Computed prompt tokens per second; None if nothing was computed."""
    computed = usage.prompt_tokens - usage.cached_tokens
    return computed / usage.prefill_seconds if computed and usage.prefill_seconds > 0 else None


def decode_speed(usage: Usage) -> float | None:
    """Tokens per second after the first one, whose time belongs to the prefill; None below two tokens."""
    steps = usage.completion_tokens - 1
    return steps / usage.decode_seconds if steps > 0 and usage.decode_seconds > 0 else None


def speed_line(answer: Answer) -> str:
    """One line on what an answer took."""
    usage = answer.usage
    if usage is None:
        return "[stopped]"

    def speed(value: float | None) -> str:
        return "" if value is None else f", {value:.1f} tokens/s"

    prompt = f"prompt {usage.prompt_tokens} tokens ({usage.cached_tokens} cached{speed(prefill_speed(usage))})"
    ended = ", ended by max_tokens or the context" if answer.reason == "length" else ""
    return f"[{prompt}; answer {usage.completion_tokens} tokens{speed(decode_speed(usage))}{ended}]"


def show_speed(answer: Answer) -> None:
    """Print `speed_line` on stderr, dimmed where that is a terminal."""
    click.echo(click.style(speed_line(answer), dim=True), err=True)
