"""What is kept of a request's way through the gateway: facts and counts, and of its words the model's name, cut."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

_NAME_CHARS = 80

Outcome = Literal["decided", "served", "refused", "failed", "aborted", "disconnected"]
"""Allowed, and about to be sent; answered whole; not sent; broken off by the upstream or a fault of ours;
broken off by the gateway's end; given up by the client."""


def shown_name(name: str | None) -> str | None:
    """A model's name as records have it: clients and endpoints choose it freely, so it is cut after 80 characters, and
    what is no printable one is a question mark."""
    if name is None:
        return None
    shown = "".join(sign if sign.isprintable() else "?" for sign in name[:_NAME_CHARS])
    return shown if len(name) <= _NAME_CHARS else f"{shown}..."


@dataclass(frozen=True, slots=True)
class ReturnedUsage:
    """Tokens as the upstream counted them; None where it did not say.

    input_tokens: of the whole prompt, cached ones included. cached_tokens, cache_write_tokens: those of them that were
    read from a cache, or written to one. output_tokens: of the answer, with its reasoning.
    """

    input_tokens: int | None = None
    cached_tokens: int | None = None
    cache_write_tokens: int | None = None
    output_tokens: int | None = None
    reasoning_tokens: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DecisionRecord:
    """One request. It is handed over with the outcome "decided" before anything is sent, and once more at its end
    with the same id; a refusal is handed over once.

    id: new for each. time: of its arrival, UTC, ISO 8601. client: the key's name. client_key: its
        public id, "" without.
    api: "chat", "completions", "responses", "messages" or "count_tokens".
    data_class, findings: see Classification. declared: the class that the client named.
    endpoint: where it went; None: nowhere. path: the endpoint's, see facts.PATHS.
    clause: which decided. considered: (endpoint, clause) of all asked about.
    policy, facts, classes: SHA-256 of policies and schema, of the endpoint's facts, of the settings of classes.
    outcome: see Outcome; reason: the code of a refusal or failure, "" otherwise.
    status: of HTTP, as the client was told; None before. upstream_status: as the gateway was.
    model_asked, model_sent, model_answered: by the client; to the upstream; as that said. None: unknown. The first and
        the last as shown_name gives them.
    usage: None where the upstream returned none. prompt_tokens, answer_tokens: as returned, or
        counted on the way, which is what estimated says. events: of a stream, as many as passed.
    request_bytes, response_bytes: of the bodies, as sent and received. seconds: since arrival.
    """

    id: str
    time: str
    client: str
    client_key: str
    api: str
    data_class: str
    findings: Mapping[str, int]
    declared: str | None
    endpoint: str | None
    path: str | None = None
    clause: str
    considered: tuple[tuple[str, str], ...]
    policy: str
    facts: str | None
    classes: str
    outcome: Outcome
    reason: str = ""
    status: int | None = None
    upstream_status: int | None = None
    model_asked: str | None = None
    model_sent: str | None = None
    model_answered: str | None = None
    usage: ReturnedUsage | None = None
    prompt_tokens: int = 0
    answer_tokens: int = 0
    estimated: bool = False
    streamed: bool = False
    events: int = 0
    request_bytes: int = 0
    response_bytes: int = 0
    seconds: float = 0.0
    because: tuple[str, ...] = field(default=())

    @property
    def aborted(self) -> bool:
        """Whether an answer was begun or asked for, and not brought to its end."""
        return self.outcome in ("failed", "aborted", "disconnected")

    def to_json(self) -> dict[str, Any]:
        """As a JSON value."""
        return {**asdict(self), "findings": dict(self.findings), "considered": [list(pair) for pair in self.considered]}


Settle = Callable[[DecisionRecord], Awaitable[None]]
"""Makes a "decided" record durable. If it raises, the request is not sent."""

OnDecision = Callable[[DecisionRecord], None]
"""Takes records, on the event loop: it returns at once. If it raises for a "decided" one, the request is not sent."""
