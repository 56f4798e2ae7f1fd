"""A disclosure as a CycloneDX 1.7 document, written by hand: no library models all of what is needed.

Every statement stands in four places that name each other: a claim with its evidence (which holds the statement whole),
a property or a field of CycloneDX's own (for readers that know nothing of ours), and a citation from there to who said
it. `docs/reference/disclosure.md` has the table of places.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from datetime import date, datetime, timezone
from typing import Any

from cyclonedx.spdx import is_supported_id

from freehold import __version__
from freehold.governance.disclosure.catalogue import catalogue
from freehold.governance.disclosure.disclosure import SELF_HOSTED, Disclosure
from freehold.governance.disclosure.statement import UNKNOWN, Fact, NotFound, Statement, Value, value_to_json
from freehold.governance.signing import SigningKey, canonical, signed

NAMESPACE = "freehold:"
STANDARD = "Freehold disclosure of models and data paths"
STANDARD_VERSION = "1"
_SERIAL = uuid.UUID("1b9f6a5e-3f0c-5a55-9d0e-2f1f5f0f7c11")
_AFFIRMATION = (
    "The signature says that its holder wrote these statements down, with the sources and days that stand beside them."
    " It does not say that the statements are true, and nothing here is a legal conclusion."
)


def document_of(disclosure: Disclosure, key: SigningKey, now: datetime) -> dict[str, Any]:
    """The signed document. now: the time of signing, with its zone. The same arguments give the same bytes."""
    return signed(unsigned(disclosure, now), key)


def unsigned(disclosure: Disclosure, now: datetime, tool_version: str = __version__) -> dict[str, Any]:
    """All of the document but its signature. tool_version: of the Freehold that wrote it."""
    draft = _Draft(disclosure)
    model, path = draft.model(), draft.path()
    document: dict[str, Any] = {
        "$schema": "http://cyclonedx.org/schema/bom-1.7.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.7",
        "version": 1,
        "metadata": {
            "timestamp": now.astimezone(timezone.utc).isoformat(timespec="seconds").replace("+00:00", "Z"),
            "tools": {
                "components": [
                    {"type": "application", "bom-ref": "tool", "name": "freehold", "version": tool_version},
                ]
            },
            "authors": [{"name": disclosure.author.name}],
            "component": model,
            "properties": _about(disclosure),
        },
        "components": draft.files(),
        "services": [path, *_other_paths(disclosure)],
        "dependencies": [{"ref": "path", "dependsOn": ["model"]}],
        "definitions": {"standards": [_standard()]},
        "declarations": draft.declarations(),
        "citations": draft.citations(),
    }
    if not document["components"]:
        del document["components"]
    document["serialNumber"] = f"urn:uuid:{uuid.uuid5(_SERIAL, canonical(document).hex())}"
    return document


def text_of(value: Value) -> str:
    """A value as the text of a property: texts and numbers as they are, others as canonical JSON."""
    entry = value_to_json(value)
    if isinstance(entry, str):
        return entry
    return canonical(entry).decode()


def _property(name: str, value: str) -> dict[str, str]:
    return {"name": NAMESPACE + name, "value": value}


def _about(disclosure: Disclosure) -> list[dict[str, str]]:
    """What a reader needs before it looks at a fact."""
    rows = {
        "standard": f"{STANDARD} {STANDARD_VERSION}",
        "name": disclosure.name,
        "title": disclosure.title,
        "issued": disclosure.issued.isoformat(),
        "valid-until": disclosure.valid_until.isoformat(),
    }
    rows |= {f"vendor:{name}": canonical(list(places)).decode() for name, places in disclosure.vendors.items()}
    return [_property(name, value) for name, value in rows.items()]


def _other_paths(disclosure: Disclosure) -> list[dict[str, Any]]:
    """A service for each other path to the same model, which a document of its own speaks of."""
    return [
        {
            "bom-ref": f"other-path:{name}",
            "name": name,
            "description": "Another path to the same model, with a disclosure of this name.",
            "x-trust-boundary": kind != SELF_HOSTED,
            "properties": [_property("other-path", kind)],
        }
        for name, kind in disclosure.other_paths.items()
    ]


def _standard() -> dict[str, Any]:
    """Our own standard: one requirement for each field, with its place in other people's lists."""
    clusters = catalogue().clusters
    requirements = []
    for field in catalogue().fields:
        properties = [_property("g7-cluster", f"{field.g7} {clusters[field.g7]}")]
        if field.eu:
            properties.append(_property("eu-model-documentation-form", field.eu))
        requirements.append(
            {
                "bom-ref": f"requirement:{field.key}",
                "identifier": field.key,
                "title": field.label,
                "text": field.about,
                "properties": properties,
            }
        )
    return {
        "bom-ref": "standard",
        "name": STANDARD,
        "version": STANDARD_VERSION,
        "description": "Each requirement asks that a field is stated with a source and a day. It asks for no value.",
        "owner": "Freehold",
        "requirements": requirements,
    }


