"""A gateway's process: the port, the signals, the end."""

from __future__ import annotations

import socket
from collections.abc import Callable

from freehold.governance.policy.record import OnDecision, Settle
from freehold.server.gateway.app import create_gateway_app
from freehold.server.gateway.gateway import Gateway, Reload, log_record, reloaded
from freehold.server.operation.connections import Door
from freehold.server.operation.keys import Keys
from freehold.server.operation.limits import Limits
from freehold.server.operation.metrics import Metrics
from freehold.server.operation.operation import Operation
from freehold.server.operation.options import ServerOptions
from freehold.server.operation.port import allow_open_files, require_key, server_url
from freehold.server.operation.recorder import Recorder
from freehold.server.operation.tls import tls_context
from freehold.server.run import Server, server_config


def serve_gateway(
    load: Reload,
    *,
    listener: socket.socket,
    keys: Keys,
    limits: Limits,
    options: ServerOptions,
    on_decision: OnDecision = log_record,
    settle: Settle | None = None,
    recorder: Recorder | None = None,
    on_ready: Callable[[str], None] | None = None,
) -> bool:
    """Serve until SIGINT or SIGTERM; call it on the main thread. SIGHUP reads keys, policy and endpoints again.

    load: gives what decides; it is called before anything is answered, and once more at each SIGHUP.
    on_decision: takes the decisions. settle: see Gateway.
    recorder: is told of each request before its answer is whole; None: nobody is.
    listener: from `server.run.reserve_port`; it is closed at the end. The others: see `server.run.serve`.

    Returns whether running requests were given their time. Raises what `load` raises, and ConfigError as
    require_key, tls_context and allow_open_files do.
    """
    metrics = Metrics(open_connections=lambda: door.num_open)
    operation = Operation(metrics, keys, limits, recorder=recorder)
    gateway = Gateway(load(), operation, on_decision=on_decision, settle=settle)
    tls = None
    if options.tls_cert is not None and options.tls_key is not None:
        tls = tls_context(options.tls_cert, options.tls_key)
    door = Door(
        max_connections=options.max_connections, header_seconds=options.header_seconds, metrics=metrics, context=tls
    )
    app = create_gateway_app(
        gateway,
        operation,
        max_body_bytes=options.max_body_bytes,
        body_seconds=options.body_seconds,
        cors_origins=options.cors_origin,
    )
    config = server_config(app, log_level=options.log_level, drain_seconds=1, door=door, options=options, lifespan="on")
    allow_open_files(options.max_connections)

    def hang_up() -> None:
        keys.reload()
        reloaded(gateway, load)

    with listener:
        require_key(listener.getsockname()[0], None, keys)
        url = server_url(listener, "http" if tls is None else "https")
        server = Server(
            config,
            lambda: on_ready(url) if on_ready else None,
            lifecycle=operation.lifecycle,
            drain_seconds=options.drain_seconds,
            on_hangup=hang_up,
        )
        server.run(sockets=[listener])
        return not server.force_exit
