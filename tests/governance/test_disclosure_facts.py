"""Files of facts: every rule that keeps a statement honest refuses what breaks it, by name."""

from __future__ import annotations

import json
from datetime import date
from pathlib import Path
from time import process_time
from typing import Any
from urllib.parse import urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from freehold.core.errors import GovernanceError
from freehold.governance.disclosure import load_disclosure
from freehold.governance.disclosure.catalogue import catalogue
from freehold.governance.disclosure.facts import disclosure_of
from freehold.governance.disclosure.loading import shipped_names
from freehold.governance.disclosure.statement import OPERATOR, UNKNOWN, NotFound
from freehold.governance.disclosure.vendors import is_at, shipped_vendors
from freehold.governance.disclosure.weights import with_weights
from support.disclosures import WEIGHTS, facts_file, stated

MINIMAX = ("minimax.io", "minimaxi.com", "huggingface.co/MiniMaxAI")


@pytest.mark.parametrize("name", shipped_names())
def test_shipped_disclosures_state_every_field_with_a_source(name: str) -> None:
    disclosure = load_disclosure(name)
    assert disclosure.name == name
    missing = [f.key for f in catalogue().fields if not f.is_family and f.key not in disclosure.facts]
    assert missing == []
    for fact in disclosure.facts.values():
        for statement in fact.statements:
            assert statement.source or statement.status == "not-stated", fact.key
            assert statement.read <= disclosure.issued, fact.key


def test_the_three_paths_differ_where_they_should() -> None:
    own, hosted, api = (load_disclosure(f"minimax-m3/{path}") for path in ("self-hosted", "hosted", "api"))
    assert (own.data_path, hosted.data_path, api.data_path) == ("self-hosted", "hosted", "vendor-api")
    assert (own.jurisdictions, hosted.jurisdictions) == ((OPERATOR,), (UNKNOWN,))
    assert api.jurisdictions == ("CN", "KY", "SG", "US", UNKNOWN)
    assert (api.contracting_country, api.headquarters_country) == (("SG",), ("CN",))
    assert api.inference_locations == ("CN", UNKNOWN)
    assert (api.training_use, api.retention_days) == (UNKNOWN, UNKNOWN)
    assert (own.retention_days, own.training_use, own.contracting_country) == (OPERATOR, OPERATOR, (OPERATOR,))
    assert own.publisher_country == hosted.publisher_country == api.publisher_country == ("CN",)
    assert own.facts["model.parameters"] == api.facts["model.parameters"]


def test_contradictions_about_m3_stand_side_by_side() -> None:
    parameters = load_disclosure("minimax-m3/api").facts["model.parameters"]
    assert parameters.status == "conflicting"
    values = [statement.value for statement in parameters.statements]
    assert values == [427_040_140_160, 428_000_000_000, 427_000_000_000, 229_900_000_000, UNKNOWN]
    holders = load_disclosure("minimax-m3/api").facts["provider.state_holders"]
    assert (holders.status, len(holders.statements)) == ("conflicting", 3)
    assert isinstance(holders.statements[2].value, NotFound)


def test_every_jurisdiction_has_the_same_columns() -> None:
    for name in shipped_names():
        laws = [f for key, f in load_disclosure(name).facts.items() if key.startswith("law.")]
        assert {statement.value["jurisdiction"] for f in laws for statement in f.statements} >= {"CN", "US", "EU", "SG"}  # type: ignore[index, call-overload]
        field = catalogue().field("law.x")
        assert field is not None
        for fact in laws:
            assert set(fact.value) == set(field.columns or {}), fact.key  # type: ignore[arg-type]


def test_the_default_model_is_the_pinned_file() -> None:
    from freehold.loading.default_model import FILE_SHA256, FILE_SIZE, LICENCE

    facts = load_disclosure("smollm2-135m").facts
    assert facts["licence.name"].value == LICENCE
    assert facts["weights.bytes"].value == FILE_SIZE
    source = facts["weights.digest"].statements[0].source
    assert source is not None
    assert FILE_SHA256 in source.title


