"""Connections as a scarce good: how many there are, how long each may take to say what it wants.

uvicorn limits running requests, but not clients that open a connection and say nothing, or one byte a minute. Here
such a connection ends after `header_seconds`; and when all places are taken, the one that has been without a request
longest makes room. A client that sends its request at once is therefore served while thousands of others dawdle.
"""

from __future__ import annotations

import asyncio
import http
import json
import ssl
import sys
from typing import Any, Protocol

import h11
from uvicorn.config import Config
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from freehold.server.operation.guards import MAX_HEADER_BYTES
from freehold.server.operation.metrics import Metrics

_STALLED_SECONDS = 120.0


class Connection(Protocol):
    """A connection that can be closed without a word."""

    def evict(self) -> None:
        """Close at once."""
        ...


class Door:
    """All connections of a server. Lives on the event loop.

    header_seconds: see ServerOptions. context: None: no TLS.
    """

    def __init__(
        self, *, max_connections: int, header_seconds: float, metrics: Metrics, context: ssl.SSLContext | None = None
    ) -> None:
        self.header_seconds = header_seconds
        self.context = context
        self._max = max_connections
        self._metrics = metrics
        # Both in the order in which they came to be so: the first has waited longest.
        self._waiting: dict[Connection, None] = {}
        self._busy: dict[Connection, None] = {}

    @property
    def num_open(self) -> int:
        """Connections with and without a request."""
        return len(self._waiting) + len(self._busy)

    def admit(self, connection: Connection) -> bool:
        """Give a new connection a place, if need be that of the one that has waited longest; False: all are busy."""
        if self.num_open >= self._max:
            if not self._waiting:
                self._metrics.observe_refused_connection("all_busy")
                return False
            longest = next(iter(self._waiting))
            self.leave(longest)
            longest.evict()
            self._metrics.observe_refused_connection("made_room")
        self._waiting[connection] = None
        return True

    def wait(self, connection: Connection) -> None:
        """The connection has no request in hand; where it has had none for a while, it keeps its rank."""
        if self._busy.pop(connection, self) is None:
            self._waiting[connection] = None

    def work(self, connection: Connection) -> None:
        """The connection's request is complete but for its body."""
        if self._waiting.pop(connection, self) is None:
            self._busy[connection] = None

    def leave(self, connection: Connection) -> None:
        """The connection is closed; harmless when it has left before."""
        self._waiting.pop(connection, None)
        self._busy.pop(connection, None)

    def late(self) -> None:
        """A client took longer than `header_seconds`."""
        self._metrics.observe_refused_connection("too_slow")


