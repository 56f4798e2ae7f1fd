"""A disclosure as the head of a Hugging Face model card: YAML between two lines of dashes."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from cyclonedx.spdx import is_supported_id

from freehold.governance.disclosure.disclosure import Disclosure


def as_card(disclosure: Disclosure) -> str:
    """The head of a README.md. Each line is a key and its value as JSON, which is YAML too.

    Results of benchmarks are "verified" only if their status says verified-here. The key `freehold_disclosure` holds
    every statement; the hub keeps keys that it does not know. A licence that is in dispute or was not found stands
    there alone. The export is not signed.
    """
    lines = [f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in _entries(disclosure)]
    return "\n".join(["---", *lines, "---"]) + "\n"


def _entries(disclosure: Disclosure) -> Iterator[tuple[str, Any]]:
    facts = disclosure.facts
    licence = facts["licence.name"].settled
    if licence is not None:
        name = str(licence)
        if is_supported_id(name):
            yield "license", name.lower()
        else:
            yield "license", "other"
            yield "license_name", name.lower().replace(" ", "-")
            if facts["licence.url"].settled is not None:
                yield "license_link", str(facts["licence.url"].settled)
    results = list(_results(disclosure))
    if results:
        yield "model-index", [{"name": disclosure.model, "results": results}]
    rows = {
        key: {"status": fact.status, "statements": [statement.to_json() for statement in fact.statements]}
        for key, fact in facts.items()
    }
    about = {"name": disclosure.name, "issued": disclosure.issued.isoformat()}
    yield "freehold_disclosure", about | {"valid_until": disclosure.valid_until.isoformat(), "facts": rows}


def _results(disclosure: Disclosure) -> Iterator[dict[str, Any]]:
    for key, fact in disclosure.facts.items():
        if not key.startswith("benchmark."):
            continue
        for statement in fact.statements:
            if not isinstance(statement.value, Mapping) or statement.source is None:
                continue
            name = statement.value["benchmark"]
            source = {"name": f"{statement.source.publisher}: {statement.source.title}"}
            if statement.source.url is not None:
                source["url"] = statement.source.url
            verified = statement.status == "verified-here"
            yield {
                "task": {"type": "text-generation"},
                "dataset": {"type": key.partition(".")[2], "name": name},
                "metrics": [{"type": "score", "value": _number(statement.value["result"]), "verified": verified}],
                "source": source,
            }


def _number(text: str) -> float | str:
    """A result as a number, or as the text that it is."""
    try:
        return float(text)
    except ValueError:
        return text
