"""What every HTTP request passes on its way in, outermost first.

    FailureGuard   gives it an id; answers 500 when anything below fails, and hides why
    WatchGuard     sees it begin and end: metrics, the access log, tokens charged to its key
    RecordGuard    has it recorded before its answer is whole, where records are kept (record_guard.py)
    (CORS)         only when origins are allowed: the framework's own, which answers preflights without a key
    SizeGuard      refuses long request lines and many headers
    AccessGuard    with keys: requires one of the right scope; without: the Host must be a name of this machine
    DrainGuard     refuses new work when the server is about to end
    LimitGuard     refuses what is beyond the key's pace or budget
    BodyGuard      reads the body, up to a limit and in time, and requires JSON

They are plain ASGI callables, so that a disconnect reaches the routes. Each refuses through a function that knows
the form of error of the path's API.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import ipaddress
import uuid
from functools import partial
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from freehold.core.events import Miss
from freehold.server.errors import describe_exception, internal_error_body, log_failure
from freehold.server.operation.keys import KeyExpiredError, Keys
from freehold.server.operation.logs import log_request
from freehold.server.operation.observation import CURRENT, Observation
from freehold.server.operation.operation import Operation
from freehold.server.operation.principal import ADMIN, ANYONE, INFERENCE, METRICS, Principal, principal_of
from freehold.server.refusals import Refuse, refuse, route_path

REQUEST_ID_HEADER = "x-request-id"

OPEN_PATHS = frozenset({"/health", "/health/ready"})
"""Answered without a key: whether the server lives and takes requests, and nothing else."""

MAX_TARGET_BYTES = 8 * 1024
MAX_HEADERS = 100
MAX_HEADER_BYTES = 32 * 1024

# Read and thrown away before a 413: many clients look at the answer only once they have sent everything.
_DISCARD_FACTOR = 4
# Bodies of all requests together, while they are read; afterwards the engine's queue has its own limits.
_BODIES_AT_ONCE = 8
_NOTHING_WRONG = (0, "", "")


def opening_scopes(path: str) -> tuple[str, ...]:
    """The scopes of which a key must have one for a path; "inference" opens all that is not named here."""
    if path == "/metrics":
        return (METRICS,)
    if path == "/admin" or path.startswith("/admin/"):
        return (ADMIN,)
    if path == "/v1/requests" or path.startswith("/v1/requests/"):
        # The routes themselves show the requests of others only to "admin".
        return (INFERENCE, ADMIN)
    return (INFERENCE,)


def is_page(scope: Scope) -> bool:
    """Whether a browser asks for a file of the web page, which it can only do with a key as the password of "Basic"."""
    path = route_path(scope)
    return scope["method"] in ("GET", "HEAD") and (path == "/" or path.startswith("/page/"))


def is_work(scope: Scope) -> bool:
    """Whether a request may keep the engine busy; looking at something, or ending it, does not."""
    return scope["type"] == "http" and scope["method"] in ("POST", "PUT", "PATCH")


class FailureGuard:
    """Turns every exception of `app` into an answer 500 without its text; nothing reaches the HTTP server."""

    def __init__(self, app: ASGIApp, refuse: Refuse = refuse) -> None:
        self._app = app
        self._refuse = refuse

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
                text = internal_error_body(http_request_id).error.message
                await self._refuse(scope, 500, text, "internal_error", None)(scope, receive, send_with_id)


class WatchGuard:
    """Begins and ends the request's Observation, which streams find in their context."""

    def __init__(self, app: ASGIApp, operation: Operation) -> None:
        self._app = app
        self._operation = operation

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        metrics, lifecycle = self._operation.metrics, self._operation.lifecycle
        observation = Observation(metrics)
        scope["state"]["observation"] = observation
        # What is not answered was given up by its client, or failed.
        status = 499

        async def send_seen(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        token = CURRENT.set(observation)
        metrics.in_progress.inc()
        lifecycle.num_requests += 1
        try:
            await self._app(scope, receive, send_seen)
        except Exception:
            status = 500
            raise
        finally:
            CURRENT.reset(token)
            metrics.in_progress.dec()
            lifecycle.num_requests -= 1
            self._finish(scope, observation, status)

    def _finish(self, scope: Scope, observation: Observation, status: int) -> None:
        observation.finish()
        route = getattr(scope.get("route"), "path", "(none)")
        self._operation.metrics.observe_request(route, _known_method(scope["method"]), status)
        principal = principal_of(scope)
        generated = observation.finish_reason is not None
        if generated:
            self._operation.metrics.observe_generation_seconds(observation.seconds)
            prompt_tokens, completion_tokens = observation.prompt_tokens, observation.completion_tokens
            self._operation.limits.charge(principal or ANYONE, prompt_tokens, completion_tokens)
        log_request(
            {
                "request_id": scope["state"]["http_request_id"],
                "client": scope["client"][0] if scope.get("client") else None,
                "key": principal.name if principal else None,
                "method": _known_method(scope["method"]),
                "route": route,
                "status": status,
                "seconds": round(observation.seconds, 6),
                "first_token_seconds": _rounded(observation.first_token_seconds),
                "prompt_tokens": observation.prompt_tokens if generated else None,
                "cached_tokens": observation.cached_tokens if generated else None,
                "completion_tokens": observation.completion_tokens if generated else None,
                "finish_reason": observation.finish_reason,
                **_miss_fields(observation.miss, with_text=self._operation.log_miss_text),
            }
        )


def _miss_fields(miss: Miss | None, *, with_text: bool) -> dict[str, Any]:
    if miss is None:
        return {}
    place = {"miss_token": miss.position, "miss_block": miss.block}
    return {**place, "miss_expected": miss.expected_text, "miss_got": miss.got_text} if with_text else place


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 6)


