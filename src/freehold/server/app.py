"""The HTTP application around one backend."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import Response
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware

from freehold import __version__
from freehold.core.errors import ConfigError, FreeholdError
from freehold.server.backend import Backend
from freehold.server.errors import CLIENT_ERRORS
from freehold.server.messages.routes import messages_routes
from freehold.server.openai.routes_chat import chat_routes
from freehold.server.openai.routes_completions import completion_routes
from freehold.server.openai.routes_tokenize import tokenize_routes
from freehold.server.openapi import describe_api
from freehold.server.operation.guards import (
    REQUEST_ID_HEADER,
    AccessGuard,
    BodyGuard,
    DrainGuard,
    FailureGuard,
    LimitGuard,
    SizeGuard,
    WatchGuard,
)
from freehold.server.operation.keys import Keys
from freehold.server.operation.operation import Operation
from freehold.server.operation.options import ServerOptions
from freehold.server.operation.record_guard import RecordGuard
from freehold.server.operation.routes import operation_routes
from freehold.server.operation.watched_backend import watched
from freehold.server.refusals import refuse_client_error, refuse_http_error
from freehold.server.responses.routes import responses_routes
from freehold.server.routes_models import model_routes
from freehold.server.routes_page import page_routes
from freehold.server.routes_requests import request_routes
from freehold.server.service import Service

DEFAULT_MAX_BODY_BYTES = ServerOptions().max_body_bytes
"""A million tokens of text with room to spare."""

DEFAULT_KEEPALIVE_SECONDS = ServerOptions().keepalive_seconds


def create_app(
    backend: Backend,
    *,
    api_key: str | None = None,
    aliases: Sequence[str] = (),
    max_body_bytes: int = DEFAULT_MAX_BODY_BYTES,
    keepalive_seconds: float = DEFAULT_KEEPALIVE_SECONDS,
    body_seconds: float = ServerOptions().body_seconds,
    cors_origins: Sequence[str] = (),
    operation: Operation | None = None,
) -> FastAPI:
    """The application; it opens no connection and starts no thread of its own.

    api_key: what clients must send as a bearer token or as x-api-key. None: no key is asked for, and then only
        requests that address a loopback name (localhost, 127.0.0.1, [::1]) are answered.
    aliases: further model names that mean this model.
    max_body_bytes: largest request body.
    keepalive_seconds: longest silence in a stream before a comment is sent.
    body_seconds: longest time that a client may take to send a body.
    cors_origins: origins whose pages may read answers; none by default.
    operation: keys, limits, metrics and the server's life, where they are shared with the process around it; the
        key is then among `operation.keys`, not given here.

    Raises ConfigError for an empty key and for limits that are not positive.
    """
    if operation is None:
        operation = Operation.of(backend, keys=Keys(api_key=api_key))
    elif api_key is not None:
        raise ConfigError("api_key and operation exclude each other; give the key to the operation's keys")
    if max_body_bytes < 1:
        raise ConfigError(f"max_body_bytes is {max_body_bytes}; it must be at least 1")
    if not keepalive_seconds > 0:
        raise ConfigError(f"keepalive_seconds is {keepalive_seconds}; it must be above 0")
    app = FastAPI(
        title="Freehold",
        version=__version__,
        middleware=[
            *outer_guards(operation, cors_origins),
            Middleware(BodyGuard, max_body_bytes=max_body_bytes, body_seconds=body_seconds),
        ],
        # The framework's documentation pages load scripts from elsewhere; /openapi.json is enough.
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    service = Service(watched(backend, operation.lifecycle), tuple(aliases), keepalive_seconds)
    generating = (chat_routes, completion_routes, messages_routes, responses_routes)
    for routes in (*generating, tokenize_routes, request_routes):
        app.include_router(routes(service))
    app.include_router(model_routes(service, operation.seal))
    app.include_router(operation_routes(operation))
    app.include_router(page_routes())
    for kind in CLIENT_ERRORS:
        app.add_exception_handler(kind, _client_error)
    app.add_exception_handler(HTTPException, _http_exception)
    app.openapi = lambda: _described(app)  # type: ignore[method-assign]
    return app


def outer_guards(operation: Operation, cors_origins: Sequence[str], expose: Sequence[str] = ()) -> list[Middleware]:
    """All guards but the one of the body; see guards.py. expose: further headers that web pages may read."""
    cors = Middleware(
        CORSMiddleware,
        allow_origins=list(cors_origins),
        allow_methods=["GET", "POST", "DELETE"],
        # Client libraries send headers of their own; the origin is exact, so it may.
        allow_headers=["*"],
        allow_private_network=True,
        expose_headers=[REQUEST_ID_HEADER, "Retry-After", *expose],
    )
    return [
        Middleware(FailureGuard),
        Middleware(WatchGuard, operation=operation),
        Middleware(RecordGuard, operation=operation),
        *([cors] if cors_origins else []),
        Middleware(SizeGuard),
        Middleware(AccessGuard, operation=operation),
        Middleware(DrainGuard, operation=operation),
        Middleware(LimitGuard, operation=operation),
    ]


async def _client_error(http: Request, error: Exception) -> Response:
    assert isinstance(error, FreeholdError)
    return refuse_client_error(http.scope, error)


async def _http_exception(http: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return refuse_http_error(http.scope, error)


def _described(app: FastAPI) -> dict[str, Any]:
    if app.openapi_schema is None:
        app.openapi_schema = describe_api(app)
    return app.openapi_schema