@pytest.mark.parametrize(
    "url",
    [
        "https://www.minimax.io/terms",
        "https://MiniMax.io:443/",
        "https://platform.minimaxi.com/docs",
        "https://huggingface.co/MiniMaxAI/MiniMax-M3",
    ],
)
def test_a_vendors_own_addresses(url: str) -> None:
    assert is_at(url, MINIMAX)


@pytest.mark.parametrize(
    "url",
    [
        "https://minimax.gr.com/privacy-policy.html",
        "https://minimaxm2.io/privacy",
        "https://notminimax.io/",
        "https://minimax.io.evil.test/",
        "https://minimax.io@evil.test/",
        "https://evil.test\\@minimax.io/",
        "https://evil.test@minimax.io/",
        "https://evil.test/minimax.io",
        "https://evil.test/?u=minimax.io",
        "http://minimax.io/",
        "https://minimax.io:8443/",
        "https://huggingface.co/MiniMaxAI-fan/MiniMax-M3",
        "https://huggingface.co/unsloth/MiniMaxAI",
        "https://huggingface.co/MiniMaxAI/../evil",
        "https://huggingface.co/MiniMaxAI/%2e%2e/evil",
        "ftp://minimax.io/",
        "minimax.io",
        "https://[minimax.io",
    ],
)
def test_addresses_that_look_like_the_vendors(url: str) -> None:
    assert not is_at(url, MINIMAX)


@given(st.from_regex(r"[a-z0-9-]{1,12}", fullmatch=True), st.from_regex(r"[a-z]{2,5}", fullmatch=True))
def test_a_domain_put_before_or_behind_is_another(word: str, ending: str) -> None:
    assert not is_at(f"https://{word}minimax.io/", MINIMAX)
    assert not is_at(f"https://minimax.io.{ending}/", MINIMAX)
    assert not is_at(f"https://minimax.{ending}x/", MINIMAX)