def _known_method(method: str) -> str:
    return method if method in ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS") else "(other)"


class SizeGuard:
    """Limits what the HTTP parser has let through: 414 for long targets, 431 for many headers or long ones. The parser
    itself gives up only what is long and not complete."""

    def __init__(self, app: ASGIApp, refuse: Refuse = refuse) -> None:
        self._app = app
        self._refuse = refuse

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            target = len(scope.get("raw_path") or scope["path"]) + len(scope.get("query_string", b""))
            if target > MAX_TARGET_BYTES:
                text = f"the request's path and query have {target} bytes; this server takes {MAX_TARGET_BYTES}"
                await self._refuse(scope, 414, text, "uri_too_long", None)(scope, receive, send)
                return
            nbytes = sum(len(name) + len(value) for name, value in scope["headers"])
            if len(scope["headers"]) > MAX_HEADERS or nbytes > MAX_HEADER_BYTES:
                text = (
                    f"the request has {len(scope['headers'])} headers with {nbytes} bytes; this server takes "
                    f"{MAX_HEADERS} with {MAX_HEADER_BYTES}"
                )
                await self._refuse(scope, 431, text, "too_many_headers", None)(scope, receive, send)
                return
        await self._app(scope, receive, send)


class AccessGuard:
    """Where there are keys, requires one everywhere but on OPEN_PATHS: `Authorization: Bearer` or `x-api-key`.

    Files of the web page take it as the password of `Authorization: Basic` too, whatever the name, and the page is
    refused in a way that makes browsers ask for it. Nothing else does: a browser adds what it was given to requests
    that other pages make as well.

    Without keys only the machine itself may ask. A web page in its browser could reach a loopback port under a name
    of its own (DNS rebinding), so the Host header must be a loopback name or address.

    Sets `scope["state"]["principal"]`, and with keys `has_key`, so that /health can tell more to those who have one.
    """

    def __init__(self, app: ASGIApp, operation: Operation, refuse: Refuse = refuse) -> None:
        self._app = app
        self._keys = operation.keys
        self._metrics = operation.metrics
        self._refuse = refuse

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        state = scope.setdefault("state", {})
        if not self._keys.asks:
            if _is_loopback_name(Headers(scope=scope).get("host", "")):
                state["principal"] = ANYONE
                await self._app(scope, receive, send)
            else:
                await self._refuse_host(scope, receive, send)
            return
        path = route_path(scope)
        expired = ""
        try:
            principal = _principal(self._keys, scope)
        except KeyExpiredError as error:
            principal, expired = None, str(error)
        state["has_key"] = principal is not None
        if principal is not None:
            state["principal"] = principal
        if path in OPEN_PATHS:
            await self._app(scope, receive, send)
        elif principal is None:
            await self._refuse_key(scope, receive, send, expired)
        elif principal.scopes.isdisjoint(opening_scopes(path)):
            await self._refuse_scope(scope, receive, send, principal)
        else:
            await self._app(scope, receive, send)

    async def _refuse_host(self, scope: Scope, receive: Receive, send: Send) -> None:
        message = (
            "the Host header does not name this machine; a server without an API key answers only "
            "requests to localhost, 127.0.0.1 or [::1]. Start it with an API key to serve other names"
        )
        self._metrics.observe_refusal("", "host")
        await self._refuse(scope, 403, message, "host_not_allowed", None)(scope, receive, send)

    async def _refuse_key(self, scope: Scope, receive: Receive, send: Send, expired: str) -> None:
        message = expired or "missing or wrong API key; send it as 'Authorization: Bearer <key>' or 'x-api-key: <key>'"
        wants_page = is_page(scope) and "text/html" in Headers(scope=scope).get("accept", "")
        headers = {"WWW-Authenticate": 'Basic realm="Freehold", charset="UTF-8"' if wants_page else "Bearer"}
        self._metrics.observe_refusal("", "expired" if expired else "key")
        await self._refuse(scope, 401, message, "invalid_api_key", headers)(scope, receive, send)

    async def _refuse_scope(self, scope: Scope, receive: Receive, send: Send, principal: Principal) -> None:
        needed = " or ".join(repr(name) for name in opening_scopes(route_path(scope)))
        has = ", ".join(sorted(principal.scopes))
        message = f"the key {principal.name!r} is for {has}; this path needs a key with the scope {needed}"
        self._metrics.observe_refusal(principal.name, "scope")
        await self._refuse(scope, 403, message, "insufficient_scope", None)(scope, receive, send)


