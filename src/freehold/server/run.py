"""A server process: the port, the signals, the end."""

from __future__ import annotations

import contextlib
import copy
import errno
import ipaddress
import signal
import socket
from collections.abc import Callable, Iterator, Sequence
from types import FrameType

import uvicorn
from fastapi import FastAPI

from freehold.core.errors import ConfigError
from freehold.server.app import DEFAULT_KEEPALIVE_SECONDS, DEFAULT_MAX_BODY_BYTES, create_app
from freehold.server.backend import Backend

DEFAULT_HOST = "127.0.0.1"
DEFAULT_PORT = 8000
DEFAULT_DRAIN_SECONDS = 10
LOG_LEVELS = ("critical", "error", "warning", "info", "debug")


def require_key(host: str, api_key: str | None) -> None:
    """Raises ConfigError when `host` can be reached from other machines and there is no API key."""
    if api_key is None and not all(ipaddress.ip_address(address).is_loopback for address in _addresses(host)):
        raise ConfigError(
            f"the host is {host!r}, which other machines can reach, and there is no API key; "
            "give one (--api-key), or serve this machine only (--host 127.0.0.1)"
        )


def reserve_port(host: str = DEFAULT_HOST, port: int = DEFAULT_PORT) -> socket.socket:
    """Bind and listen, so that a taken port is known before a model is loaded. Early clients wait.

    port: 0 takes any free one. The caller closes the socket, or hands it to `serve`, which does.

    Raises ConfigError when the host is unknown or the port is taken, forbidden or no port at all.
    """
    if not 0 <= port <= 65535:
        raise ConfigError(f"the port is {port}; it must be between 0 and 65535")
    address = _addresses(host)[0]
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    # Naming the protocol lets asyncio switch Nagle's delay off, which costs kept connections 40 ms an answer.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        # A port whose last connections are still closing is free to use. That of a living server is not.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((address, port))
        # A bound port can still be lost to another process; a listening one cannot.
        listener.listen()
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            reason = f"port {port} of {host} is in use; stop its program, or choose another with --port"
        elif error.errno == errno.EACCES:
            reason = f"port {port} needs rights that this user lacks; choose one above 1023 with --port"
        elif error.errno == errno.EADDRNOTAVAIL:
            reason = f"the host {host!r} is no address of this machine; choose another with --host"
        else:
            reason = f"cannot listen on {host!r}, port {port}: {error.strerror}"
        raise ConfigError(reason) from error
    return listener


def server_url(listener: socket.socket) -> str:
    """The URL under which `listener` is reached from this machine."""
    address, port = listener.getsockname()[:2]
    parsed = ipaddress.ip_address(address)
    if parsed.is_unspecified:
        address = "127.0.0.1" if parsed.version == 4 else "::1"
    return f"http://[{address}]:{port}" if ":" in address else f"http://{address}:{port}"


class Server(uvicorn.Server):
    """uvicorn's server, which says when it is ready, and returns after a signal instead of dying of it."""

    def __init__(self, config: uvicorn.Config, on_ready: Callable[[], None] | None = None) -> None:
        super().__init__(config)
        self._on_ready = on_ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started and self._on_ready is not None:
            self._on_ready()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        # The base class raises the signal once more at the end; then nobody could close the engine.
        kinds = (signal.SIGINT, signal.SIGTERM)
        before = {kind: signal.signal(kind, self.handle_exit) for kind in kinds}
        try:
            yield
        finally:
            for kind, handler in before.items():
                signal.signal(kind, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        # A second signal of either kind ends the wait for running requests.
        self.force_exit = self.should_exit
        self.should_exit = True


def server_config(
    app: FastAPI, *, log_level: str = "info", drain_seconds: int = DEFAULT_DRAIN_SECONDS
) -> uvicorn.Config:
    """How uvicorn is set up. Raises ConfigError for an unknown log level."""
    if log_level not in LOG_LEVELS:
        raise ConfigError(f"log_level is {log_level!r}; it must be one of {', '.join(LOG_LEVELS)}")
    log_config = copy.deepcopy(uvicorn.config.LOGGING_CONFIG)
    # Standard output belongs to the program that serves.
    log_config["handlers"]["access"]["stream"] = "ext://sys.stderr"
    return uvicorn.Config(
        app,
        log_config=log_config,
        http="h11",
        ws="none",
        lifespan="off",
        log_level=log_level,
        # Headers that any client can set do not change whom the log names.
        proxy_headers=False,
        server_header=False,
        timeout_graceful_shutdown=drain_seconds,
    )


def serve(
    backend: Backend,
    *,
    host: str = DEFAULT_HOST,
    port: int = DEFAULT_PORT,
    listener: socket.socket | None = None,
    api_key: str | None = None,
    aliases: Sequence[str] = (),
    max_body_bytes: int = DEFAULT_MAX_BODY_BYTES,
    keepalive_seconds: float = DEFAULT_KEEPALIVE_SECONDS,
    drain_seconds: int = DEFAULT_DRAIN_SECONDS,
    log_level: str = "info",
    on_ready: Callable[[str], None] | None = None,
) -> None:
    """Serve until SIGINT or SIGTERM; call it on the main thread. Closing the backend is up to the caller.

    listener: from `reserve_port`; `host` and `port` are then not used. It is closed at the end.
    drain_seconds: how long running requests may go on after the signal; then they are cancelled. A second
        signal cancels them at once.
    on_ready: called with the URL when requests are answered.

    Raises ConfigError as create_app, require_key and reserve_port do.
    """
    app = create_app(
        backend,
        api_key=api_key,
        aliases=aliases,
        max_body_bytes=max_body_bytes,
        keepalive_seconds=keepalive_seconds,
    )
    config = server_config(app, log_level=log_level, drain_seconds=drain_seconds)
    if listener is None:
        require_key(host, api_key)
        listener = reserve_port(host, port)
    with listener:
        # The socket's own address counts, whoever bound it.
        require_key(listener.getsockname()[0], api_key)
        url = server_url(listener)
        Server(config, lambda: on_ready(url) if on_ready else None).run(sockets=[listener])


def _addresses(host: str) -> list[str]:
    """The addresses that `host` stands for, IPv4 first."""
    try:
        found = socket.getaddrinfo(host or "0.0.0.0", None, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        raise ConfigError(f"the host {host!r} is unknown; give one of this machine with --host") from error
    addresses = [str(info[4][0]).partition("%")[0] for info in found]
    return sorted(addresses, key=lambda address: ":" in address)
