"""What every HTTP request passes on its way in, outermost first.

    FailureGuard   gives it an id; answers 500 when anything below fails, and hides why
    HostGuard      only when there is no key: refuses names that do not mean this machine
    KeyGuard       only when there is a key: refuses requests without it
    BodyGuard      reads the body, up to a limit, and requires JSON

They are plain ASGI callables, so that a disconnect reaches the routes.
"""

from __future__ import annotations

import hmac
import ipaddress
import uuid

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from freehold.server.errors import (
    body_response,
    describe_exception,
    error_response,
    internal_error_body,
    log_failure,
)

REQUEST_ID_HEADER = "x-request-id"

_OPEN_PATHS = frozenset({"/health"})
# Read and thrown away before a 413: many clients look at the answer only once they have sent everything.
_DISCARD_FACTOR = 4


class FailureGuard:
    """Turns every exception of `app` into an answer 500 without its text; nothing reaches the HTTP server."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        http_request_id = uuid.uuid4().hex
        scope.setdefault("state", {})["http_request_id"] = http_request_id
        started = False

        async def send_with_id(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                MutableHeaders(scope=message)[REQUEST_ID_HEADER] = http_request_id
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        except Exception as error:
            log_failure(http_request_id, describe_exception(error))
            # After the start nothing can be said any more; the HTTP server closes the unfinished answer.
            if not started:
                await body_response(500, internal_error_body(http_request_id))(scope, receive, send_with_id)


class HostGuard:
    """Without a key, only the machine itself may ask. A web page in its browser could reach a loopback port
    under a name of its own (DNS rebinding), so the Host header must be a loopback name or address."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not _is_loopback_name(Headers(scope=scope).get("host", "")):
            message = (
                "the Host header does not name this machine; a server without an API key answers only "
                "requests to localhost, 127.0.0.1 or [::1]. Start it with an API key to serve other names"
            )
            await error_response(403, message, code="host_not_allowed")(scope, receive, send)
            return
        await self._app(scope, receive, send)


def _is_loopback_name(host: str) -> bool:
    name = host.rpartition(":")[0] if host.rpartition(":")[2].isdigit() else host
    name = name.removeprefix("[").removesuffix("]").rstrip(".").lower()
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


class KeyGuard:
    """Requires `Authorization: Bearer <key>` everywhere but on /health.

    Sets `scope["state"]["has_key"]`, so that /health can tell more to those who have it.
    """

    def __init__(self, app: ASGIApp, api_key: str) -> None:
        self._app = app
        self._key = api_key.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        has_key = self._has_key(scope)
        scope.setdefault("state", {})["has_key"] = has_key
        if has_key or scope["path"] in _OPEN_PATHS:
            await self._app(scope, receive, send)
            return
        message = "missing or wrong API key; send it as 'Authorization: Bearer <key>'"
        headers = {"WWW-Authenticate": "Bearer"}
        await error_response(401, message, code="invalid_api_key", headers=headers)(scope, receive, send)

    def _has_key(self, scope: Scope) -> bool:
        given = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
        scheme, _, key = given.partition(b" ")
        # Compared in constant time: the time an answer takes must not tell how much of a key was right.
        return hmac.compare_digest(key.strip(), self._key) and scheme.lower() == b"bearer"


class BodyGuard:
    """Reads the whole body of a POST, and hands it on in one piece; later messages (the disconnect) pass.

    Answers 413 above `max_body_bytes`, and 415 unless the body is declared to be JSON: a web page can send
    any other type to a loopback port without asking the server first.
    """

    def __init__(self, app: ASGIApp, max_body_bytes: int) -> None:
        self._app = app
        self._limit = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] in ("GET", "HEAD"):
            await self._app(scope, receive, send)
            return
        body, total = bytearray(), 0
        more = True
        while more and total <= self._limit * _DISCARD_FACTOR:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            chunk = message.get("body", b"")
            total += len(chunk)
            more = message.get("more_body", False)
            if total <= self._limit:
                body += chunk
        if total > self._limit:
            text = f"the request body is larger than {self._limit} bytes, the limit of this server"
            await error_response(413, text, code="body_too_large")(scope, receive, send)
            return
        content_type = Headers(scope=scope).get("content-type", "").partition(";")[0].strip().lower()
        if total and content_type != "application/json":
            text = f"the Content-Type is {content_type[:80]!r}; it must be 'application/json'"
            await error_response(415, text, code="unsupported_media_type")(scope, receive, send)
            return
        handed_on = False

        async def receive_whole() -> Message:
            nonlocal handed_on
            if handed_on:
                return await receive()
            handed_on = True
            return {"type": "http.request", "body": bytes(body), "more_body": False}

        await self._app(scope, receive_whole, send)
