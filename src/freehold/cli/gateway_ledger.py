"""Where the gateway's decisions meet the ledger: one record of each request, with the clause that decided."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from freehold.cli.ledger import LedgerDraft, LedgerRecorder, recorded_price

if TYPE_CHECKING:
    from freehold.governance.ledger.record import LedgerRecord, TokenUsage
    from freehold.governance.policy.record import DecisionRecord
    from freehold.server.operation.recorder import Draft, RequestEnd


class GatewayRecorder:
    """A `freehold.server.operation.recorder.Recorder` that is told the decisions as well.

    A request whose decision is not known (one that a limit refused) is recorded as a server records it.
    """

    def __init__(self, recorder: LedgerRecorder) -> None:
        self._recorder = recorder
        self._decisions: dict[str, DecisionRecord] = {}

    def take(self, record: DecisionRecord) -> None:
        """A decision, or the end of a request; see `freehold.governance.policy.record.OnDecision`."""
        self._decisions[record.id] = record

    async def settle(self, decision: DecisionRecord) -> None:
        """A decision to send a request, durable when this returns: it stays known if the gateway is killed before the
        request's end. Raises GovernanceError."""
        from freehold.governance.ledger.record import LedgerRecord, now_text

        await self._recorder.write(
            LedgerRecord(
                id=f"{decision.id}-decision",
                time=now_text(),
                kind="decision",
                key=decision.client_key or None,
                model_asked=decision.model_asked,
                endpoint=decision.endpoint,
                data_class=decision.data_class,
                clause=decision.clause,
                policy=decision.policy,
                details=_details(decision),
            )
        )

    def begin(self) -> Draft:
        """A request begins. Raises GovernanceError while the ledger cannot be written."""
        return _GatewayDraft(self._recorder.begin(), self._decisions)


class _GatewayDraft:
    def __init__(self, draft: LedgerDraft, decisions: dict[str, DecisionRecord]) -> None:
        self._draft, self._decisions = draft, decisions
        self.hear_request, self.hear_answer = draft.hear_request, draft.hear_answer

    async def finish(self, end: RequestEnd) -> None:
        """Write the record, and wait until it is durable. Raises GovernanceError where it cannot be."""
        decision = self._decisions.pop(end.request_id, None)
        record = self._draft.record_of(end)
        await self._draft.write(record if decision is None else self._decided(record, decision))

    def _decided(self, record: LedgerRecord, decision: DecisionRecord) -> LedgerRecord:
        usage = _usage(decision)
        model = decision.model_answered or decision.model_sent
        # Money is taken by endpoints that are not our own.
        charged = decision.path != "self-hosted"
        return replace(
            record,
            # One that was allowed and never came to an end was broken off by a fault of ours.
            outcome="failed" if decision.outcome == "decided" else decision.outcome,
            reason=decision.reason or None,
            model_asked=decision.model_asked,
            model=model,
            endpoint=decision.endpoint,
            data_class=decision.data_class,
            clause=decision.clause,
            policy=decision.policy,
            usage=usage,
            price=None if usage is None else recorded_price(self._draft.table, model or "", usage, charged=charged),
            details=_details(decision),
        )


def _details(decision: DecisionRecord) -> dict[str, Any]:
    known = {
        "considered": [list(pair) for pair in decision.considered],
        "findings": dict(decision.findings),
        "because": list(decision.because),
        "classes": decision.classes,
        "facts": decision.facts,
        "declared": decision.declared,
        "path": decision.path,
        "model_sent": decision.model_sent,
        "upstream_status": decision.upstream_status,
    }
    return {name: value for name, value in known.items() if value is not None}


def _usage(decision: DecisionRecord) -> TokenUsage | None:
    """None for what was never sent, or of which nothing was read."""
    from freehold.governance.ledger.record import TokenUsage

    if not (decision.prompt_tokens or decision.answer_tokens):
        return None
    returned = decision.usage
    cached = min(returned.cached_tokens or 0 if returned else 0, decision.prompt_tokens)
    written = min(returned.cache_write_tokens or 0 if returned else 0, decision.prompt_tokens - cached)
    reasoning = returned.reasoning_tokens if returned else None
    return TokenUsage(
        input_tokens=decision.prompt_tokens,
        cached_tokens=cached,
        cache_write_tokens=written,
        output_tokens=decision.answer_tokens,
        reasoning_tokens=None if reasoning is None else min(reasoning, decision.answer_tokens),
        estimated=decision.estimated,
    )
