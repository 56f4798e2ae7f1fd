"""Policies are checked before they decide; what cannot be decided is denied; stand-ins do not cross boundaries."""

from __future__ import annotations

from dataclasses import replace
from datetime import date
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from freehold.core.errors import ConfigError, GovernanceError
from freehold.governance.disclosure.loading import load_disclosure
from freehold.governance.policy.cases import run_cases
from freehold.governance.policy.choice import choose
from freehold.governance.policy.classes import DataClass
from freehold.governance.policy.classify import Classification, Classifier
from freehold.governance.policy.facts import EndpointFacts, facts_of
from freehold.governance.policy.profiles import PROFILES, profile
from freehold.governance.policy.rules import NO_PERMIT, POLICY_ERROR, Resource, Rules
from freehold.governance.policy.settings import read_settings

TODAY = date(2026, 11, 29)
EVERYTHING = '@id("everything") permit (principal, action, resource);'
HOME = Resource("home", "openai", EndpointFacts(path="self-hosted"))


def known(path: str = "vendor-api", country: str = "US", **fields: Any) -> EndpointFacts:
    table = {"jurisdictions": [country], "data_countries": [country], "retention_days": 0, "training_use": "no"}
    return replace(EndpointFacts(path=path).filled(table), **fields)


API = Resource("api", "openai", known())


def of(data_class: DataClass, *findings: str) -> Classification:
    return Classification(data_class, dict.fromkeys(findings, 1), ("given",))


GENERAL = of(DataClass.GENERAL)


@pytest.mark.parametrize(
    ("policy", "says"),
    [
        ("permit (principal, action, resource);", "@id"),
        ('@id("a b") permit (principal, action, resource);', "@id"),
        ('@id("x") permit (principal, action, resource) when { resource.nope == "a" };', "nope"),
        ('@id("x") permit (principal, action, resource) when { context.data_class == 3 };', "not compatible"),
        ('@id("x") permit (principal == User::"a", action, resource);', "User"),
        ('@id("x") permit (principal, action == Action::"train", resource);', "train"),
        ('@id("x") permit (principal == ?principal, action, resource);', "template"),
        ('@id("no-permit") permit (principal, action, resource);', "taken"),
        ('@id("secrets-stay") permit (principal, action, resource);', "taken"),
        (EVERYTHING * 2, "taken"),
        ("permit (principal", "no Cedar"),
    ],
)
def test_policies_that_cannot_be_relied_on_are_refused(policy: str, says: str) -> None:
    with pytest.raises(GovernanceError, match=r"^my\.cedar: ") as caught:
        Rules(policy, "my.cedar")
    assert says in str(caught.value)


def test_without_a_permit_nothing_is_allowed() -> None:
    decision = Rules("").decide("a", HOME, of(DataClass.PUBLIC))
    assert (decision.allowed, decision.clause, decision.clauses) == (False, NO_PERMIT, (NO_PERMIT,))


def test_the_deciding_clause_is_the_first_that_agrees() -> None:
    rules = Rules('@id("b") permit (principal, action, resource); @id("a") permit (principal, action, resource);')
    assert rules.decide("x", HOME, GENERAL).clauses == ("b", "a")
    forbid = Rules(EVERYTHING + '@id("never") forbid (principal == Client::"x", action, resource);')
    assert forbid.decide("x", HOME, GENERAL).clause == "never"
    assert forbid.decide("y", HOME, GENERAL).clause == "everything"


@pytest.mark.parametrize("name", ["a", 'q"uote', "new\nline", "ünï", "", "\\", "a" * 500])
def test_any_name_of_a_client_is_a_name(name: str) -> None:
    assert Rules(EVERYTHING).decide(name, HOME, GENERAL).allowed


def test_a_forbid_that_cannot_be_evaluated_forbids() -> None:
    """Cedar passes it over, and would allow. An overflow is an error that no validation can foresee."""
    clause = '@id("never") forbid (principal, action, resource) when { resource.retention_days * 1024 * 1024 > 5 };'
    unknown = replace(API, facts=EndpointFacts(path="self-hosted"))
    assert unknown.facts.retention_days * 1024 * 1024 > 2**63
    decision = Rules(EVERYTHING + clause).decide("a", unknown, of(DataClass.PUBLIC))
    assert (decision.allowed, decision.clause) == (False, POLICY_ERROR)


CONTEXT = {"data_class": "public", "rank": 0, "findings": [], "streamed": False, "crosses": False}


@pytest.mark.parametrize("missing", CONTEXT)
def test_a_missing_attribute_of_a_request_denies(missing: str) -> None:
    rules = Rules(EVERYTHING)
    assert rules.decide_context("a", HOME, CONTEXT).allowed
    left = {name: value for name, value in CONTEXT.items() if name != missing}
    assert rules.decide_context("a", HOME, left).clause == POLICY_ERROR
    assert rules.decide_context("a", HOME, {**CONTEXT, missing: None}).clause == POLICY_ERROR
    assert rules.decide_context("a", HOME, {**CONTEXT, "more": 1}).clause == POLICY_ERROR


