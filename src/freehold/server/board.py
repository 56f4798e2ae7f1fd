"""The board: which HTTP requests are being answered at this moment, and how far each is."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from freehold.core.clients import Client
from freehold.core.events import Event, FinishEvent, PrefillEvent, TokenEvent
from freehold.server.operation.wire import RunningChoice, RunningRequest


def _nothing() -> None:
    """Before there is anything to cancel."""


@dataclass(slots=True)
class _Choice:
    prompt_tokens: int
    prompt_done: int = 0
    generated: int = 0
    ended: bool = False

    @property
    def state(self) -> Literal["waiting", "reading", "writing", "ended"]:
        if self.ended:
            return "ended"
        if self.generated:
            return "writing"
        return "reading" if self.prompt_done else "waiting"


@dataclass(slots=True, eq=False)
class Entry:
    """One HTTP request. client: whom it is for. on_cancel: ends its streams. cancelled: somebody asked for that."""

    request_id: str
    route: str
    client: Client
    choices: list[_Choice]
    remove: Callable[[str], None]
    on_cancel: Callable[[], None] = _nothing
    cancelled: bool = False
    began: float = field(default_factory=time.monotonic)

    def note(self, index: int, event: Event) -> None:
        """Something happened to choice `index`."""
        choice = self.choices[index]
        if isinstance(event, PrefillEvent):
            choice.prompt_done = event.done
        elif isinstance(event, TokenEvent):
            choice.prompt_done = choice.prompt_tokens
            choice.generated += 1
        elif isinstance(event, FinishEvent):
            choice.ended = True

    def cancel(self) -> None:
        """Ends the request on somebody's wish."""
        self.cancelled = True
        self.on_cancel()

    def close(self) -> None:
        """Takes the request off the board; again: nothing."""
        self.remove(self.request_id)

    def as_body(self) -> RunningRequest:
        """In the wire's form."""
        return RunningRequest(
            id=self.request_id,
            route=self.route,
            client=" ".join(filter(None, self.client)),
            seconds=round(time.monotonic() - self.began, 3),
            choices=[
                RunningChoice(
                    state=choice.state,
                    prompt_tokens=choice.prompt_tokens,
                    prompt_tokens_read=choice.prompt_done,
                    generated_tokens=choice.generated,
                )
                for choice in self.choices
            ],
        )


class Board:
    """Used on the event loop's thread only."""

    def __init__(self) -> None:
        self._entries: dict[str, Entry] = {}

    def open(self, request_id: str, route: str, client: Client, prompt_lens: list[int]) -> Entry:
        """A request begins; prompt_lens: tokens of the prompt of each choice."""
        entry = Entry(request_id, route, client, [_Choice(length) for length in prompt_lens], self._remove)
        self._entries[request_id] = entry
        return entry

    def _remove(self, request_id: str) -> None:
        self._entries.pop(request_id, None)

    def entries(self) -> list[Entry]:
        """All requests, the oldest first."""
        return list(self._entries.values())

    def find(self, request_id: str) -> Entry | None:
        """The request with this id."""
        return self._entries.get(request_id)
