"""Who asks: what the guards know about a request's key, for the routes to read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

INFERENCE = "inference"
METRICS = "metrics"
ADMIN = "admin"
SCOPES = (INFERENCE, METRICS, ADMIN)
"""What a key may be for: the models' answers; /metrics; views of other people's requests."""


@dataclass(frozen=True, slots=True)
class Allowance:
    """What one key may use up; None: no limit.

    requests_per_minute, tokens_per_minute: pace, with one minute's worth saved up at most.
    budget_tokens: most tokens, prompt and answer, of one `budget_period`, a calendar day or month in UTC.
    """

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    budget_tokens: int | None = None
    budget_period: str = "day"


@dataclass(frozen=True, slots=True)
class Principal:
    """The holder of one key, or whoever asks a server without keys.

    key_id: public, stable, unique; "" where there is no key. name: for people, in logs and metrics.
    priority: see `Backend.submit`; lower is sooner. It is the best that the key's requests may have.
    """

    key_id: str
    name: str
    scopes: frozenset[str]
    priority: int = 0
    allowance: Allowance = Allowance()


ANYONE = Principal("", "", frozenset(SCOPES))
"""Whoever asks a server that has no keys."""


def principal_of(scope: Mapping[str, Any]) -> Principal | None:
    """The principal of an ASGI scope; None where no guard has let it in, which is only on open paths."""
    found = scope.get("state", {}).get("principal")
    assert found is None or isinstance(found, Principal)
    return found
