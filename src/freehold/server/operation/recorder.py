"""What a server tells of each request that it worked on, before it sends the last of the answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

Ending = Literal["served", "refused", "failed", "aborted", "disconnected"]
"""Answered whole; not begun, by a rule or a limit; broken off by a fault; by time, a drain or an operator; or by the
client."""


@dataclass(frozen=True, slots=True)
class RequestEnd:
    """One request at its end.

    key_id: of its key; "" without keys. route: its path. model_asked, model: as it named it; as it was answered, None
        where it came to no answer. status: of HTTP; 499 where the client had gone.
    reason: the engine's word for the end, or None. seconds: since it arrived.
    prompt_tokens, cached_tokens, completion_tokens: as far as it came; whole: whether the engine counted them at a
        proper end. had_tokens: whether the engine had it at all.
    """

    request_id: str
    key_id: str
    route: str
    ending: Ending
    status: int
    reason: str | None
    seconds: float
    model_asked: str | None
    model: str | None
    had_tokens: bool
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    whole: bool


class Draft(Protocol):
    """The record of one request, while the request is under way. Used on the event loop."""

    def hear_request(self, data: bytes) -> None:
        """More bytes of the request's body."""
        ...

    def hear_answer(self, data: bytes) -> None:
        """More bytes of the answer's body."""
        ...

    async def finish(self, end: RequestEnd) -> None:
        """Write the record; it is durable when this returns. Once called, it is written even if the caller is
        cancelled. Raises FreeholdError where it cannot be."""
        ...


class Recorder(Protocol):
    """Whoever keeps records."""

    def begin(self) -> Draft:
        """A request begins. Raises FreeholdError while no record could be written: the request is then refused."""
        ...
