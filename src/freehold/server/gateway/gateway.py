"""What happens to a request at the door: looked through, decided on, recorded, and sent or refused."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from typing import Any

from fastapi import Request
from starlette.responses import Response

from freehold.core.errors import ConfigError, FreeholdError
from freehold.governance.policy.choice import Choice, choose
from freehold.governance.policy.classes import DataClass
from freehold.governance.policy.classify import FAILED, Classification, Classifier, unreadable
from freehold.governance.policy.facts import AVAILABLE
from freehold.governance.policy.record import DecisionRecord, OnDecision, Settle, shown_name
from freehold.governance.policy.rules import Rules
from freehold.server.errors import describe_exception
from freehold.server.gateway.apis import Api
from freehold.server.gateway.endpoints import Endpoints, resources
from freehold.server.gateway.intake import Intake, encoded
from freehold.server.gateway.passage import Course, Passage, tokens_used
from freehold.server.gateway.upstream import Upstreams, passed_on
from freehold.server.operation.operation import Operation
from freehold.server.operation.principal import ANYONE, principal_of
from freehold.server.refusals import refuse

logger = logging.getLogger("freehold.gateway")

CLASS_HEADER = "x-freehold-class"
"""Of a request: the class that its client names, which may raise the gateway's own. Of an answer: the class it had."""

DECISION_HEADERS = tuple(f"x-freehold-{name}" for name in ("decision", "class", "clause", "endpoint", "policy"))
ANONYMOUS = "anonymous"
"""The client's name where no key is asked for."""


@dataclass(frozen=True, slots=True)
class Setup:
    """What decides; it may be exchanged while the gateway runs."""

    rules: Rules
    classifier: Classifier
    endpoints: Endpoints


def log_record(record: DecisionRecord) -> None:
    """Write a record to the log `freehold.gateway`, where nobody else takes it."""
    logger.info("decision", extra={"fields": record.to_json()})


@dataclass(frozen=True, slots=True)
class _Request:
    """What is known of a request before a decision. at: its arrival, monotonic."""

    id: str
    api: Api
    client: str
    declared: DataClass | None
    size: int
    at: float
    time: str
    http: Request


class Gateway:
    """Decides on requests and sends them on. Lives on the event loop; may be made outside.

    on_decision: takes records. A request whose decision it does not take is not sent.
    settle: makes a decision durable before its request is sent; None: nothing has to be.
    """

    def __init__(
        self,
        setup: Setup,
        operation: Operation,
        *,
        on_decision: OnDecision = log_record,
        settle: Settle | None = None,
    ) -> None:
        self.setup = setup
        self._operation = operation
        self._on_decision, self._settle = on_decision, settle
        self._intake = Intake()
        self._upstreams = Upstreams()

    def exchange(self, setup: Setup) -> None:
        """Decide otherwise from the next request on. May be called from a signal handler."""
        self.setup = setup

    async def close(self) -> None:
        """Close the connections to endpoints."""
        await self._upstreams.close()
        self._intake.close()

    async def answer(self, http: Request, api: Api) -> Response:
        """The answer to a request; where it is allowed, one that sends it when it is called."""
        setup = self.setup
        body = await http.body()
        principal = principal_of(http.scope)
        client = principal.name if principal is not None and principal.name else ANONYMOUS
        now = datetime.now(timezone.utc).isoformat(timespec="microseconds")
        asked = _Request(
            http.scope["state"]["http_request_id"], api, client, None, len(body), time.monotonic(), now, http
        )
        try:
            declared = _declared(http)
        except ConfigError as error:
            found = unreadable(f"{FAILED}declared")
            return self._refused(asked, found, Choice(None, ()), None, 400, "invalid_value", str(error))
        asked = replace(asked, declared=declared)
        given = passed_on(http.headers)
        taken = await self._intake.take(
            body, setup.classifier, client=client, declared=declared, extra=tuple(given.values())
        )
        assert taken.found is not None
        if taken.value is None:
            assert taken.wrong is not None
            return self._refused(asked, taken.found, Choice(None, ()), None, 400, "invalid_value", str(taken.wrong))
        return await self._decide(setup, asked, taken.value, taken.found, given)

    async def _decide(
        self, setup: Setup, asked: _Request, value: dict[str, Any], found: Classification, given: dict[str, str]
    ) -> Response:
        model, family = value.get("model"), asked.api.family
        if not isinstance(model, str):
            text = "model is missing, or no text; GET /v1/models lists what there is"
            return self._refused(asked, found, Choice(None, ()), None, 400, "invalid_value", text)
        candidates = setup.endpoints.candidates(model, family)
        streamed = value.get("stream")
        if streamed is not None and not isinstance(streamed, bool):
            # Some endpoints would take it for true, and a policy may forbid that.
            text = "stream must be true or false"
            return self._refused(asked, found, Choice(None, ()), model, 400, "invalid_value", text)
        streamed = streamed is True
        choice = choose(setup.rules, resources(candidates, family), asked.client, found, streamed=streamed)
        if not candidates:
            text = _unserved(setup.endpoints, model, family)
            return self._refused(asked, found, choice, model, 404, "model_not_found", text)
        if choice.chosen is None:
            text = _denial(setup.endpoints, choice, found)
            return self._refused(asked, found, choice, model, 403, "policy_denied", text)
        endpoint = setup.endpoints.named(choice.chosen.name)
        sent = endpoint.models[model]
        record = replace(
            self._record(asked, found, choice, model),
            outcome="decided",
            endpoint=endpoint.name,
            path=choice.chosen.facts.path,
            model_sent=sent,
            streamed=streamed,
        )
        if not self._hand_over(record) or not await self._settled(record):
            text = "the decision cannot be recorded, and what cannot be recorded is not sent"
            return refuse(asked.http.scope, 503, text, "not_recorded", _told(record))
        return Passage(
            self._upstreams,
            self._operation.lifecycle,
            endpoint,
            asked.api,
            encoded(value, sent),
            given=given,
            accept="text/event-stream" if streamed else "application/json",
            headers=_told(record),
            request_id=asked.id,
            on_end=lambda course: self._ended(asked, record, course),
        )

    def _refused(
        self,
        asked: _Request,
        found: Classification,
        choice: Choice,
        model: str | None,
        status: int,
        code: str,
        text: str,
    ) -> Response:
        record = replace(self._record(asked, found, choice, model), reason=code, status=status)
        self._hand_over(record)
        if code == "policy_denied":
            self._operation.metrics.observe_refusal(asked.client, "policy")
        param = "model" if code == "model_not_found" else None
        return refuse(asked.http.scope, status, text, code, _told(record), param=param)

    def _record(self, asked: _Request, found: Classification, choice: Choice, model: str | None) -> DecisionRecord:
        """A refusal's record; other outcomes replace what differs."""
        deciding, principal = choice.deciding, principal_of(asked.http.scope) or ANYONE
        return DecisionRecord(
            id=asked.id,
            time=asked.time,
            client=asked.client,
            client_key=principal.key_id,
            api=asked.api.name,
            data_class=found.data_class.word,
            findings=found.findings,
            because=found.because,
            declared=None if asked.declared is None else asked.declared.word,
            endpoint=None,
            clause=deciding.clause if deciding is not None else "none",
            considered=tuple((name, decision.clause) for name, decision in choice.decisions),
            policy=self.setup.rules.digest if deciding is None else deciding.policy,
            facts=None if deciding is None else deciding.facts,
            classes=self.setup.classifier.settings.digest,
            outcome="refused",
            model_asked=shown_name(model),
            request_bytes=asked.size,
            seconds=time.monotonic() - asked.at,
        )

    def _ended(self, asked: _Request, record: DecisionRecord, course: Course) -> None:
        answer = course.answer
        prompt, written, estimated = tokens_used(course, asked.size)
        ended = replace(
            record,
            outcome=course.outcome,
            reason=course.reason,
            status=course.status,
            upstream_status=course.upstream_status,
            model_answered=shown_name(answer.model),
            usage=answer.usage,
            prompt_tokens=prompt,
            answer_tokens=written,
            estimated=estimated,
            events=answer.events,
            response_bytes=answer.nbytes,
            seconds=time.monotonic() - asked.at,
        )
        principal = principal_of(asked.http.scope) or ANYONE
        if record.api != "count_tokens":
            self._operation.limits.charge(principal, prompt, written)
        self._hand_over(ended)

    def _hand_over(self, record: DecisionRecord) -> bool:
        """Whether the record was taken."""
        try:
            self._on_decision(record)
        except Exception as error:
            logger.error("the record of request %s was not taken: %s", record.id, describe_exception(error))
            return False
        return True

    async def _settled(self, record: DecisionRecord) -> bool:
        """Whether the decision is durable, if it has to be."""
        if self._settle is None:
            return True
        try:
            await self._settle(record)
        except Exception as error:
            logger.error("the decision on request %s was not kept: %s", record.id, describe_exception(error))
            return False
        return True


