"""Small disclosures and signed documents for tests, and weights that nobody computed."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from datetime import datetime, timezone
from functools import cache
from pathlib import Path
from typing import Any

from freehold.governance.disclosure.cyclonedx import document_of
from freehold.governance.disclosure.facts import FORMAT, disclosure_of
from freehold.governance.disclosure.loading import load_disclosure
from freehold.governance.disclosure.statement import Fact
from freehold.governance.disclosure.weights import MeasuredWeights, WeightsFile, with_weights
from freehold.governance.signing import SigningKey, canonical, signed

NOW = datetime(2026, 12, 1, 12, tzinfo=timezone.utc)
KEY = SigningKey.generate()
WEIGHTS = MeasuredWeights(
    "ab" * 32,
    1000,
    "safetensors: BF16",
    (WeightsFile("a.safetensors", 7, "cd" * 32), WeightsFile("b.safetensors", 9, "ef" * 32)),
)


def facts_file(**facts: Any) -> dict[str, Any]:
    """A file of facts about an endpoint of Example Ltd., with some facts of a test's own; "__" stands for "."."""
    entry: dict[str, Any] = {
        "format": FORMAT,
        "name": "example/api",
        "title": "A model at Example Ltd.",
        "author": {"name": "Example Ltd.", "third_party": False},
        "issued": "2026-12-01",
        "valid_until": "2027-06-01",
        "vendors": {"Example": ["example.com", "github.com/example"]},
        "sources": {
            "site": {"title": "Terms", "publisher": "Example", "url": "https://docs.example.com/terms"},
            "press": {"title": "News", "publisher": "A newspaper", "url": "https://news.test/1"},
        },
        "facts": {
            "provider.country": {"value": "DE", "status": "vendor-reported", "source": "site", "read": "2026-11-01"},
        },
    }
    for key, fact in facts.items():
        entry["facts"][key.replace("__", ".")] = fact
    return entry


def stated(value: Any, status: str = "vendor-reported", source: str = "site", **more: Any) -> dict[str, Any]:
    """A statement as a file has it."""
    return {"value": value, "status": status, "source": source, "read": "2026-11-01", **more}


@cache
def _document() -> bytes:
    disclosure = with_weights(disclosure_of(facts_file(), "example"), WEIGHTS, NOW.date())
    # The schema's check of each address takes a tenth of a second, and laws have many.
    facts = {key: _without_address(fact) if key.startswith("law.") else fact for key, fact in disclosure.facts.items()}
    disclosure = replace(disclosure, facts=facts)
    return canonical(document_of(disclosure, KEY, NOW))


def _without_address(fact: Fact) -> Fact:
    statements = []
    for statement in fact.statements:
        assert statement.source is not None
        statements.append(replace(statement, source=replace(statement.source, url=None)))
    return replace(fact, statements=tuple(statements))


def signed_document() -> dict[str, Any]:
    """A signed document about a model at Example Ltd., with `WEIGHTS`; a new copy each time."""
    document: dict[str, Any] = json.loads(_document())
    return document


def signed_again(document: dict[str, Any]) -> dict[str, Any]:
    """The changed document with a signature that fits, so that other checks are what has to find the change."""
    return signed(copy.deepcopy(document), KEY)


def shipped_document(name: str, place: Path) -> Path:
    """A signed document of a shipped disclosure in a file."""
    place.write_bytes(canonical(document_of(load_disclosure(name), KEY, NOW)))
    return place