def broken(**changes: Any) -> dict[str, Any]:
    return facts_file() | changes


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        (facts_file(provider__name=stated("E", source="press")), "none of the vendor's addresses"),
        (facts_file(provider__name=stated("E", source="site", status="verified")), "'verified'"),
        (facts_file(provider__name=stated("E", source="nowhere")), "'nowhere'"),
        (facts_file(provider__name={"value": "E", "status": "third-party", "read": "2026-11-01"}), "needs a source"),
        (facts_file(provider__name=stated("Example", status="not-stated")), "its status is 'not-stated'"),
        (facts_file(provider__nmae=stated("E")), "provider.nmae"),
        (facts_file(provider__country=stated("Germany")), "two capital letters"),
        (facts_file(data__retention_days=stated(-1)), "days"),
        (facts_file(data__retention_days=stated(True)), "days"),
        (facts_file(data__training_use=stated("maybe")), "opt-out"),
        (facts_file(weights__digest=stated("AB" * 32)), "64 hexadecimal"),
        (facts_file(model__release_date=stated("1 June 2026")), "2026-11-29"),
        (facts_file(price__x=stated({"tier": "a", "input": "1", "output": "2", "cheap": "yes"})), "record of tier"),
        (facts_file(price__x=stated({"tier": "a", "input": "1"})), "record of tier"),
        (facts_file(**{"claim.two words": stated("E")}), "two words"),
        (facts_file(provider__name=stated("E", status="conflicting")), "do not differ"),
        (
            facts_file(provider__name={"status": "conflicting", "statements": [stated("E"), stated("E")]}),
            "do not differ",
        ),
        (facts_file(provider__name={"status": "third-party", "statements": [stated("E")]}), "first statement"),
        (facts_file(provider__name=stated("E") | {"read": "2026-12-02"}), "after the document's day of issue"),
        (facts_file(provider__name=stated("E") | {"red": "2026-12-02"}), "red"),
        (facts_file(provider__name=stated("E", status="verified-here")), "verified-here, but was read at https"),
        (
            facts_file(
                data__retention_days={"status": "vendor-reported", "statements": [stated(0), stated(30)]},
            ),
            "vendor-reported statements differ",
        ),
        (
            facts_file(data__logging={"value": "unknown", "status": "not-stated", "read": "2026-12-02"}),
            "after the document's day of issue",
        ),
        (
            facts_file(
                data__logging={
                    "value": {"not_found_in": "terms", "on": "2026-12-02"},
                    "status": "not-stated",
                    "read": "2026-11-01",
                }
            ),
            "after the document's day of issue",
        ),
        (
            facts_file(**{"law.us-fisa-702": {"value": "unknown", "status": "not-stated", "read": "2026-11-01"}}),
            "alike",
        ),
        (facts_file(**{"law.xx-own": {"value": "unknown", "status": "not-stated", "read": "2026-11-01"}}), "capital"),
        (broken(sources={**facts_file()["sources"], "cn-nil": {"title": "T", "publisher": "P"}}), "cn-nil"),
        (broken(issued="2026-11-20"), "what the file extends was read on 2026-11-29"),
        (broken(title="T\n=\nKept for: 0 days [verified-here]"), "controls how others"),
        (broken(author={"name": "E\x1b[2J", "third_party": False}), "controls how others"),
        (facts_file(data__logging=stated("nothing\x1b[8m")), "controls how others"),
        (facts_file(data__logging=stated("nothing", note="\u202egnihton")), "controls how others"),
        (facts_file(data__logging=stated("nothing", note="\ud800")), "controls how others"),
        (facts_file(data__subprocessors=stated(["A", "B\r"])), "controls how others"),
        (facts_file(price__x=stated({"tier": "a\u2028", "input": "1", "output": "2"})), "controls how others"),
        (broken(vendors={"E\n": ["example.com"]}), "controls how others"),
        (broken(vendors={"MiniMax ": ["example.com"]}), "taken for 'MiniMax'"),
        (broken(vendors={"\uff2dini-MAX Ltd.": ["example.com"]}), "taken for 'MiniMax'"),
        (broken(vendors={"\u041cini\u041cax": ["example.com"]}), "mixes scripts"),
        (broken(valid_until="2026-11-30"), "valid_until"),
        (broken(valid_until="2029-12-01"), "within 366 days"),
        (broken(format="freehold-facts/9"), "freehold-facts/9"),
        (broken(extends="nothing"), "minimax-m3"),
        (broken(name="two words"), "two words"),
        (broken(other_paths={"a/b": "elsewhere"}), "self-hosted, hosted, vendor-api"),
        (broken(vendors={"MiniMax": ["minimax.gr.com"]}), "and no others"),
        (broken(author={"name": "E", "third_party": "no"}), "third_party"),
    ],
)
def test_what_is_refused(entry: dict[str, Any], said: str) -> None:
    with pytest.raises(GovernanceError, match=said):
        disclosure_of(entry, "file.json")


def test_a_law_of_ones_own_is_added() -> None:
    law = {
        "jurisdiction": "DE", "law": "L", "provision": "P", "addressed_to": "A", "provides": "W", "by": "B",
        "secrecy": "not read",
    }  # fmt: skip
    facts = disclosure_of(facts_file(**{"law.de-own": stated(law, "third-party", "press")}), "f").facts
    assert {"law.de-own", "law.us-fisa-702"} <= facts.keys()


def test_two_vendors_words_that_differ_may_be_called_conflicting() -> None:
    fact = {"status": "conflicting", "statements": [stated(0), stated(30)]}
    assert disclosure_of(facts_file(data__retention_days=fact), "f").retention_days == 30


def test_what_is_shipped_says_how_it_is_known() -> None:
    for name in shipped_names():
        facts = load_disclosure(name).facts
        # A definition is neither computed nor checked.
        assert {facts["path.kind"].status, facts["path.recipients"].status} == {"third-party"}
        for fact in facts.values():
            for statement in fact.statements:
                source = statement.source
                if statement.status == "verified-here":
                    assert source is not None, fact.key
                    assert source.title.startswith(("Sum of", "Arithmetic", "`freehold disclose`")), fact.key
                assert source is None or "knowledge" not in source.publisher, fact.key