def _declared(http: Request) -> DataClass | None:
    """The highest class that the client names, in one header or several."""
    given = [word for value in http.headers.getlist(CLASS_HEADER) for word in value.split(",")]
    classes = [DataClass.of(word.strip().lower()[:40], f"the header {CLASS_HEADER}") for word in given]
    return max(classes, default=None)


def _told(record: DecisionRecord) -> dict[str, str]:
    """What the client learns of a decision."""
    return {
        "x-freehold-decision": record.id,
        CLASS_HEADER: record.data_class,
        "x-freehold-clause": record.clause,
        "x-freehold-endpoint": record.endpoint or "none",
        "x-freehold-policy": record.policy,
    }


def _unserved(endpoints: Endpoints, model: str, family: str) -> str:
    others = endpoints.families_of(model)
    if others:
        return f"the model {model[:200]!r} is served over {others[0]}'s API, not over {family}'s"
    known = ", ".join(name for name, _ in endpoints.models)
    return f"no endpoint serves the model {model[:200]!r}; there are: {known}"


def _denial(endpoints: Endpoints, choice: Choice, found: Classification) -> str:
    """Why nothing was sent: by kinds and clauses, without a word of the request."""
    parts = []
    for name, decision in choice.decisions:
        endpoint = endpoints.named(name)
        state = "" if endpoint.state == AVAILABLE else f", {endpoint.state_in_words}"
        parts.append(f"{name} ({', '.join(decision.clauses)}{state})")
    return (
        f"the policy sends this request nowhere: its class is {found.data_class.word} "
        f"({', '.join(found.because)}), and it was denied for {'; '.join(parts)}"
    )


Reload = Callable[[], Setup]
"""Reads everything again. Raises FreeholdError where something is wrong with it."""


def reloaded(gateway: Gateway, reload: Reload) -> None:
    """Exchange the setup for what `reload` gives; where it cannot, all stays as it was, and the log says why."""
    try:
        setup = reload()
    except FreeholdError as error:
        logger.error("policy and endpoints stay as they were: %s", error)
        return
    gateway.exchange(setup)
    logger.info("policy and endpoints were read again; the policy is %s", setup.rules.digest[:16])