def _principal(keys: Keys, scope: Scope) -> Principal | None:
    """Whose request it is. Clients that send their key in both ways, or another one in one of them, need only one."""
    given = []
    for name, value in scope["headers"]:
        if name == b"authorization":
            scheme, _, key = value.partition(b" ")
            given += [key.strip()] if scheme.lower() == b"bearer" else []
            given += [_basic_password(key)] if scheme.lower() == b"basic" and is_page(scope) else []
        elif name == b"x-api-key":
            given.append(value.strip())
    # No client sends more, and each one costs a hash.
    for key in given[:2]:
        principal = keys.find(key.decode("utf-8", "surrogateescape"))
        if principal is not None:
            return principal
    return None


def _basic_password(credentials: bytes) -> bytes:
    """The password in the credentials of "Basic"; empty, and so wrong, where they are none."""
    try:
        return base64.b64decode(credentials.strip(), validate=True).partition(b":")[2]
    except binascii.Error:
        return b""


def _is_loopback_name(host: str) -> bool:
    name = host.rpartition(":")[0] if host.rpartition(":")[2].isdigit() else host
    name = name.removeprefix("[").removesuffix("]").rstrip(".").lower()
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


class DrainGuard:
    """Refuses new work with 503 once the server is about to end; looking at something is answered to the last."""

    def __init__(self, app: ASGIApp, operation: Operation, refuse: Refuse = refuse) -> None:
        self._app = app
        self._lifecycle = operation.lifecycle
        self._refuse = refuse

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._lifecycle.draining and is_work(scope):
            message = "the server is shutting down and takes no new requests; send it again in a moment"
            headers = {"Retry-After": "5", "Connection": "close"}
            await self._refuse(scope, 503, message, "shutting_down", headers)(scope, receive, send)
            return
        await self._app(scope, receive, send)