def test_copies_are_called_copies() -> None:
    hosts = {"gitea.hehe.run": "private host", "testing.dev.theedgesingapore.com": "copy", "geolive.tv": "copy"}
    seen = set()
    for fact in load_disclosure("minimax-m3/api").facts.values():
        for source in (statement.source for statement in fact.statements):
            host = urlsplit(source.url or "").hostname if source else None
            if source is not None and host in hosts:
                seen.add(host)
                assert (host in source.publisher, hosts[host] in source.publisher) == (True, True)
                assert "was not read" in source.title
    assert seen == {*hosts}


def test_measured_bytes_of_published_weights_are_no_conflict() -> None:
    disclosure = with_weights(load_disclosure("minimax-m3/self-hosted"), WEIGHTS, date(2026, 12, 1))
    assert disclosure.facts["weights.bytes"].status == "verified-here"


def test_old_texts_of_laws_say_how_old_they_are() -> None:
    facts = load_disclosure("smollm2-135m").facts
    for key, year in (("20", "2021"), ("39", "2021")):
        (statement,) = facts[f"law.sg-criminal-procedure-{key}"].statements
        assert year in statement.value["law"]  # type: ignore[index, call-overload]
        assert "were not read" in statement.note
    (first, _) = facts["law.us-fisa-702"].statements
    assert "2023" in first.value["law"]  # type: ignore[index, call-overload]
    assert "was not read" in first.note


def test_a_file_of_ones_own_extends_a_model(tmp_path: Path) -> None:
    entry = facts_file() | {"extends": "minimax-m3", "vendors": {"Example": ["example.com"]}}
    entry["facts"]["path.kind"] = stated("hosted")
    path = tmp_path / "facts.json"
    path.write_text(json.dumps(entry))
    disclosure = load_disclosure(path)
    assert (disclosure.model, disclosure.data_path) == ("MiniMax-M3", "hosted")
    assert disclosure.contracting_country == ("DE",)
    assert disclosure.jurisdictions == ("DE", "EU", UNKNOWN)
    assert disclosure.vendors["MiniMax"] == shipped_vendors()["MiniMax"]


def test_what_a_file_leaves_out_is_unknown() -> None:
    disclosure = disclosure_of(facts_file(), "file")
    assert disclosure.data_locations == disclosure.inference_locations == disclosure.endpoints == (UNKNOWN,)
    assert disclosure.data_path == disclosure.retention_days == disclosure.weights_digest == UNKNOWN
    assert disclosure.facts["data.locations"].status == "not-stated"


def test_conflicts_decide_for_the_worse() -> None:
    entry = facts_file(
        data__retention_days={"status": "conflicting", "statements": [stated(0), stated(30, "third-party", "press")]},
        data__training_use={
            "status": "conflicting",
            "statements": [stated("no"), stated("yes", "third-party", "press")],
        },
        data__locations={
            "status": "conflicting",
            "statements": [stated(["DE"]), stated(["US"], "third-party", "press")],
        },
    )
    disclosure = disclosure_of(entry, "file")
    assert (disclosure.retention_days, disclosure.training_use) == (30, UNKNOWN)
    assert disclosure.data_locations == ("DE", "US")


def test_the_last_days_there_are() -> None:
    disclosure = disclosure_of(broken(issued="9999-12-30", valid_until="9999-12-31"), "file")
    assert disclosure.expired(date(2026, 12, 1))


def test_a_disclosure_ends() -> None:
    disclosure = disclosure_of(facts_file(), "file")
    assert not disclosure.expired(date(2027, 6, 1))
    assert disclosure.expired(date(2027, 6, 2))


def test_a_long_object_with_a_name_twice_is_refused_at_once(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text("{" + ",".join(f'"{number}":0' for number in range(50_000)) + ',"49999":0}')
    began = process_time()
    with pytest.raises(GovernanceError, match="'49999' appears twice"):
        load_disclosure(path)
    assert process_time() - began < 5


@pytest.mark.parametrize(("text", "said"), [("{", "no JSON"), ('{"a": 1, "a": 2}', "twice"), ("[]", "object")])
def test_files_that_are_none(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(GovernanceError, match=said):
        load_disclosure(path)
    with pytest.raises(GovernanceError, match="minimax-m3/api"):
        load_disclosure(tmp_path / "none.json")
