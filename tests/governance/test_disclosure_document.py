"""What is written is read back; every change is caught by the check whose name says what it is."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from freehold.core.errors import GovernanceError, SignatureError
from freehold.governance.disclosure import load_disclosure
from freehold.governance.disclosure.cyclonedx import document_of
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
        (dangling_evidence, {"references", "facts"}),
        (dangling_target, {"references"}),
        (dangling_requirement, {"references"}),
        (name_given_twice, {"references"}),
        (pointer_to_nothing, {"pointers", "agreement"}),
        (pointer_to_itself, {"pointers", "agreement"}),
        (edited_country, {"agreement"}),
        (edited_property, {"agreement"}),
        (property_without_evidence, {"agreement"}),
        (citation_taken_away, {"agreement"}),
        (statement_shown_nowhere, {"agreement"}),
        (another_status, {"agreement"}),
        (vendor_elsewhere, {"facts"}),
        (unknown_member, {"schema"}),
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


def test_an_edited_digest_is_not_that_of_the_weights() -> None:
    document = json.loads(json.dumps(signed_document()).replace("ab" * 32, "ac" * 32))
    assert failing(signed_again(document)) == {"weights"}


@pytest.mark.parametrize("document", [None, [], {}, "text", {"declarations": 1, "metadata": []}, {"citations": [1]}])
def test_what_is_no_document_fails_and_does_not_raise(document: Any) -> None:
    assert {"schema", "facts", "signature", "key", "expiry"} <= failing(document)


def test_a_stated_digest_that_differs_is_a_conflict() -> None:
    known = with_weights(disclosure_of(facts_file(), "f"), WEIGHTS, NOW.date())
    other = replace(WEIGHTS, digest="11" * 32)
    both = with_weights(known, other, NOW.date())
    assert both.facts["weights.digest"].status == "conflicting"
    assert both.weights_digest == "unknown"
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
