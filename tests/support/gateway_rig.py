"""A gateway on a socket, with endpoints of ours behind it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

from freehold.governance.policy.classify import Classifier
from freehold.governance.policy.detector import Detector
from freehold.governance.policy.record import DecisionRecord
from freehold.governance.policy.rules import Rules
from freehold.governance.policy.settings import read_settings
from freehold.server.gateway.app import create_gateway_app
from freehold.server.gateway.endpoints import read_endpoints
from freehold.server.gateway.gateway import Gateway, Setup
from freehold.server.operation.keys import Keys
from freehold.server.operation.metrics import Metrics
from freehold.server.operation.operation import Operation
from support.served_app import served

TODAY = date(2026, 11, 29)


@dataclass
class Rig:
    """A running gateway. records: all that it handed over."""

    url: str
    gateway: Gateway
    operation: Operation
    records: list[DecisionRecord] = field(default_factory=list)

    def ended(self) -> list[DecisionRecord]:
        """The last record of each request, in the order of their ends."""
        return [record for record in self.records if record.outcome != "decided"]


def setup_of(
    policy: str,
    endpoints: Path,
    *,
    classes: str = '[classes]\nbase = "public"\n',
    detectors: Sequence[Detector] = (),
    environ: Mapping[str, str] | None = None,
) -> Setup:
    """What decides. detectors: beside those that the settings ask for."""
    settings = read_settings(classes)
    own = Classifier(settings)
    classifier = Classifier(settings, detectors=(*own._detectors, *detectors)) if detectors else own
    return Setup(Rules(policy), classifier, read_endpoints(endpoints, environ or {}, TODAY))


@contextlib.contextmanager
def running_gateway(
    setup: Setup, *, keys: Keys | None = None, on_decision: Any = None, recorder: Any = None, settle: Any = None
) -> Iterator[Rig]:
    """A gateway with that setup. on_decision: called before a record is kept."""
    operation = Operation(Metrics(), keys or Keys(), recorder=recorder)
    records: list[DecisionRecord] = []

    def take(record: DecisionRecord) -> None:
        if on_decision is not None:
            on_decision(record)
        records.append(record)

    gateway = Gateway(setup, operation, on_decision=take, settle=settle)
    with served(create_gateway_app(gateway, operation)) as url:
        yield Rig(url, gateway, operation, records)


def endpoints_toml(folder: Path, *entries: Mapping[str, Any]) -> Path:
    """A file of endpoints. Values are texts, numbers, lists of texts, dates, or tables of these."""
    path = folder / "endpoints.toml"
    lines = []
    for entry in entries:
        lines.append("[[endpoint]]")
        lines += [f"{name} = {_toml(value)}" for name, value in entry.items()]
    path.write_text("\n".join(lines))
    return path


def _toml(value: Any) -> str:
    if isinstance(value, date):
        return value.isoformat()
    if isinstance(value, dict):
        return "{ " + ", ".join(f'"{name}" = {_toml(member)}' for name, member in value.items()) + " }"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return f'"{value}"' if isinstance(value, str) else str(value)
