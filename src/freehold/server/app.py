"""The HTTP application around one backend."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.openapi.utils import get_openapi
from fastapi.responses import Response
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware

from freehold import __version__
from freehold.core.errors import ConfigError, FreeholdError
from freehold.server.backend import Backend
from freehold.server.errors import CLIENT_ERRORS, client_error_response, http_exception_response
from freehold.server.guards import BodyGuard, FailureGuard, HostGuard, KeyGuard
from freehold.server.routes_chat import chat_routes
from freehold.server.routes_completions import completion_routes
from freehold.server.routes_models import model_routes
from freehold.server.service import Service
from freehold.server.wire_openai import ChatRequest, CompletionRequest

DEFAULT_MAX_BODY_BYTES = 32 * 2**20
"""A million tokens of text with room to spare."""

DEFAULT_KEEPALIVE_SECONDS = 10.0


def create_app(
    backend: Backend,
    *,
    api_key: str | None = None,
    aliases: Sequence[str] = (),
    max_body_bytes: int = DEFAULT_MAX_BODY_BYTES,
    keepalive_seconds: float = DEFAULT_KEEPALIVE_SECONDS,
) -> FastAPI:
    """The application; it opens no connection and starts no thread of its own.

    api_key: what clients must send as a bearer token. None: no key is asked for, and then only requests that
        address a loopback name (localhost, 127.0.0.1, [::1]) are answered.
    aliases: further model names that mean this model.
    max_body_bytes: largest request body.
    keepalive_seconds: longest silence in a stream before a comment is sent.

    Raises ConfigError for an empty key and for limits that are not positive.
    """
    if api_key is not None and not api_key.strip():
        raise ConfigError("the API key is empty; give one, or none at all to serve this machine only")
    if max_body_bytes < 1:
        raise ConfigError(f"max_body_bytes is {max_body_bytes}; it must be at least 1")
    if not keepalive_seconds > 0:
        raise ConfigError(f"keepalive_seconds is {keepalive_seconds}; it must be above 0")
    guards = [
        Middleware(FailureGuard),
        Middleware(HostGuard) if api_key is None else Middleware(KeyGuard, api_key=api_key),
        Middleware(BodyGuard, max_body_bytes=max_body_bytes),
    ]
    app = FastAPI(
        title="Freehold",
        version=__version__,
        middleware=guards,
        # The framework's documentation pages load scripts from elsewhere; /openapi.json is enough.
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    service = Service(backend, tuple(aliases), keepalive_seconds)
    for router in (chat_routes(service), completion_routes(service), model_routes(service)):
        app.include_router(router)
    for kind in CLIENT_ERRORS:
        app.add_exception_handler(kind, _client_error)
    app.add_exception_handler(HTTPException, _http_exception)
    app.openapi = lambda: _openapi(app)  # type: ignore[method-assign]
    return app


async def _client_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, FreeholdError)
    return client_error_response(error)


async def _http_exception(http: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return http_exception_response(error, f"{http.method} {http.url.path[:80]}")


def _openapi(app: FastAPI) -> dict[str, Any]:
    """The API's description. The routes read their bodies themselves, so the framework does not know them."""
    if app.openapi_schema is None:
        schema = get_openapi(title=app.title, version=app.version, routes=app.routes)
        bodies: dict[str, type[BaseModel]] = {
            "/v1/chat/completions": ChatRequest,
            "/v1/completions": CompletionRequest,
        }
        _, models = models_json_schema(
            [(model, "validation") for model in bodies.values()], ref_template="#/components/schemas/{model}"
        )
        schema["components"]["schemas"].update(models["$defs"])
        for path, model in bodies.items():
            content = {"application/json": {"schema": {"$ref": f"#/components/schemas/{model.__name__}"}}}
            schema["paths"][path]["post"]["requestBody"] = {"required": True, "content": content}
        app.openapi_schema = schema
    return app.openapi_schema
