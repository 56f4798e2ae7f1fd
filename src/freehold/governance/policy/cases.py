"""Tables of cases: what a request is, where it would go, what is expected.

[endpoints.us-api]
path = "vendor-api"                # with jurisdictions and the others of facts.py; or disclosure = "minimax-m3/api"
jurisdictions = ["US"]

[[case]]
name = "a customer's card stays at home"
text = "4111 1111 1111 1111"       # or body = {...}: any request body; or class = "regulated", with no looking
client = "docs-team"               # optional, as are declared = "secret" and findings = ["image"] (with class)
endpoint = "us-api"                # or endpoints = ["home", "us-api"]: in this order
expect = "deny"                    # or "allow", or the name of the endpoint that is to be chosen
clause = "secrets-stay"            # optional
found = "payment-card"             # optional: a finding that has to be among the request's
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any

from freehold.core.errors import ConfigError
from freehold.governance.disclosure.loading import load_disclosure
from freehold.governance.policy.choice import choose
from freehold.governance.policy.classes import DataClass
from freehold.governance.policy.classify import Classification, Classifier
from freehold.governance.policy.facts import EndpointFacts, facts_of
from freehold.governance.policy.rules import Resource, Rules
from freehold.governance.policy.toml_text import parse_toml

_MEMBERS = (
    "name", "text", "body", "class", "findings", "client", "declared", "endpoint", "endpoints", "expect", "clause",
    "found",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class CaseResult:
    """How one case came out. clauses: all that agree, the deciding one first. problem: "" where it is as expected."""

    name: str
    data_class: str
    outcome: str
    clauses: tuple[str, ...]
    problem: str


def resource_of(name: str, table: Mapping[str, Any], on: date) -> Resource:
    """An endpoint from a table of a case file, or of endpoints.toml. Raises ConfigError.

    `path` says where the data goes; `disclosure` names a document, whose path it then has to be. `source` may be given
    in a case file alone, to try a clause that asks for it.
    """
    rest = dict(table)
    api, state, source = rest.pop("api", "openai"), rest.pop("state", "available"), rest.pop("source", None)
    named, path = rest.pop("disclosure", None), rest.pop("path", None)
    if named is not None:
        facts = facts_of(load_disclosure(named), on)
        if path is not None and path != facts.path:
            raise ConfigError(f"endpoint {name}: the path is {path!r}, but {named} is about {facts.path!r}")
    elif path is not None:
        facts = EndpointFacts(path=path)
    else:
        raise ConfigError(f"endpoint {name}: has neither a path nor a disclosure")
    facts = facts.filled(rest)
    if source is not None:
        facts = EndpointFacts(**{field: getattr(facts, field) for field in _FIELDS} | {"source": source})
    return Resource(name, api, facts, state)


_FIELDS = tuple(EndpointFacts.__dataclass_fields__)


def run_cases(text: str, rules: Rules, classifier: Classifier, on: date, where: str = "the cases") -> list[CaseResult]:
    """Every case of a table. Raises ConfigError, which begins with `where`, for what is no table of cases."""
    try:
        table = parse_toml(text)
        unknown = sorted(set(table) - {"endpoints", "case"})
        if unknown:
            raise ConfigError(f"has {unknown[0]!r}, which nobody reads; known are endpoints and case")
        endpoints = {name: resource_of(name, entry, on) for name, entry in table.get("endpoints", {}).items()}
        return [_run(case, endpoints, rules, classifier) for case in table.get("case", [])]
    except (ConfigError, AttributeError, TypeError) as error:
        raise ConfigError(f"{where}: {error}") from error


def _run(
    case: Mapping[str, Any], endpoints: Mapping[str, Resource], rules: Rules, classifier: Classifier
) -> CaseResult:
    name = case.get("name")
    if not isinstance(name, str):
        raise ConfigError(f"a case's name is {name!r}; it must be a text")
    unknown = [member for member in case if member not in _MEMBERS]
    if unknown:
        raise ConfigError(f"case {name!r} has {unknown[0]!r}, which nobody reads; known are {', '.join(_MEMBERS)}")
    found = _class_of(case, classifier)
    client = case.get("client", "anonymous")
    choice = choose(rules, _candidates(case, endpoints), client, found)
    deciding = choice.deciding
    assert deciding is not None, "a case has an endpoint"
    outcome = "deny" if choice.chosen is None else choice.chosen.name
    expected = case.get("expect")
    problems = []
    if expected not in ("allow", "deny", *endpoints):
        raise ConfigError(f"case {name!r}: expect is {expected!r}; it must be allow, deny or an endpoint")
    if expected != outcome and not (expected == "allow" and choice.chosen is not None):
        problems.append(f"expected {expected}, came out as {outcome}")
    if case.get("clause", deciding.clause) not in deciding.clauses:
        problems.append(f"expected the clause {case['clause']}, it was {', '.join(deciding.clauses)}")
    if "found" in case and case["found"] not in found.findings:
        problems.append(f"expected to find {case['found']}, found {', '.join(found.findings) or 'nothing'}")
    return CaseResult(name, found.data_class.word, outcome, deciding.clauses, "; ".join(problems))


def _class_of(case: Mapping[str, Any], classifier: Classifier) -> Classification:
    ways = [way for way in ("text", "body", "class") if way in case]
    if len(ways) != 1:
        raise ConfigError(
            f"case {case['name']!r} needs one of text, body and class, and has {', '.join(ways) or 'none'}"
        )
    if ways == ["class"]:
        findings = dict.fromkeys(case.get("findings", ()), 1)
        return Classification(DataClass.of(case["class"], f"case {case['name']!r}: class"), findings, ("given",))
    body = case["body"] if "body" in case else {"messages": [{"role": "user", "content": case["text"]}]}
    declared = DataClass.of(case["declared"], f"case {case['name']!r}: declared") if "declared" in case else None
    return classifier.classify(body, client=case.get("client", "anonymous"), declared=declared)


def _candidates(case: Mapping[str, Any], endpoints: Mapping[str, Resource]) -> Sequence[Resource]:
    names = case.get("endpoints", [case["endpoint"]] if "endpoint" in case else [])
    if not names:
        raise ConfigError(f"case {case['name']!r} names no endpoint")
    for name in names:
        if name not in endpoints:
            raise ConfigError(f"case {case['name']!r} names {name!r}; the endpoints are {', '.join(endpoints)}")
    return [endpoints[name] for name in names]
