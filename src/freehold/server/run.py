"""A server process: the port, the signals, the end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import ssl
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import FrameType
from typing import Any, Literal, get_args

import uvicorn
from fastapi import FastAPI

from freehold.core.errors import ConfigError
from freehold.server.app import create_app
from freehold.server.backend import Backend
from freehold.server.operation.connections import Door, protocol_class
from freehold.server.operation.guards import MAX_HEADER_BYTES
from freehold.server.operation.keys import Keys
from freehold.server.operation.lifecycle import Lifecycle
from freehold.server.operation.limits import Limits
from freehold.server.operation.logs import log_config
from freehold.server.operation.metrics import Metrics
from freehold.server.operation.operation import Operation
from freehold.server.operation.options import LogLevel, ServerOptions
from freehold.server.operation.port import (
    BACKLOG,
    DEFAULT_HOST,
    DEFAULT_PORT,
    allow_open_files,
    require_key,
    reserve_port,
    server_url,
)
from freehold.server.operation.recorder import Recorder
from freehold.server.operation.tls import tls_context
from freehold.server.operation.wire import SealState

LOG_LEVELS = get_args(LogLevel)
DEFAULT_OPTIONS = ServerOptions()

# After the drain, streams are cancelled; so long they may take to say so to their clients.
_FAREWELL_SECONDS = 3.0

logger = logging.getLogger("freehold.server")


class Server(uvicorn.Server):
    """uvicorn's server, which says when it is ready, drains before it closes, and returns after a signal instead of
    dying of it.

    While it drains, it still listens: new work is refused with an answer, and /health/ready says why. uvicorn alone
    would close its port first, and a load balancer would see only connections refused.

    on_hangup: called at SIGHUP.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        on_ready: Callable[[], None] | None = None,
        *,
        lifecycle: Lifecycle | None = None,
        drain_seconds: float = 0.0,
        on_hangup: Callable[[], None] | None = None,
    ) -> None:
        super().__init__(config)
        self._on_ready = on_ready
        self._on_hangup = on_hangup
        self._lifecycle = lifecycle if lifecycle is not None else Lifecycle()
        self._drain_seconds = drain_seconds

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started and self._on_ready is not None:
            self._on_ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await self._drain()
        await super().shutdown(sockets)

    async def _drain(self) -> None:
        """Let running requests end; give up those that have not in time, so that their clients are told."""
        life = self._lifecycle
        life.drain()
        if not await self._idle_within(self._drain_seconds):
            count = life.cancel_streams()
            logger.warning("%d running streams are cancelled%s", count, " at once" if self.force_exit else "")
            await self._idle_within(_FAREWELL_SECONDS, whatever_signals=True)

    async def _idle_within(self, seconds: float, *, whatever_signals: bool = False) -> bool:
        end = time.monotonic() + seconds
        while self._lifecycle.num_requests:
            if time.monotonic() >= end or (self.force_exit and not whatever_signals):
                return False
            await asyncio.sleep(0.02)
        return True

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        # The base class raises the signal once more at the end; then nobody could close the engine.
        handlers: dict[signal.Signals, Any] = {
            signal.SIGINT: self.handle_exit,
            signal.SIGTERM: self.handle_exit,
            # Not to die when a terminal closes is what servers do; this one reads its keys again.
            signal.SIGHUP: self._handle_hangup,
        }
        before = {kind: signal.signal(kind, handler) for kind, handler in handlers.items()}
        try:
            yield
        finally:
            for kind, handler in before.items():
                signal.signal(kind, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        # A second signal of either kind ends the wait for running requests.
        self.force_exit = self.should_exit
        self.should_exit = True
        self._lifecycle.drain()

    def _handle_hangup(self, sig: int, frame: FrameType | None) -> None:
        if self._on_hangup is not None:
            self._on_hangup()


def server_config(
    app: FastAPI,
    *,
    log_level: str = "info",
    drain_seconds: float = 0.0,
    door: Door | None = None,
    options: ServerOptions = DEFAULT_OPTIONS,
    lifespan: Literal["on", "off"] = "off",
) -> uvicorn.Config:
    """How uvicorn is set up. Raises ConfigError for an unknown log level.

    drain_seconds: how long uvicorn itself waits at the end; `Server` has drained before. door: None: any number of
        connections. options: the rest. lifespan: whether the application is told of the server's beginning and end.
    """
    if log_level not in LOG_LEVELS:
        raise ConfigError(f"log_level is {log_level!r}; it must be one of {', '.join(LOG_LEVELS)}")
    return uvicorn.Config(
        app,
        log_config=log_config(options.log_format, log_level, access_log=options.access_log),
        http="h11" if door is None else protocol_class(door),
        ws="none",
        lifespan=lifespan,
        log_level=log_level,
        access_log=False,
        backlog=BACKLOG,
        # Without a proxy, headers that any client can set do not change whom the log names.
        proxy_headers=bool(options.behind_proxy),
        forwarded_allow_ips=list(options.behind_proxy),
        root_path=options.root_path or "",
        server_header=False,
        h11_max_incomplete_event_size=MAX_HEADER_BYTES,
        timeout_keep_alive=options.idle_seconds,  # type: ignore[arg-type]  # any number of seconds will do
        timeout_graceful_shutdown=drain_seconds,  # type: ignore[arg-type]
    )


def serve(
    backend: Backend,
    *,
    host: str = DEFAULT_HOST,
    port: int = DEFAULT_PORT,
    listener: socket.socket | None = None,
    api_key: str | None = None,
    keys: Keys | None = None,
    limits: Limits | None = None,
    recorder: Recorder | None = None,
    tls: ssl.SSLContext | None = None,
    aliases: Sequence[str] = (),
    options: ServerOptions = DEFAULT_OPTIONS,
    on_ready: Callable[[str], None] | None = None,
    seal: Callable[[], Mapping[str, Any]] | None = None,
) -> bool:
    """Serve until SIGINT or SIGTERM; call it on the main thread. Closing the backend is up to the caller.

    listener: from `reserve_port`; `host` and `port` are then not used. It is closed at the end.
    api_key: one key with every scope. keys: the same and others, instead.
    limits: where used tokens are counted. None: they are forgotten at the end.
    recorder: is told of each request before its answer is whole. None: nobody is.
    tls: from `tls_context`, where the caller has checked the files before. None: made from `options`, if it has any.
    on_ready: called with the URL when requests are answered.
    seal: how this process is sealed, with the members of SealState; None: it is not.

    Returns whether running requests were given their time; False: a second signal cut them off.

    Raises ConfigError as create_app, require_key, reserve_port, tls_context and allow_open_files do.
    """
    if keys is not None and api_key is not None:
        raise ConfigError("api_key and keys exclude each other; give the key to the keys")
    keys = Keys(api_key=api_key) if keys is None else keys
    lifecycle = Lifecycle()
    if tls is None and options.tls_cert is not None and options.tls_key is not None:
        tls = tls_context(options.tls_cert, options.tls_key)
    metrics = Metrics(backend.stats, lambda: door.num_open)
    door = Door(
        max_connections=options.max_connections, header_seconds=options.header_seconds, metrics=metrics, context=tls
    )
    sealed = None if seal is None else lambda: SealState.model_validate(seal())
    limits = Limits() if limits is None else limits
    operation = Operation(
        metrics, keys, limits, lifecycle, seal=sealed, recorder=recorder, log_miss_text=options.log_miss_text
    )
    app = create_app(
        backend,
        aliases=aliases,
        max_body_bytes=options.max_body_bytes,
        keepalive_seconds=options.keepalive_seconds,
        body_seconds=options.body_seconds,
        cors_origins=options.cors_origin,
        operation=operation,
    )
    config = server_config(app, log_level=options.log_level, drain_seconds=1, door=door, options=options)
    allow_open_files(options.max_connections)
    if listener is None:
        require_key(host, None, keys)
        listener = reserve_port(host, port)
    with listener:
        # The socket's own address counts, whoever bound it.
        require_key(listener.getsockname()[0], None, keys)
        url = server_url(listener, "http" if tls is None else "https")
        server = Server(
            config,
            lambda: on_ready(url) if on_ready else None,
            lifecycle=lifecycle,
            drain_seconds=options.drain_seconds,
            on_hangup=keys.reload,
        )
        server.run(sockets=[listener])
        return not server.force_exit
