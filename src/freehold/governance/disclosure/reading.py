"""From a CycloneDX document back to the disclosure that it was made of."""

from __future__ import annotations

import json
from typing import Any

from freehold.core.errors import GovernanceError
from freehold.governance.disclosure.catalogue import catalogue
from freehold.governance.disclosure.cyclonedx import NAMESPACE
from freehold.governance.disclosure.disclosure import Author, Disclosure
from freehold.governance.disclosure.facts import check, silent, vendors_of
from freehold.governance.disclosure.plain import is_plain, plain
from freehold.governance.disclosure.statement import (
    Fact,
    Source,
    Statement,
    check_members,
    parse_date,
    value_from_json,
)
from freehold.governance.signing import signer


def disclosure_from(document: dict[str, Any], where: str, *, check_signature: bool = True) -> Disclosure:
    """The disclosure in a signed document, read from its claims and their evidence alone.

    The signature has to fit, unless that is checked elsewhere; whose it is, `signed_by` says. Raises GovernanceError,
    SignatureError among them, which begins with `where`, for a document that was not written by `document_of`.
    """
    key = signer(document) if check_signature else None
    try:
        about = {row["name"].removeprefix(NAMESPACE): row["value"] for row in document["metadata"]["properties"]}
        declarations = document["declarations"]
        assessor = declarations["assessors"][0]
        evidence = {row["bom-ref"]: row for row in declarations["evidence"]}
        facts = {}
        for claim in declarations["claims"]:
            fact = _fact(claim, evidence, where)
            facts[fact.key] = fact
        issued = parse_date(about["issued"], f"{where}: issued")
        places = {
            name.removeprefix("vendor:"): json.loads(value)
            for name, value in about.items()
            if name.startswith("vendor:")
        }
        disclosure = Disclosure(
            name=about["name"],
            title=about["title"],
            author=Author(assessor["organization"]["name"], assessor["thirdParty"]),
            vendors=vendors_of(places, where),
            facts=facts | silent(facts, issued),
            issued=issued,
            valid_until=parse_date(about["valid-until"], f"{where}: valid-until"),
            other_paths={row["name"]: row["properties"][0]["value"] for row in document["services"][1:]},
            signed_by=key,
        )
    except (KeyError, IndexError, TypeError, AttributeError, ValueError, RecursionError) as error:
        if isinstance(error, GovernanceError):
            raise
        raise GovernanceError(f"{where}: is no disclosure that Freehold wrote: it lacks {plain(str(error))}") from error
    check(disclosure, where)
    return disclosure


def statement_in(evidence: dict[str, Any], where: str) -> Statement:
    """The statement that a piece of evidence holds whole."""
    entry = json.loads(evidence["data"][0]["contents"]["attachment"]["content"])
    check_members(entry, where, need=("value", "status", "read"), may=("source", "note"))
    return Statement(
        value_from_json(entry["value"], where),
        entry["status"],
        Source.from_json(entry["source"], where) if "source" in entry else None,
        parse_date(entry["read"], where),
        entry.get("note", ""),
    )


def _fact(claim: dict[str, Any], evidence: dict[str, dict[str, Any]], where: str) -> Fact:
    key = claim["bom-ref"].removeprefix("claim:")
    if catalogue().field(key) is None or not is_plain(key):
        raise GovernanceError(f"{where}: {key!r}: no field has this name")
    refs = claim["evidence"] + claim.get("counterEvidence", [])
    # Those that contradict stand apart; the number at the end of a reference is the place among all.
    refs.sort(key=lambda ref: int(ref.rpartition(":")[2]))
    statements = tuple(statement_in(evidence[ref], f"{where}: {key}") for ref in refs)
    return Fact(key, claim["reasoning"], statements)
