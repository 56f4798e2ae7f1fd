"""What was computed from the weights' own bytes, and how it enters a disclosure."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import date

from freehold.governance.disclosure.disclosure import Disclosure
from freehold.governance.disclosure.statement import (
    OPERATOR,
    UNKNOWN,
    Fact,
    NotFound,
    Source,
    Statement,
    Value,
    value_to_json,
)


@dataclass(frozen=True, slots=True)
class WeightsFile:
    """A file that holds tensors: its name, its length in bytes, SHA-256 of its bytes in hexadecimal."""

    name: str
    nbytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class MeasuredWeights:
    """What a reader of the files found. digest: of all content, in hexadecimal. parameters: stored numbers.

    format: such as "gguf: Q4_1, F32". files: in the order in which the digest takes them.
    """

    digest: str
    parameters: int
    format: str
    files: tuple[WeightsFile, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of all files."""
        return sum(file.nbytes for file in self.files)


def with_weights(disclosure: Disclosure, weights: MeasuredWeights, on: date) -> Disclosure:
    """The disclosure with what was measured, as verified here.

    Another value stays beside it. A digest that was verified before and differs makes the fact conflicting: the bytes
    are not those that the disclosure spoke of.
    """
    source = Source(
        "measured", f"`freehold disclose --weights` on {len(weights.files)} files that hold tensors", "Freehold"
    )
    measured: dict[str, Value] = {
        "weights.digest": weights.digest,
        "weights.format": weights.format,
        "weights.bytes": weights.nbytes,
        "model.parameters": weights.parameters,
    }
    facts = {key: fact for key, fact in disclosure.facts.items() if not key.startswith("file.")}
    for key, value in measured.items():
        facts[key] = _with_first(facts[key], Statement(value, "verified-here", source, on))
    for number, file in enumerate(weights.files, 1):
        record = {"name": file.name, "bytes": str(file.nbytes), "sha256": file.sha256}
        statement = Statement(record, "verified-here", source, on)
        facts[f"file.{number}"] = Fact(f"file.{number}", "verified-here", (statement,))
    return replace(disclosure, facts=facts, issued=max(disclosure.issued, on))


def _with_first(fact: Fact, first: Statement) -> Fact:
    """The fact with a statement put before the others; those that said nothing, or the same from here, go."""
    kept = []
    for statement in fact.statements:
        silent = statement.value in (UNKNOWN, OPERATOR) or isinstance(statement.value, NotFound)
        same = statement.value == first.value and statement.status == first.status
        if not silent and not same:
            kept.append(statement)
    differs = any(statement.status == first.status for statement in kept)
    others = {repr(value_to_json(statement.value)) for statement in kept} - {repr(value_to_json(first.value))}
    conflicting = bool(others) and (differs or fact.status == "conflicting")
    return Fact(fact.key, "conflicting" if conflicting else first.status, (first, *kept))
