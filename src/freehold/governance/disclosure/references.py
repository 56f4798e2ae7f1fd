"""References and pointers inside of a CycloneDX document, which its schema takes for plain texts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

# Where CycloneDX 1.7 has a reference to a bom-ref; "*" is any index.
_LINKS = (
    "dependencies/*/ref",
    "dependencies/*/dependsOn/*",
    "dependencies/*/provides/*",
    "compositions/*/assemblies/*",
    "compositions/*/dependencies/*",
    "annotations/*/subjects/*",
    "citations/*/attributedTo",
    "citations/*/process",
    "declarations/attestations/*/assessor",
    "declarations/attestations/*/map/*/requirement",
    "declarations/attestations/*/map/*/claims/*",
    "declarations/attestations/*/map/*/counterClaims/*",
    "declarations/attestations/*/map/*/conformance/mitigationStrategies/*",
    "declarations/claims/*/target",
    "declarations/claims/*/evidence/*",
    "declarations/claims/*/counterEvidence/*",
    "declarations/claims/*/mitigationStrategies/*",
    "definitions/standards/*/requirements/*/parent",
    "definitions/standards/*/levels/*/requirements/*",
    "metadata/component/modelCard/modelParameters/datasets/*/ref",
    "components/*/modelCard/modelParameters/datasets/*/ref",
)
_ELSEWHERE = "urn:cdx:"
"""Begins a reference into another document, which cannot be followed here."""


def wrong_references(document: Any) -> list[str]:
    """What is wrong with the references: names given twice, references to nothing. Empty if nothing is."""
    names = Counter(_names(document))
    found = [f"the bom-ref {name!r} is given to {count} things" for name, count in names.items() if count > 1]
    for link in _LINKS:
        for pointer, value in _at(document, link.split("/"), ""):
            if not isinstance(value, str) or (value not in names and not value.startswith(_ELSEWHERE)):
                found.append(f"{pointer} refers to {value!r}, which nothing is called")
    return found


def wrong_pointers(document: Any) -> list[str]:
    """Citations whose pointers lead to nothing, or to the citations themselves. Empty if there are none."""
    found = []
    for number, citation in enumerate(document.get("citations", [])):
        where = f"/citations/{number}"
        if "expressions" in citation:
            found.append(f"{where} has path expressions, which are not followed here")
        for pointer in citation.get("pointers", []):
            try:
                resolve(document, pointer)
            except LookupError:
                found.append(f"{where} points to {pointer}, where nothing is")
            else:
                if pointer == "" or pointer.split("/")[1] in ("citations", "signature"):
                    found.append(f"{where} points to {pointer}, which states nothing")
    return found


def resolve(document: Any, pointer: str) -> Any:
    """The value at a JSON pointer (RFC 6901). Raises LookupError where there is none."""
    if pointer == "":
        return document
    if not pointer.startswith("/"):
        raise LookupError(pointer)
    value = document
    for part in pointer[1:].split("/"):
        name = part.replace("~1", "/").replace("~0", "~")
        if isinstance(value, list):
            # "01" and "-" are no indices, and neither is "²".
            if not (name.isascii() and name.isdigit()) or (len(name) > 1 and name[0] == "0"):
                raise LookupError(pointer)
            value = value[int(name)]
        elif isinstance(value, dict):
            value = value[name]
        else:
            raise LookupError(pointer)
    return value


def _names(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        if isinstance(value.get("bom-ref"), str):
            yield value["bom-ref"]
        for part in value.values():
            yield from _names(part)
    elif isinstance(value, list):
        for part in value:
            yield from _names(part)


def _at(value: Any, path: list[str], pointer: str) -> Iterator[tuple[str, Any]]:
    """The pointers and values that a path with stars leads to."""
    if not path:
        yield pointer, value
    elif path[0] == "*":
        for number, part in enumerate(value if isinstance(value, list) else []):
            yield from _at(part, path[1:], f"{pointer}/{number}")
    elif isinstance(value, dict) and path[0] in value:
        yield from _at(value[path[0]], path[1:], f"{pointer}/{path[0]}")
