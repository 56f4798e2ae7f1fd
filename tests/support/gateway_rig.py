"""A gateway on a socket, with endpoints of ours behind it."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

from fastapi import FastAPI

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
from freehold.server.run import Server, reserve_port, server_config, server_url

TODAY = date(2026, 11, 29)


@contextlib.contextmanager
def served(app: FastAPI) -> Iterator[str]:
    """The application on a socket, in a thread, with its lifespan."""
    listener = reserve_port("127.0.0.1", 0)
    ready = threading.Event()
    server = Server(server_config(app, log_level="critical", drain_seconds=1, lifespan="on"), ready.set)
    server.capture_signals = contextlib.nullcontext  # type: ignore[method-assign]  # they belong to the main thread
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        assert ready.wait(10), "the server did not start"
        yield server_url(listener)
    finally:
        server.should_exit = True
        thread.join(10)
        assert not thread.is_alive(), "the server did not stop"
        listener.close()


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
