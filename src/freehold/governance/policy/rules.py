"""Policies in Cedar, checked against a schema, together with the clauses that always hold.

Cedar passes a clause over when evaluating it fails, and a forbid that is passed over forbids nothing. So the schema
has no optional attribute, every request and entity is checked against it, and a decision in which any clause failed
is a denial whatever the others say.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib.resources import files
from typing import Any

import cedarpy

from freehold.core.errors import GovernanceError
from freehold.governance.policy.classify import Classification
from freehold.governance.policy.facts import EndpointFacts
from freehold.governance.signing import canonical

NO_PERMIT = "no-permit"
"""The deciding clause where no permit fits: what is not allowed is not done."""

POLICY_ERROR = "policy-error"
"""The deciding clause where a clause could not be evaluated."""

_RESERVED = (NO_PERMIT, POLICY_ERROR)
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_OWN_NUMBER = re.compile(r"\bpolicy(\d+)\b")
_MOST_ENTITIES = 4096


@dataclass(frozen=True)
class Resource:
    """An endpoint as a policy sees it. api: "openai" or "anthropic". state: one of facts.STATES."""

    name: str
    api: str
    facts: EndpointFacts
    state: str = "available"

    def entity(self) -> dict[str, Any]:
        """As Cedar's JSON has it."""
        attributes = {"name": self.name, "api": self.api, "state": self.state, **self.facts.attributes()}
        return {"uid": {"type": "Endpoint", "id": self.name}, "attrs": attributes, "parents": []}

    @cached_property
    def digest(self) -> str:
        """SHA-256 of all that a policy can see of it."""
        return hashlib.sha256(canonical(self.entity())).hexdigest()


@dataclass(frozen=True, slots=True)
class Decision:
    """What the policy says of one request and one endpoint.

    clause: the @id of the clause that decided, the first in the policy where several agree; NO_PERMIT or POLICY_ERROR.
    clauses: all that agree. policy: SHA-256 of policies and schema. facts: SHA-256 of the endpoint's attributes.
    """

    allowed: bool
    clause: str
    clauses: tuple[str, ...]
    policy: str
    facts: str


class Rules:
    """One policy, ready to decide. May be used from several threads at once.

    Raises GovernanceError, which begins with `where`, for what is no Cedar, does not fit the schema, or has a clause
    without an @id of its own.
    """

    def __init__(self, policy: str, where: str = "the policy") -> None:
        base, schema = read_part("base.cedar"), read_part("schema.cedarschema")
        whole = f"{base}\n{policy}"
        own = _clause_ids(policy, where)
        ids = [*_clause_ids(base, "base.cedar"), *own]
        for name in own:
            if ids.count(name) > 1 or name in _RESERVED:
                raise GovernanceError(f'{where}: the clause @id("{name}") has a name that is taken')
        found = cedarpy.validate_policies(whole, schema)
        if not found.validation_passed:
            named = [_OWN_NUMBER.sub(lambda m: f'@id("{ids[int(m[1])]}")', str(error)) for error in found.errors]
            raise GovernanceError(f"{where}: does not fit the schema: {'; '.join(named)}")
        self.ids = tuple(ids)
        self.digest = hashlib.sha256(canonical({"policies": whole, "schema": schema})).hexdigest()
        self._policies = cedarpy.PolicySet.from_str(whole)
        self._schema = cedarpy.Schema.from_str(schema)
        self._entities: dict[tuple[str, str], cedarpy.Entities] = {}

    def decide(
        self, client: str, resource: Resource, found: Classification, *, streamed: bool = False, crosses: bool = False
    ) -> Decision:
        """Whether a request of that class may go there. Does not raise: what cannot be decided is denied."""
        context = {
            "data_class": found.data_class.word,
            "rank": int(found.data_class),
            "findings": sorted(found.findings),
            "streamed": streamed,
            "crosses": crosses,
        }
        return self.decide_context(client, resource, context)

    def decide_context(self, client: str, resource: Resource, context: Mapping[str, Any]) -> Decision:
        """The same, with the context as the schema has it."""
        request = {
            "principal": {"type": "Client", "id": client},
            "action": {"type": "Action", "id": "infer"},
            "resource": {"type": "Endpoint", "id": resource.name},
            "context": dict(context),
        }
        try:
            answer = cedarpy.is_authorized(
                request, self._policies, self._entities_of(client, resource), schema=self._schema
            )
        except Exception:
            # Whatever is wrong with what was asked, nobody has allowed it.
            return self._made(resource, False, (POLICY_ERROR,))
        # A clause that failed was passed over. It may have been the one that forbids.
        if answer.diagnostics.errors or answer.decision == cedarpy.Decision.NoDecision:
            return self._made(resource, False, (POLICY_ERROR,))
        reasons = sorted(int(reason.removeprefix("policy")) for reason in answer.diagnostics.reasons)
        return self._made(resource, answer.allowed, tuple(self.ids[number] for number in reasons) or (NO_PERMIT,))

    def _made(self, resource: Resource, allowed: bool, clauses: tuple[str, ...]) -> Decision:
        return Decision(allowed, clauses[0], clauses, self.digest, resource.digest)

    def _entities_of(self, client: str, resource: Resource) -> cedarpy.Entities:
        known = self._entities.get((client, resource.digest))
        if known is not None:
            return known
        principal = {"uid": {"type": "Client", "id": client}, "attrs": {"name": client}, "parents": []}
        made = cedarpy.Entities.from_json_str(json.dumps([principal, resource.entity()]), self._schema)
        if len(self._entities) >= _MOST_ENTITIES:
            self._entities.clear()
        self._entities[client, resource.digest] = made
        return made


def read_part(name: str) -> str:
    """A text that stands beside this file."""
    return files("freehold.governance.policy").joinpath(name).read_text("utf-8")


def _clause_ids(policy: str, where: str) -> list[str]:
    """The @id of each clause, in order. Raises GovernanceError for a clause without one that can stand in a header."""
    try:
        table = json.loads(cedarpy.policies_to_json_str(policy))
    except ValueError as error:
        raise GovernanceError(f"{where}: is no Cedar policy: {error}") from error
    if table.get("templates"):
        raise GovernanceError(f"{where}: has a template (?principal or ?resource), which nothing would fill in")
    clauses = table["staticPolicies"]
    ids = []
    for number in range(len(clauses)):
        clause = clauses[f"policy{number}"]
        name = clause.get("annotations", {}).get("id")
        if not isinstance(name, str) or not _ID.fullmatch(name):
            raise GovernanceError(
                f"{where}: clause {number + 1}, a {clause['effect']}, has the @id {name!r}; every clause needs one of "
                "letters, digits, '.', '_' and '-', since it is named where it decides"
            )
        ids.append(name)
    return ids