class GuardedProtocol(H11Protocol):
    """uvicorn's HTTP/1.1, inside a Door."""

    door: Door

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._header_timer: asyncio.TimerHandle | None = None
        self._stall_timer: asyncio.TimerHandle | None = None
        self._made = False
        self._admitted = False
        self._early = b""
        self._heard = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take a place, or answer 503."""
        super().connection_made(transport)
        self._made = True
        # After a TLS handshake the place is taken already.
        if not self._admitted and not self.door.admit(self):
            self._answer(503, "all connections of this server are busy; try again", "too_many_connections")
            return
        self._admitted = True
        self._arm()
        if self._early:
            early, self._early = self._early, b""
            self.data_received(early)

    def take_place_of(self, other: Connection) -> None:
        """The same connection under another name, after its handshake."""
        self.door.leave(other)
        self._admitted = self.door.admit(self)

    def data_received(self, data: bytes) -> None:
        """Read on; a request must become complete in time."""
        if not self._made:
            # With TLS, the first bytes may come along with the end of the handshake.
            self._early += data
            return
        if not self._admitted:
            return
        self._heard = True
        super().data_received(data)
        self._settle()

    def on_response_complete(self) -> None:
        """Wait for the next request."""
        super().on_response_complete()
        self._heard = False
        self._settle()
        # An idle connection is uvicorn's affair until it says something.
        if self.timeout_keep_alive_task is not None:
            self._disarm()

    def connection_lost(self, exc: Exception | None) -> None:
        """Give the place back."""
        self.door.leave(self)
        self._disarm()
        if self._stall_timer is not None:
            self._stall_timer.cancel()
        if self._made:
            super().connection_lost(exc)

    def pause_writing(self) -> None:
        """The client does not read; it must go on in time, since a stream is held up for it."""
        super().pause_writing()
        self._stall_timer = self.loop.call_later(_STALLED_SECONDS, self.evict)

    def resume_writing(self) -> None:
        """The client reads again."""
        super().resume_writing()
        if self._stall_timer is not None:
            self._stall_timer.cancel()
            self._stall_timer = None

    def evict(self) -> None:
        """Close at once."""
        self.transport.abort()

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP, or too much of it. Called while the parser's error is handled."""
        error = sys.exc_info()[1]
        status = error.error_status_hint if isinstance(error, h11.RemoteProtocolError) else 400
        if status == 431:
            msg = f"the request's line and headers are longer than {MAX_HEADER_BYTES} bytes, the limit of this server"
        self._answer(status, msg, "invalid_http_request")

    def _settle(self) -> None:
        if self.cycle is not None and not self.cycle.response_complete:
            self._disarm()
            self.door.work(self)
        else:
            self.door.wait(self)
            self._arm()

    def _arm(self) -> None:
        if self._header_timer is None and not self.transport.is_closing():
            self._header_timer = self.loop.call_later(self.door.header_seconds, self._too_late)

    def _disarm(self) -> None:
        if self._header_timer is not None:
            self._header_timer.cancel()
            self._header_timer = None

    def _too_late(self) -> None:
        self._header_timer = None
        self.door.late()
        if self._heard:
            text = f"the request's headers took longer than {self.door.header_seconds:g} seconds"
            self._answer(408, text, "request_timeout")
        else:
            self.transport.abort()

    def _answer(self, status: int, message: str, code: str) -> None:
        """One answer without a request behind it, and the end of the connection."""
        # In the middle of an answer, nothing can be said.
        if self.cycle is None or self.cycle.response_complete:
            kind = "invalid_request_error" if status < 500 else "server_error"
            body = json.dumps({"error": {"message": message, "type": kind, "param": None, "code": code}}).encode()
            head = (
                f"HTTP/1.1 {status} {http.HTTPStatus(status).phrase}\r\ncontent-type: application/json\r\n"
                f"content-length: {len(body)}\r\n{'retry-after: 1' + chr(13) + chr(10) if status == 503 else ''}"
                "connection: close\r\n\r\n"
            )
            self.transport.write(head.encode() + body)
        self.transport.close()


class TlsProtocol(asyncio.Protocol):
    """A connection before its TLS handshake, which takes a place too: otherwise handshakes that never end would use
    up the process's files unseen. Afterwards a GuardedProtocol goes on."""

    door: Door
    inner: type[GuardedProtocol]

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        self._loop = _loop or asyncio.get_event_loop()
        self._http = self.inner(config, server_state, app_state, _loop)
        self._transport: asyncio.Transport | None = None
        # Held, since a loop keeps only weak references to its tasks.
        self._task: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin the handshake."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        if not self.door.admit(self):
            transport.abort()
            return
        # The handshake's bytes are for the TLS protocol.
        transport.pause_reading()
        self._task = self._loop.create_task(self._shake_hands(transport))

    def connection_lost(self, exc: Exception | None) -> None:
        """Give the place back."""
        self.door.leave(self)

    def evict(self) -> None:
        """Close at once."""
        assert self._transport is not None
        self._transport.abort()

    async def _shake_hands(self, transport: asyncio.Transport) -> None:
        assert self.door.context is not None
        try:
            secured = await self._loop.start_tls(
                transport,
                self._http,
                self.door.context,
                server_side=True,
                ssl_handshake_timeout=self.door.header_seconds,
            )
        except (OSError, asyncio.CancelledError):
            # Not TLS, a client that trusts nobody, or one that took too long: the transport is closed.
            self.door.leave(self)
            transport.abort()
            return
        if secured is None or secured.is_closing():
            self.door.leave(self)
            return
        self._http.take_place_of(self)
        self._http.connection_made(secured)


def protocol_class(door: Door) -> type[asyncio.Protocol]:
    """What uvicorn makes for each connection of `door`."""
    http_class = type("DoorProtocol", (GuardedProtocol,), {"door": door})
    if door.context is None:
        return http_class
    return type("DoorTlsProtocol", (TlsProtocol,), {"door": door, "inner": http_class})