@pytest.mark.parametrize("missing", HOME.entity()["attrs"])
def test_a_missing_attribute_of_an_endpoint_denies(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if a fact had been forgotten on its way to Cedar."""
    whole = Resource.entity

    def without(self: Resource) -> dict[str, Any]:
        entity = whole(self)
        del entity["attrs"][missing]
        return entity

    monkeypatch.setattr(Resource, "entity", without)
    reads = f"[resource.{missing}].contains(resource.{missing})"
    forbid = f'@id("never") forbid (principal, action, resource) when {{ {reads} }};'
    decision = Rules(EVERYTHING + forbid).decide("a", HOME, of(DataClass.PUBLIC))
    assert (decision.allowed, decision.clause) == (False, POLICY_ERROR)


def test_nothing_in_the_schema_is_optional() -> None:
    from freehold.governance.policy.rules import read_part

    schema = "\n".join(line.partition("//")[0] for line in read_part("schema.cedarschema").splitlines())
    assert "?" not in schema


FACTS = st.builds(
    lambda path, countries, data, days, training, source, state: (
        replace(
            EndpointFacts(
                path=path,
                jurisdictions=frozenset(countries),
                data_countries=frozenset(data),
                laws=frozenset({"none-listed"}) if "unknown" not in countries else frozenset({"unknown"}),
                retention="unknown" if days is None else "days",
                **({} if days is None else {"retention_days": days}),
                training_use=training,
            ),
            source=source,
        ),
        state,
    ),
    st.sampled_from(["self-hosted", "hosted", "vendor-api", "unknown"]),
    st.sets(st.sampled_from(["US", "DE", "CN", "unknown", "operator"]), min_size=1),
    st.sets(st.sampled_from(["US", "unknown"]), min_size=1),
    st.sampled_from([None, 0, 30]),
    st.sampled_from(["no", "yes", "opt-in", "unknown", "operator"]),
    st.sampled_from(["signed-disclosure", "disclosure", "operator", "expired-disclosure", "none"]),
    st.sampled_from(["available", "withdrawn", "unreachable"]),
)
OPEN = Rules(EVERYTHING)


@given(FACTS, st.sampled_from(list(DataClass)), st.booleans())
def test_what_always_holds(facts_and_state: Any, data_class: DataClass, crosses: bool) -> None:
    """The base clauses said once more in Python, against a policy that permits everything."""
    facts, state = facts_and_state
    outside = facts.path != "self-hosted"
    vague = {"unknown", "operator"}
    unknown = (
        bool((facts.jurisdictions | facts.data_countries | facts.laws) & vague)
        or facts.retention != "days"
        or facts.training_use in vague
    )
    expected = {
        "not-available": state != "available",
        "no-crossing": crosses,
        "unknown-path": facts.path == "unknown",
        "no-disclosure": outside and facts.source in ("none", "expired-disclosure"),
        "unknown-class-stays": outside and data_class is DataClass.UNKNOWN,
        "secrets-stay": outside and data_class is DataClass.SECRET,
        "unknown-facts": outside and data_class is not DataClass.PUBLIC and unknown,
    }
    decision = OPEN.decide("a", Resource("e", "openai", facts, state), of(data_class), crosses=crosses)
    denied = tuple(name for name, holds in expected.items() if holds)
    assert decision.clauses == (denied or ("everything",))
    assert decision.allowed == (not denied)


def test_hashes_tell_what_decided() -> None:
    first, second = Rules(EVERYTHING), Rules(EVERYTHING + " // said otherwise\n")
    assert first.digest == Rules(EVERYTHING).digest != second.digest
    decision = first.decide("a", API, GENERAL)
    assert (decision.policy, decision.facts) == (first.digest, API.digest)
    assert replace(API, facts=known(country="DE")).digest != API.digest
    assert replace(API, state="withdrawn").digest != API.digest


def names(choice: Any) -> tuple[str | None, list[tuple[str, str]]]:
    chosen = None if choice.chosen is None else choice.chosen.name
    return chosen, [(name, decision.clause) for name, decision in choice.decisions]


def test_the_first_that_is_allowed_is_chosen() -> None:
    stays = Rules(
        EVERYTHING + '@id("stays") forbid (principal, action, resource) when { resource.path != "self-hosted" };'
    )
    assert names(choose(OPEN, [API, HOME], "a", GENERAL)) == ("api", [("api", "everything")])
    assert names(choose(stays, [API, HOME], "a", GENERAL)) == ("home", [("api", "stays"), ("home", "everything")])
    assert names(choose(OPEN, [], "a", GENERAL)) == (None, [])


def test_nothing_stands_in_across_a_boundary() -> None:
    gone_home = replace(HOME, name="gone", state="unreachable")
    gone_us = replace(API, name="gone", state="withdrawn")
    other_us = replace(API, name="other")
    german = Resource("german", "openai", known(country="DE"))
    hosted = Resource("hosted", "openai", known(path="hosted"))
    assert names(choose(OPEN, [gone_home, API], "a", GENERAL)) == (
        None,
        [("gone", "not-available"), ("api", "no-crossing")],
    )
    assert names(choose(OPEN, [gone_us, german, hosted], "a", GENERAL))[0] is None
    assert names(choose(OPEN, [gone_us, other_us], "a", GENERAL))[0] == "other"
    assert names(choose(OPEN, [gone_us, HOME], "a", GENERAL))[0] == "home"
    # Two that are gone: what stands in crosses the boundary of neither.
    assert names(choose(OPEN, [gone_home, gone_us, other_us], "a", GENERAL))[0] is None
    # One that the policy denies is not one that is missing.
    secret = Rules(EVERYTHING + '@id("no") forbid (principal, action, resource) when { resource.name == "home" };')
    assert names(choose(secret, [HOME, API], "a", GENERAL))[0] == "api"


@pytest.mark.parametrize("name", PROFILES)
def test_shipped_policies_do_what_they_were_made_for(name: str) -> None:
    found = profile(name)
    rules, classifier = Rules(found.policy, name), Classifier(read_settings(found.classes, name))
    results = run_cases(found.cases, rules, classifier, TODAY, name)
    assert len(results) >= 9
    assert [(result.name, result.problem) for result in results if result.problem] == []
    own = set(rules.ids) - set(Rules("").ids)
    assert own - {clause for result in results for clause in result.clauses} == set()


def test_cases_that_come_out_otherwise_are_told() -> None:
    table = """
    [endpoints.home]
    path = "self-hosted"
    [[case]]
    name = "one"
    class = "public"
    endpoint = "home"
    expect = "deny"
    [[case]]
    name = "two"
    text = "hello"
    endpoint = "home"
    expect = "allow"
    clause = "other"
    found = "iban"
    """
    one, two = run_cases(table, OPEN, Classifier(read_settings("")), TODAY)
    assert one.problem == "expected deny, came out as home"
    assert two.problem == "expected the clause other, it was everything; expected to find iban, found nothing"


@pytest.mark.parametrize(
    "table",
    ["[x]", '[[case]]\nname = "a"', '[endpoints.a]\npath = "moon"', "[endpoints.a]\n", "[endpoints.a]\nx = 1",
     '[endpoints.a]\npath = "self-hosted"\n[[case]]\nname = "a"\nclass = "public"\nendpoint = "a"\nexpect = "perhaps"',
     '[endpoints.a]\npath = "self-hosted"\n[[case]]\nname = "a"\nendpoint = "a"\nexpect = "deny"',
     '[endpoints.a]\npath = "self-hosted"\n[[case]]\nname = "a"\nclass = "public"\nendpoint = "b"\nexpect = "deny"',
     '[endpoints.a]\npath = "hosted"\ndisclosure = "minimax-m3/api"', "nonsense"],
)  # fmt: skip
def test_tables_that_are_not_understood_are_refused(table: str) -> None:
    with pytest.raises(ConfigError, match=r"^my\.toml: "):
        run_cases(table, OPEN, Classifier(read_settings("")), TODAY, "my.toml")


def test_facts_come_from_a_disclosure() -> None:
    found = facts_of(load_disclosure("minimax-m3/api"), TODAY)
    assert (found.path, found.source) == ("vendor-api", "disclosure")
    assert "cn-national-intelligence-7" in found.laws
    assert {"CN", "unknown"} <= found.jurisdictions
    expired = facts_of(load_disclosure("minimax-m3/api"), date(2040, 1, 1))
    assert (expired.path, expired.source, expired.laws) == ("vendor-api", "expired-disclosure", frozenset({"unknown"}))


def test_an_operator_fills_in_and_does_not_overrule() -> None:
    hosted = facts_of(load_disclosure("minimax-m3/hosted"), TODAY)
    filled = hosted.filled(
        {"jurisdictions": ["DE"], "data_countries": ["DE"], "retention_days": 0, "training_use": "no"}
    )
    assert filled.jurisdictions == {"DE", "EU"}
    assert (filled.retention, filled.retention_days, filled.source) == ("days", 0, "operator")
    assert "unknown" not in filled.laws
    api = facts_of(load_disclosure("minimax-m3/api"), TODAY)
    with pytest.raises(ConfigError, match="which counts"):
        api.filled({"jurisdictions": ["DE"]})
    with pytest.raises(ConfigError, match="no 'source'"):
        hosted.filled({"source": "signed-disclosure"})


@pytest.mark.parametrize(
    "fields",
    [{"path": "moon"}, {"laws": frozenset()}, {"laws": {"a"}}, {"retention_days": -1, "retention": "days"},
     {"retention_days": 5}, {"retention": "days"}, {"training_use": "maybe"}, {"jurisdictions": frozenset({""})},
     {"source": "me"}],
)  # fmt: skip
def test_facts_that_cannot_be_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        EndpointFacts(**fields)
