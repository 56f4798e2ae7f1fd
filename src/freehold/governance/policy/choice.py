"""Which endpoint may answer: the first, in the operator's order, that the policy allows.

An endpoint that is not available is not passed over silently: what comes after it is asked about as its stand-in, and
the policy forbids one that lies behind a boundary. After something was sent, nothing stands in for anything.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from freehold.governance.policy.classify import Classification
from freehold.governance.policy.facts import AVAILABLE, SELF_HOSTED
from freehold.governance.policy.rules import Decision, Resource, Rules


@dataclass(frozen=True, slots=True)
class Choice:
    """The endpoint that may answer, None if there is none, and what was decided about each that was asked about, in
    order; the last is the chosen one's."""

    chosen: Resource | None
    decisions: tuple[tuple[str, Decision], ...]

    @property
    def deciding(self) -> Decision | None:
        """The decision that counts: the chosen one's, or the first denial. None: there was no candidate."""
        if not self.decisions:
            return None
        return self.decisions[-1][1] if self.chosen is not None else self.decisions[0][1]


def choose(
    rules: Rules, candidates: Sequence[Resource], client: str, found: Classification, *, streamed: bool = False
) -> Choice:
    """Ask the policy about each candidate until one is allowed."""
    decisions = []
    missing: list[Resource] = []
    for candidate in candidates:
        crosses = candidate.facts.path != SELF_HOSTED and any(
            candidate.facts.boundary != other.facts.boundary for other in missing
        )
        decision = rules.decide(client, candidate, found, streamed=streamed, crosses=crosses)
        decisions.append((candidate.name, decision))
        if decision.allowed:
            return Choice(candidate, tuple(decisions))
        if candidate.state != AVAILABLE:
            missing.append(candidate)
    return Choice(None, tuple(decisions))