class _Draft:
    """The parts of a document, and where each statement went: (key, number) -> JSON pointers."""

    def __init__(self, disclosure: Disclosure) -> None:
        self._disclosure = disclosure
        self._places: dict[tuple[str, int], list[str]] = {}
        publishers = [s.source.publisher for f in disclosure.facts.values() for s in f.statements if s.source]
        self._publishers = {name: f"organization:{n}" for n, name in enumerate(dict.fromkeys(publishers), 1)}

    def model(self) -> dict[str, Any]:
        """The component: the model with its card and licence."""
        here = "/metadata/component"
        model: dict[str, Any] = {"type": "machine-learning-model", "bom-ref": "model"}
        self._put(model, here, "name", "model.name")
        supplier: dict[str, Any] = {}
        self._put(supplier, f"{here}/supplier", "name", "model.publisher")
        model["supplier"] = supplier
        model["licenses"] = [{"license": self._licence(f"{here}/licenses/0/license")}]
        files = self._measured_files()
        if len(files) == 1:
            ((fact, record),) = files
            model["hashes"] = [{"alg": "SHA-256", "content": record["sha256"]}]
            self._note(f"{here}/hashes/0/content", fact.key)
        model["modelCard"] = self._card(f"{here}/modelCard")
        model["properties"] = self._properties(f"{here}/properties", "weights")
        return model

    def files(self) -> list[dict[str, Any]]:
        """A component for each file that was measured."""
        rows = []
        for number, (fact, record) in enumerate(self._measured_files()):
            hashes = [{"alg": "SHA-256", "content": record["sha256"]}]
            row = {"type": "file", "bom-ref": f"file:{number}", "name": record["name"], "hashes": hashes}
            self._note(f"/components/{number}/name", fact.key)
            self._note(f"/components/{number}/hashes/0/content", fact.key)
            rows.append(row)
        return rows

    def path(self) -> dict[str, Any]:
        """The service: the path that prompts take."""
        here = "/services/0"
        disclosure = self._disclosure
        provider: dict[str, Any] = {}
        self._put(provider, f"{here}/provider", "name", "provider.name")
        country = disclosure.facts["provider.country"]
        if country.status != "conflicting" and len(str(country.value)) == 2:
            provider["address"] = {"country": country.value}
            self._note(f"{here}/provider/address/country", "provider.country")
        service: dict[str, Any] = {"bom-ref": "path", "name": disclosure.title, "provider": provider}
        endpoints = disclosure.facts["path.endpoints"].value
        if isinstance(endpoints, tuple):
            service["endpoints"] = list(endpoints)
            self._note(f"{here}/endpoints", "path.endpoints")
        here_only = disclosure.data_path == SELF_HOSTED
        service["x-trust-boundary"] = not here_only
        service["trustZone"] = "operator" if here_only else "provider"
        service["data"] = [
            {
                "flow": "bi-directional",
                "classification": "prompts and answers",
                "name": "prompts and answers",
                "governance": {
                    "owners": [{"organization": {"name": "the user"}}],
                    "custodians": [{"organization": {"name": str(provider["name"])}}],
                },
            }
        ]
        sections = ("path", "provider", "owner", "data", "law", "price")
        service["properties"] = self._properties(f"{here}/properties", *sections)
        return service

    def declarations(self) -> dict[str, Any]:
        """Claims, the evidence of each, and which requirement each one meets."""
        disclosure = self._disclosure
        claims, evidence = [], []
        for fact in disclosure.facts.values():
            claims.append(_claim(fact))
            evidence += [self._evidence(fact, number, part) for number, part in enumerate(fact.statements)]
        author = {"name": disclosure.author.name}
        return {
            "assessors": [
                {"bom-ref": "author", "thirdParty": disclosure.author.third_party, "organization": author},
            ],
            "attestations": [
                {
                    "summary": "Which fields are stated, and with what. A score of 1 says that a value and its source"
                    " are stated, not that the value is good.",
                    "assessor": "author",
                    "map": [self._conformance(field.key) for field in catalogue().fields],
                }
            ],
            "claims": claims,
            "evidence": evidence,
            "targets": {
                "organizations": [{"bom-ref": ref, "name": name} for name, ref in self._publishers.items()],
            },
            "affirmation": {"statement": _AFFIRMATION},
        }

    def citations(self) -> list[dict[str, Any]]:
        """Who said what stands at which pointers. To be asked for last, when all places are known."""
        rows = []
        for fact in self._disclosure.facts.values():
            for number, statement in enumerate(fact.statements):
                source = statement.source
                parts = [
                    statement.status,
                    source.title if source else "",
                    (source and source.url) or "",
                    statement.note,
                ]
                rows.append(
                    {
                        "bom-ref": f"citation:{fact.key}:{number}",
                        "pointers": self._places[fact.key, number],
                        "timestamp": _midnight(statement.read),
                        "attributedTo": self._publishers[source.publisher] if source else "author",
                        "note": "; ".join(part for part in parts if part),
                    }
                )
        return rows

    def _licence(self, here: str) -> dict[str, Any]:
        facts = self._disclosure.facts
        name = facts["licence.name"].settled
        licence: dict[str, Any] = {"acknowledgement": "declared"}
        self._put(licence, here, "id" if isinstance(name, str) and is_supported_id(name) else "name", "licence.name")
        if str(facts["licence.url"].settled).startswith("http"):
            self._put(licence, here, "url", "licence.url")
        licence["properties"] = self._properties(f"{here}/properties", "licence")
        return licence

    def _card(self, here: str) -> dict[str, Any]:
        parameters: dict[str, Any] = {}
        self._put(parameters, f"{here}/modelParameters", "modelArchitecture", "model.architecture")
        for member, key in (("inputs", "model.inputs"), ("outputs", "model.outputs")):
            value = self._disclosure.facts[key].value
            if isinstance(value, tuple):
                parameters[member] = [{"format": text} for text in value]
                self._note(f"{here}/modelParameters/{member}", key)
        card: dict[str, Any] = {"bom-ref": "model-card", "modelParameters": parameters}
        metrics: list[dict[str, str]] = []
        for fact in self._family("benchmark"):
            for number, statement in enumerate(fact.statements):
                if isinstance(statement.value, Mapping):
                    self._note(f"{here}/quantitativeAnalysis/performanceMetrics/{len(metrics)}", fact.key, number)
                    names = {"benchmark": "type", "result": "value", "beside": "slice"}
                    metrics.append({names[name]: text for name, text in statement.value.items()})
        if metrics:
            card["quantitativeAnalysis"] = {"performanceMetrics": metrics}
        card["properties"] = self._properties(f"{here}/properties", "model", "benchmark", "claim")
        return card

    def _conformance(self, key: str) -> dict[str, Any]:
        field = next(field for field in catalogue().fields if field.key == key)
        facts = list(self._disclosure.of(field))
        stated = any(fact.status != "not-stated" for fact in facts)
        rationale = ", ".join(dict.fromkeys(fact.status for fact in facts)) or "nothing is stated"
        return {
            "requirement": f"requirement:{key}",
            "claims": [f"claim:{fact.key}" for fact in facts],
            "conformance": {"score": int(stated), "rationale": rationale},
        }

    def _evidence(self, fact: Fact, number: int, statement: Statement) -> dict[str, Any]:
        source = statement.source
        whole = {"contentType": "application/json", "content": canonical(statement.to_json()).decode()}
        data: list[dict[str, Any]] = [
            {"name": "statement", "contents": {"attachment": whole}, "classification": "public"},
        ]
        if source is not None and source.url is not None:
            data.append({"name": source.title, "contents": {"url": source.url}, "classification": "public"})
        return {
            "bom-ref": f"evidence:{fact.key}:{number}",
            "propertyName": NAMESPACE + fact.key,
            "description": f"{statement.status}: {text_of(statement.value)}",
            "data": data,
            "created": _midnight(statement.read),
            "expires": _midnight(self._disclosure.valid_until),
            "author": {"name": source.publisher if source else self._disclosure.author.name},
        }

    def _measured_files(self) -> list[tuple[Fact, Mapping[str, str]]]:
        """The facts of files that have a record, with it; others say "unknown" and stand among the properties."""
        return [(fact, fact.value) for fact in self._family("file") if isinstance(fact.value, Mapping)]

    def _family(self, name: str) -> list[Fact]:
        return [fact for key, fact in self._disclosure.facts.items() if key.startswith(f"{name}.")]

    def _properties(self, here: str, *sections: str) -> list[dict[str, str]]:
        """One property for each statement of the sections' fields, in the catalogue's order."""
        rows: list[dict[str, str]] = []
        for field in catalogue().fields:
            if field.section not in sections:
                continue
            for fact in self._disclosure.of(field):
                for number, statement in enumerate(fact.statements):
                    self._note(f"{here}/{len(rows)}", fact.key, number)
                    rows.append(_property(fact.key, text_of(statement.value)))
        return rows

    def _put(self, owner: dict[str, Any], here: str, member: str, key: str) -> None:
        """The value as a member of CycloneDX's own; "unknown" for what was not found or where statements conflict."""
        fact = self._disclosure.facts[key]
        value = fact.value
        if isinstance(value, NotFound) or fact.status == "conflicting":
            owner[member] = UNKNOWN
            return
        owner[member] = text_of(value)
        self._note(f"{here}/{member}", key)

    def _note(self, pointer: str, key: str, number: int = 0) -> None:
        self._places.setdefault((key, number), []).append(pointer)


def _claim(fact: Fact) -> dict[str, Any]:
    field = catalogue().field(fact.key)
    assert field is not None, fact.key
    first = value_to_json(fact.value)
    against = [
        number
        for number, statement in enumerate(fact.statements)
        if fact.status == "conflicting" and value_to_json(statement.value) != first
    ]
    refs = [f"evidence:{fact.key}:{number}" for number in range(len(fact.statements))]
    claim = {
        "bom-ref": f"claim:{fact.key}",
        "target": field.target,
        "predicate": f"{field.label}: {text_of(fact.value)}",
        "reasoning": fact.status,
        "evidence": [ref for number, ref in enumerate(refs) if number not in against],
    }
    return claim | {"counterEvidence": [refs[number] for number in against]} if against else claim


def _midnight(day: date) -> str:
    return f"{day.isoformat()}T00:00:00Z"