class LimitGuard:
    """Refuses with 429 what is beyond the key's limits, and tells every client of a limited key where it stands."""

    def __init__(self, app: ASGIApp, operation: Operation, refuse: Refuse = refuse) -> None:
        self._app = app
        self._limits = operation.limits
        self._metrics = operation.metrics
        self._refuse = refuse

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        principal = principal_of(scope)
        if principal is None or not is_work(scope):
            await self._app(scope, receive, send)
            return
        verdict = self._limits.admit(principal)

        async def send_with_limits(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in verdict.headers.items():
                    headers[name] = value
            await send(message)

        if verdict.reason:
            self._metrics.observe_refusal(principal.name, verdict.reason)
            await self._refuse(scope, 429, verdict.message, verdict.code, None)(scope, receive, send_with_limits)
            return
        observation: Observation = scope["state"]["observation"]
        observation.before_submit = partial(self._check, principal)
        with self._limits.running(principal, lambda: observation.held_tokens):
            await self._app(scope, receive, send_with_limits)

    def _check(self, principal: Principal) -> None:
        """Between its arrival and here, requests that came together with this one may have used up the rest."""
        verdict = self._limits.look_again(principal)
        if verdict.reason:
            self._metrics.observe_refusal(principal.name, verdict.reason)
            raise verdict.error()


class BodyGuard:
    """Reads the whole body of a POST, and hands it on in one piece; later messages (the disconnect) pass.

    Answers 413 above `max_body_bytes`, 408 when it takes longer than `body_seconds`, 503 when too many large bodies
    are read at once, 415 for a body that is declared to be compressed, and 415 unless it is declared to be JSON: a web
    page can send any other type to a loopback port without asking the server first.
    """

    def __init__(self, app: ASGIApp, max_body_bytes: int, body_seconds: float = 60.0, refuse: Refuse = refuse) -> None:
        self._app = app
        self._limit = max_body_bytes
        self._seconds = body_seconds
        self._refuse = refuse
        self._held = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] in ("GET", "HEAD"):
            await self._app(scope, receive, send)
            return
        body = bytearray()
        try:
            refusal = await asyncio.wait_for(self._read(receive, body), self._seconds)
        except asyncio.TimeoutError:
            text = f"the request body took longer than {self._seconds:g} seconds"
            refusal = (408, text, "request_timeout")
        finally:
            self._held -= len(body)
        if refusal is None:
            return
        if not refusal[0] and body:
            refusal = _undeclared(Headers(scope=scope))
        if refusal[0]:
            headers = {"Connection": "close"} if refusal[0] in (408, 503) else {}
            headers |= {"Retry-After": "1"} if refusal[0] == 503 else {}
            headers |= {"Accept-Encoding": "identity"} if refusal[0] == 415 else {}
            await self._refuse(scope, *refusal, headers)(scope, receive, send)
            return
        await self._app(scope, _with_body(bytes(body), receive), send)

    async def _read(self, receive: Receive, body: bytearray) -> tuple[int, str, str] | None:
        """Read into `body`. What to refuse it with, a status of 0 if nothing is wrong; None: the client has gone."""
        total, more = 0, True
        while more and total <= self._limit * _DISCARD_FACTOR:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            chunk = message.get("body", b"")
            total += len(chunk)
            more = message.get("more_body", False)
            if total <= self._limit:
                body += chunk
                self._held += len(chunk)
                if self._held > self._limit * _BODIES_AT_ONCE:
                    return 503, "too many large requests arrive at once; send it again", "busy"
        if total > self._limit:
            text = f"the request body is larger than {self._limit} bytes, the limit of this server"
            return 413, text, "body_too_large"
        return _NOTHING_WRONG


def _undeclared(headers: Headers) -> tuple[int, str, str]:
    """What to refuse a body with whose headers do not say that it is plain JSON; a status of 0 if they do."""
    codings = [name.strip().lower() for name in ",".join(headers.getlist("content-encoding")).split(",")]
    packed = [name for name in codings if name not in ("", "identity")]
    if packed:
        text = (
            f"the Content-Encoding is {', '.join(packed)[:80]!r}; this server unpacks nothing: send the body as it is, "
            "without this header"
        )
        return 415, text, "unsupported_content_encoding"
    content_type = headers.get("content-type", "").partition(";")[0].strip().lower()
    if content_type != "application/json":
        text = f"the Content-Type is {content_type[:80]!r}; it must be 'application/json'"
        return 415, text, "unsupported_media_type"
    return _NOTHING_WRONG


def _with_body(body: bytes, receive: Receive) -> Receive:
    """A `receive` that gives `body` first."""
    handed_on = False

    async def receive_whole() -> Message:
        nonlocal handed_on
        if handed_on:
            return await receive()
        handed_on = True
        return {"type": "http.request", "body": body, "more_body": False}

    return receive_whole
