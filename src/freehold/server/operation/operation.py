"""The parts of a running server that are about operating it: keys, limits, metrics, its life, its connections."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from freehold.server.backend import Backend
from freehold.server.operation.keys import Keys
from freehold.server.operation.lifecycle import Lifecycle
from freehold.server.operation.limits import Limits
from freehold.server.operation.metrics import Metrics
from freehold.server.operation.recorder import Recorder
from freehold.server.operation.wire import SealState


@dataclass(frozen=True, slots=True)
class Operation:
    """One of each, shared by the guards, the routes and the process around them.

    recorder: is told of each request's end; None: nobody keeps records. seal: how the process is sealed; None: it is
    not. log_miss_text: see `ServerOptions`.
    """

    metrics: Metrics
    keys: Keys = field(default_factory=Keys)
    limits: Limits = field(default_factory=Limits)
    lifecycle: Lifecycle = field(default_factory=Lifecycle)
    seal: Callable[[], SealState] | None = None
    recorder: Recorder | None = None
    log_miss_text: bool = False

    @classmethod
    def of(cls, backend: Backend, *, keys: Keys | None = None, limits: Limits | None = None) -> Operation:
        """For one backend. keys: None: no key is asked for. limits: None: counted, and forgotten at the end."""
        return cls(Metrics(backend.stats), keys or Keys(), limits or Limits())
