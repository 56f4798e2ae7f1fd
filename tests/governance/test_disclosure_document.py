"""What is written is read back; every change is caught by the check whose name says what it is."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from freehold.core.errors import GovernanceError, SignatureError
from freehold.governance.disclosure import load_disclosure
from freehold.governance.disclosure.cyclonedx import document_of, unsigned
from freehold.governance.disclosure.facts import disclosure_of
from freehold.governance.disclosure.loading import shipped_names
from freehold.governance.disclosure.reading import disclosure_from
from freehold.governance.disclosure.references import resolve, wrong_pointers, wrong_references
from freehold.governance.disclosure.verify import Check, verify
from freehold.governance.disclosure.weights import MeasuredWeights, WeightsFile, with_weights
from freehold.governance.signing import SigningKey, canonical, signed
from support.disclosures import KEY, NOW, WEIGHTS, facts_file, shipped_document, signed_again, signed_document, stated

NAMES = ("schema", "references", "pointers", "facts", "agreement", "signature", "key", "expiry", "weights")
Change = Callable[[dict[str, Any]], None]


def checked(document: Any, **more: Any) -> dict[str, Check]:
    checks = verify(document, **({"now": NOW, "keys": [KEY.public], "weights": WEIGHTS} | more))
    assert tuple(check.name for check in checks) == NAMES
    return {check.name: check for check in checks}


def failing(document: Any, **more: Any) -> set[str]:
    return {name for name, check in checked(document, **more).items() if check.state == "fails"}


@pytest.mark.parametrize("name", shipped_names())
def test_shipped_documents_hold(name: str, tmp_path: Path) -> None:
    path = shipped_document(name, tmp_path / "document.json")
    checks = checked(json.loads(path.read_bytes()), weights=None)
    assert {n: c.faults for n, c in checks.items() if c.state != "holds"} == {"weights": ("no weights were given",)}
    back = load_disclosure(path, trusted=[KEY.public])
    assert back.signed_by == KEY.public
    assert replace(back, signed_by=None) == load_disclosure(name)


def test_the_same_facts_give_the_same_bytes() -> None:
    disclosure = load_disclosure("smollm2-135m")
    assert canonical(document_of(disclosure, KEY, NOW)) == canonical(document_of(disclosure, KEY, NOW))


def test_a_document_with_weights_holds() -> None:
    assert failing(signed_document()) == set()


def test_statements_stand_where_other_tools_look() -> None:
    document = signed_document()
    assert document["services"][0]["provider"]["address"] == {"country": "DE"}
    assert [c["name"] for c in document["components"]] == ["a.safetensors", "b.safetensors"]
    assert document["declarations"]["assessors"][0]["thirdParty"] is False
    standard = document["definitions"]["standards"][0]
    assert all(r["properties"][0]["name"] == "freehold:g7-cluster" for r in standard["requirements"])


def test_each_path_is_a_service(tmp_path: Path) -> None:
    document = json.loads(shipped_document("minimax-m3/hosted", tmp_path / "d.json").read_bytes())
    services = {service["name"]: service["x-trust-boundary"] for service in document["services"]}
    assert services == {
        "MiniMax M3, weights on a third party's host": True,
        "minimax-m3/self-hosted": False,
        "minimax-m3/api": True,
    }


def test_contradictions_become_counter_evidence() -> None:
    facts = {"status": "conflicting", "statements": [stated("E"), stated("F", "third-party", "press"), stated("E")]}
    disclosure = disclosure_of(facts_file(provider__name=facts), "f")
    document = document_of(disclosure, KEY, NOW)
    (claim,) = (c for c in document["declarations"]["claims"] if c["bom-ref"] == "claim:provider.name")
    assert claim["evidence"] == ["evidence:provider.name:0", "evidence:provider.name:2"]
    assert claim["counterEvidence"] == ["evidence:provider.name:1"]
    assert replace(disclosure_from(document, "d"), signed_by=None) == disclosure


def test_conflicts_and_gaps_stand_in_every_place_and_agree() -> None:
    missing = {"value": {"not_found_in": "the terms", "on": "2026-11-01"}, "status": "not-stated", "read": "2026-11-01"}
    two = [stated(["https://a.example.com"]), stated(["https://b.test"], "third-party", "press")]
    entry = facts_file(
        provider__name=missing,
        licence__name=missing,
        model__name=missing,
        provider__country={"status": "conflicting", "statements": [stated("DE"), stated("US", "third-party", "press")]},
        path__endpoints={"status": "conflicting", "statements": two},
        model__inputs={"status": "conflicting", "statements": [stated(["text"]), stated(["text", "image"])]},
        data__training_use={"status": "conflicting", "statements": [stated("no"), missing]},
    )
    document = document_of(disclosure_of(entry, "f"), KEY, NOW)
    assert document["services"][0]["endpoints"] == ["https://a.example.com"]
    assert document["services"][0]["provider"] == {"name": "unknown"}
    assert failing(document, weights=None) == set()


def dangling_evidence(document: dict[str, Any]) -> None:
    document["declarations"]["claims"][0]["evidence"] = ["evidence:nothing:0"]


def dangling_target(document: dict[str, Any]) -> None:
    document["declarations"]["claims"][0]["target"] = "nothing"


def dangling_requirement(document: dict[str, Any]) -> None:
    document["declarations"]["attestations"][0]["map"][0]["requirement"] = "requirement:nothing"


def name_given_twice(document: dict[str, Any]) -> None:
    document["metadata"]["tools"]["components"][0]["bom-ref"] = "model"


def pointer_to_nothing(document: dict[str, Any]) -> None:
    document["citations"][0]["pointers"].append("/services/0/properties/9999")


def pointer_to_itself(document: dict[str, Any]) -> None:
    document["citations"][0]["pointers"].append("/citations/0/note")


def edited_country(document: dict[str, Any]) -> None:
    document["services"][0]["provider"]["address"]["country"] = "FR"


def edited_property(document: dict[str, Any]) -> None:
    rows = document["services"][0]["properties"]
    next(row for row in rows if row["name"] == "freehold:data.training_use")["value"] = "no"


def property_without_evidence(document: dict[str, Any]) -> None:
    document["services"][0]["properties"].append({"name": "freehold:data.training_use", "value": "no"})


def citation_taken_away(document: dict[str, Any]) -> None:
    document["citations"].pop()


def statement_shown_nowhere(document: dict[str, Any]) -> None:
    rows = document["services"][0]["properties"]
    last = f"/services/0/properties/{len(rows) - 1}"
    rows.pop()
    document["citations"] = [row for row in document["citations"] if last not in row["pointers"]]


def another_status(document: dict[str, Any]) -> None:
    note = document["citations"][0]
    note["note"] = "verified-here"


def vendor_elsewhere(document: dict[str, Any]) -> None:
    rows = document["metadata"]["properties"]
    next(row for row in rows if row["name"] == "freehold:vendor:Example")["value"] = '["elsewhere.test"]'


def unknown_member(document: dict[str, Any]) -> None:
    document["services"][0]["trusted"] = True


@pytest.mark.parametrize(
    ("change", "caught_by"),
    [
        (dangling_evidence, {"references", "facts", "agreement", "expiry"}),
        (dangling_target, {"references", "agreement"}),
        (dangling_requirement, {"references", "agreement"}),
        (name_given_twice, {"references", "agreement"}),
        (pointer_to_nothing, {"pointers", "agreement"}),
        (pointer_to_itself, {"pointers", "agreement"}),
        (edited_country, {"agreement"}),
        (edited_property, {"agreement"}),
        (property_without_evidence, {"agreement"}),
        (citation_taken_away, {"agreement"}),
        (statement_shown_nowhere, {"agreement"}),
        (another_status, {"agreement"}),
        (vendor_elsewhere, {"facts", "agreement", "expiry"}),
        (unknown_member, {"schema", "agreement"}),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_change_is_caught_by_name(change: Change, caught_by: set[str]) -> None:
    document = signed_document()
    change(document)
    assert failing(document) >= {"signature", "key"}
    # Whoever signs a wrong document does not make it right.
    wrong = failing(signed_again(document))
    assert wrong - {"weights"} == caught_by


def claim_of(document: dict[str, Any], key: str) -> dict[str, Any]:
    found: dict[str, Any] = next(c for c in document["declarations"]["claims"] if c["bom-ref"] == f"claim:{key}")
    return found


def without_claims(document: dict[str, Any], *keys: str) -> None:
    """Drop claims alone; their evidence, properties and citations stay."""
    refs = {f"claim:{key}" for key in keys}
    declarations = document["declarations"]
    declarations["claims"] = [row for row in declarations["claims"] if row["bom-ref"] not in refs]
    for row in declarations["attestations"][0]["map"]:
        row["claims"] = [ref for ref in row["claims"] if ref not in refs]


def without_pointers(document: dict[str, Any], beginning: str) -> None:
    for citation in document["citations"]:
        citation["pointers"] = [p for p in citation["pointers"] if not p.startswith(beginning)]


def another_models_name(document: dict[str, Any]) -> None:
    document["metadata"]["component"]["name"] = "GPT-9"
    without_pointers(document, "/metadata/component/name")


def another_provider(document: dict[str, Any]) -> None:
    document["services"][0]["provider"] = {"name": "Deutsche Cloud GmbH", "address": {"country": "FR"}}
    without_pointers(document, "/services/0/provider")


def no_boundary(document: dict[str, Any]) -> None:
    document["services"][0]["x-trust-boundary"] = False


def another_custodian(document: dict[str, Any]) -> None:
    document["services"][0]["data"][0]["governance"]["custodians"] = [{"organization": {"name": "nobody"}}]


def another_predicate(document: dict[str, Any]) -> None:
    claim_of(document, "data.retention_days")["predicate"] = "Kept for: 0 days"


def full_marks(document: dict[str, Any]) -> None:
    for row in document["declarations"]["attestations"][0]["map"]:
        row["conformance"] = {"score": 1, "rationale": "verified-here"}


def a_claim_less(document: dict[str, Any]) -> None:
    without_claims(document, "data.retention_days")


def second_evidence(document: dict[str, Any]) -> None:
    rows = document["declarations"]["evidence"]
    other = copy.deepcopy(next(row for row in rows if row["bom-ref"] == "evidence:provider.country:0"))
    rows.append(other | {"bom-ref": "evidence:provider.country:1"})
    cited = next(row for row in document["citations"] if row["bom-ref"] == "citation:provider.country:0")
    document["citations"].append(copy.deepcopy(cited) | {"bom-ref": "citation:provider.country:1"})


def second_licence(document: dict[str, Any]) -> None:
    document["metadata"]["component"]["licenses"].append({"license": {"id": "MIT", "acknowledgement": "concluded"}})


def considerations(document: dict[str, Any]) -> None:
    document["metadata"]["component"]["modelCard"]["considerations"] = {"useCases": ["Certified by BSI"]}


def annotation(document: dict[str, Any]) -> None:
    document["annotations"] = [
        {
            "bom-ref": "annotation",
            "subjects": ["model"],
            "annotator": {"organization": {"name": "EU Commission"}},
            "timestamp": "2026-11-29T00:00:00Z",
            "text": "Complies with the AI Act.",
        }
    ]


def valid_until_twice(document: dict[str, Any]) -> None:
    rows = document["metadata"]["properties"]
    rows.insert(0, {"name": "freehold:valid-until", "value": "2027-11-30"})


def a_longer_note(document: dict[str, Any]) -> None:
    document["citations"][0]["note"] += "; audited by the EU Commission"


def one_for_true(document: dict[str, Any]) -> None:
    document["services"][0]["x-trust-boundary"] = 1


@pytest.mark.parametrize(
    "change",
    [
        another_models_name,
        another_provider,
        no_boundary,
        another_custodian,
        another_predicate,
        full_marks,
        a_claim_less,
        second_evidence,
        second_licence,
        considerations,
        annotation,
        valid_until_twice,
        a_longer_note,
        one_for_true,
    ],
)
def test_who_signs_can_add_drop_and_reword_nothing(change: Change) -> None:
    document = signed_document()
    change(document)
    assert "agreement" in failing(signed_again(document))


def test_counter_evidence_stays_counter_evidence() -> None:
    two = {"status": "conflicting", "statements": [stated("E"), stated("F", "third-party", "press")]}
    document = document_of(disclosure_of(facts_file(provider__name=two), "f"), KEY, NOW)
    claim = claim_of(document, "provider.name")
    claim["evidence"] += claim.pop("counterEvidence")
    check = checked(signed_again(document), weights=None)["agreement"]
    assert (check.state, "/declarations/claims" in check.faults[0]) == ("fails", True)


def test_all_laws_are_there() -> None:
    document = signed_document()
    laws = [
        row["bom-ref"][6:] for row in document["declarations"]["claims"] if row["bom-ref"].startswith("claim:law.us")
    ]
    assert len(laws) == 3
    without_claims(document, *laws)
    checks = checked(signed_again(document))
    assert (checks["facts"].state, "law.us-fisa-702: is missing" in checks["facts"].faults[0]) == ("fails", True)

    # As a whole, so that nothing in the document disagrees.
    disclosure = with_weights(disclosure_of(facts_file(), "f"), WEIGHTS, NOW.date())
    fewer = replace(disclosure, facts={key: f for key, f in disclosure.facts.items() if not key.startswith("law.us")})
    assert "facts" in failing(document_of(fewer, KEY, NOW))


def test_time_of_signing_and_version_of_the_tool_are_free() -> None:
    disclosure = disclosure_from(signed_document(), "d")
    other = signed(unsigned(disclosure, NOW + timedelta(days=3, seconds=1), "9.9"), KEY)
    assert failing(other, now=NOW + timedelta(days=4)) == set()


def test_no_leaf_can_be_changed_unseen() -> None:
    document = signed_document()
    leaves: list[list[Any]] = []

    def walk(value: Any, path: list[Any]) -> None:
        if isinstance(value, (dict, list)):
            for key in value if isinstance(value, dict) else range(len(value)):
                walk(value[key], [*path, key])
        else:
            leaves.append(path)

    walk(document, [])
    assert len(leaves) > 1500
    for path in random.Random(1).sample(leaves, 200):
        other = copy.deepcopy(document)
        place = other
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = "x" if place[path[-1]] != "x" else "y"
        with pytest.raises(SignatureError):
            disclosure_from(other, "d")


def test_an_expired_document() -> None:
    document = signed_document()
    assert failing(document, now=NOW + timedelta(days=182)) == set()
    later = checked(document, now=NOW + timedelta(days=183))["expiry"]
    assert (later.state, "2027-06-01" in later.faults[0]) == ("fails", True)
    assert failing(document, now=NOW - timedelta(days=1)) == {"expiry"}


def test_days_in_the_future_or_out_of_order_expire_a_document() -> None:
    entry = facts_file() | {"issued": "2099-01-01", "valid_until": "2099-12-31"}
    entry["facts"]["provider.country"]["read"] = "2098-12-01"
    disclosure = disclosure_of(entry, "f")
    assert disclosure.expired(NOW.date())
    for signed_at in (NOW, datetime(2099, 1, 2, tzinfo=timezone.utc)):
        document = document_of(disclosure, KEY, signed_at)
        check = checked(document, weights=None)["expiry"]
        assert (check.state, "2099-01-01, which is in the future" in check.faults[0]) == ("fails", True)
    # A day begins in the east before it begins in Greenwich.
    assert failing(signed_document(), now=NOW, weights=None) == set()
    tomorrow = document_of(disclosure_of(facts_file() | {"issued": "2026-12-02"}, "f"), KEY, NOW)
    assert "expiry" not in failing(tomorrow, weights=None)


@pytest.mark.parametrize("time", ["1990-01-01T00:00:00Z", "2026-12-01T12:00:00", "9999-12-31T23:59:59Z"])
def test_a_time_of_signing_that_cannot_be(time: str) -> None:
    document = signed_document()
    document["metadata"]["timestamp"] = time
    assert failing(signed_again(document)) >= {"expiry"}


def test_an_unknown_key() -> None:
    document = signed_document()
    for keys in ([], [SigningKey.generate().public]):
        check = checked(document, keys=keys)["key"]
        assert (check.state, KEY.public.id in check.faults[0]) == ("fails", True)
        assert failing(document, keys=keys) == {"key"}


def test_the_signature_of_another_key() -> None:
    document = signed_document()
    other = signed(document, SigningKey.generate())
    assert failing(other) == {"key"}
    # The known key's name on the other's signature.
    other["signature"]["publicKey"] = document["signature"]["publicKey"]
    other["signature"]["keyId"] = document["signature"]["keyId"]
    assert failing(other) == {"signature", "key"}
    with pytest.raises(SignatureError):
        disclosure_from(other, "d")


def test_no_signature() -> None:
    document = signed_document()
    del document["signature"]
    assert failing(document) == {"signature", "key"}


def test_other_weights_are_named() -> None:
    files = (WEIGHTS.files[0], WeightsFile("b.safetensors", 9, "00" * 32))
    other = MeasuredWeights("11" * 32, 1000, WEIGHTS.format, files)
    check = checked(signed_document(), weights=other)["weights"]
    assert check.state == "fails"
    assert [fault.partition(":")[0] for fault in check.faults[1:]] == ["b.safetensors"]
    fewer = MeasuredWeights("11" * 32, 1000, WEIGHTS.format, WEIGHTS.files[:1])
    assert "b.safetensors is not among the files" in checked(signed_document(), weights=fewer)["weights"].faults
    assert failing(signed_document(), weights=other) == {"weights"}


def test_files_are_compared_where_the_digest_fits() -> None:
    swapped = (replace(WEIGHTS.files[0], sha256=WEIGHTS.files[1].sha256), replace(WEIGHTS.files[1], nbytes=10))
    check = checked(signed_document(), weights=replace(WEIGHTS, files=swapped))["weights"]
    assert [fault.partition(":")[0] for fault in check.faults] == ["a.safetensors", "b.safetensors"]
    fewer = replace(WEIGHTS, files=WEIGHTS.files[:1])
    assert checked(signed_document(), weights=fewer)["weights"].faults == ("b.safetensors is not among the files",)


def test_a_file_that_is_named_twice_has_to_fit_twice() -> None:
    twice = replace(WEIGHTS, files=(WeightsFile("b.safetensors", 9, "00" * 32), *WEIGHTS.files))
    document = document_of(with_weights(disclosure_of(facts_file(), "f"), twice, NOW.date()), KEY, NOW)
    check = checked(document)["weights"]
    assert (check.state, len(check.faults), check.faults[0][:13]) == ("fails", 1, "b.safetensors")


def test_files_of_which_nothing_is_known() -> None:
    unknown = {"value": "unknown", "status": "not-stated", "read": "2026-11-01"}
    document = document_of(disclosure_of(facts_file(**{"file.1": unknown}), "f"), KEY, NOW)
    assert failing(document, weights=None) == set()
    assert "components" not in document


def test_faults_are_plain_text() -> None:
    document = signed_document()
    document["declarations"]["claims"][0]["bom-ref"] = "claim:claim.x\n\x1b[2Jsignature   holds"
    faults = [fault for check in checked(document).values() for fault in check.faults]
    assert any("u001b" in fault or "x1b" in fault for fault in faults)
    assert not any("\x1b" in fault or "\n" in fault for fault in faults)


@pytest.mark.parametrize("value", [5, None, ["x"], {"a": 1}])
def test_members_of_another_kind_are_refused_by_name(value: Any) -> None:
    """Loading raises what callers expect, whatever a signer wrote."""

    def title(document: dict[str, Any]) -> None:
        document["metadata"]["properties"][2]["value"] = value

    def author(document: dict[str, Any]) -> None:
        document["declarations"]["assessors"][0]["organization"]["name"] = value

    def third_party(document: dict[str, Any]) -> None:
        document["declarations"]["assessors"][0]["thirdParty"] = value

    def status(document: dict[str, Any]) -> None:
        document["declarations"]["claims"][0]["reasoning"] = value

    def note(document: dict[str, Any]) -> None:
        attachment = document["declarations"]["evidence"][0]["data"][0]["contents"]["attachment"]
        attachment["content"] = json.dumps(json.loads(attachment["content"]) | {"note": value})

    for change in (title, author, third_party, status, note):
        document = signed_document()
        change(document)
        with pytest.raises(GovernanceError):
            disclosure_from(signed_again(document), "d")


def test_an_edited_digest_is_not_that_of_the_weights() -> None:
    document = json.loads(json.dumps(signed_document()).replace("ab" * 32, "ac" * 32))
    # The serial number is made from the content, so that the document disagrees with itself as well.
    assert failing(signed_again(document)) == {"weights", "agreement"}
    told = unsigned(disclosure_from(document, "d", check_signature=False), NOW)
    assert failing(signed(told, KEY)) == {"weights"}


@pytest.mark.parametrize("document", [None, [], {}, "text", {"declarations": 1, "metadata": []}, {"citations": [1]}])
def test_what_is_no_document_fails_and_does_not_raise(document: Any) -> None:
    assert {"schema", "facts", "signature", "key", "expiry"} <= failing(document)


def test_a_stated_digest_that_differs_is_a_conflict() -> None:
    known = with_weights(disclosure_of(facts_file(), "f"), WEIGHTS, NOW.date())
    other = replace(WEIGHTS, digest="11" * 32)
    both = with_weights(known, other, NOW.date())
    assert both.facts["weights.digest"].status == "conflicting"
    assert both.weights_digest == "unknown"
    doubt = {"status": "conflicting", "statements": [stated(WEIGHTS.digest), stated("unknown", "third-party", "press")]}
    settled = with_weights(disclosure_of(facts_file(weights__digest=doubt), "f"), WEIGHTS, NOW.date())
    assert settled.facts["weights.digest"].status == "verified-here"
    again = with_weights(known, WEIGHTS, NOW.date())
    assert again.facts["weights.digest"].status == "verified-here"
    assert again.weights_digest == WEIGHTS.digest


def test_trusted_keys() -> None:
    with pytest.raises(GovernanceError, match="signed by nobody"):
        load_disclosure("minimax-m3/api", trusted=[KEY.public])


def test_references_and_pointers_of_others_documents() -> None:
    document = {
        "components": [{"bom-ref": "a/b"}, {"bom-ref": "c"}],
        "dependencies": [{"ref": "a/b", "dependsOn": ["c", "urn:cdx:other#x"]}],
        "x~y": {"": [5]},
        "citations": [{"pointers": ["/x~0y//0", "/components/0/bom-ref"]}],
    }
    assert wrong_references(document) == []
    assert wrong_pointers(document) == []
    assert resolve(document, "/x~0y//0") == 5
    for pointer in ("x", "/components/01", "/components/-", "/components/2", "/components/²", "/x~0y//0/0"):
        with pytest.raises(LookupError):
            resolve(document, pointer)
    document["dependencies"][0]["dependsOn"].append("d")  # type: ignore[index, attr-defined]
    assert wrong_references(document) == ["/dependencies/0/dependsOn/2 refers to 'd', which nothing is called"]
