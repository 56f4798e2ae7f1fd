"""The HTTP application of the gateway: the paths that pass, the list of models, and the guards of every request."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware

from freehold import __version__
from freehold.server.app import outer_guards
from freehold.server.gateway.apis import APIS, Api
from freehold.server.gateway.gateway import DECISION_HEADERS, Gateway
from freehold.server.operation.guards import BodyGuard
from freehold.server.operation.operation import Operation
from freehold.server.operation.options import ServerOptions
from freehold.server.operation.routes import operation_routes
from freehold.server.refusals import refuse, refuse_http_error, speaks_messages

_DEFAULTS = ServerOptions()


def create_gateway_app(
    gateway: Gateway,
    operation: Operation,
    *,
    max_body_bytes: int = _DEFAULTS.max_body_bytes,
    body_seconds: float = _DEFAULTS.body_seconds,
    cors_origins: Sequence[str] = (),
) -> FastAPI:
    """The application. Its lifespan closes the gateway; see `server.app.create_app` for the arguments."""

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await gateway.close()

    app = FastAPI(
        title="Freehold gateway",
        version=__version__,
        lifespan=lifespan,
        middleware=[
            *outer_guards(operation, cors_origins, expose=DECISION_HEADERS),
            Middleware(BodyGuard, max_body_bytes=max_body_bytes, body_seconds=body_seconds),
        ],
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    for api in APIS:
        app.add_route(api.path, _passing(gateway, api), methods=["POST"], name=api.name)
    _add_models(app, gateway)
    app.include_router(operation_routes(operation))
    app.add_exception_handler(HTTPException, _http_exception)
    return app


def _passing(gateway: Gateway, api: Api) -> Callable[[Request], Coroutine[Any, Any, Response]]:
    async def passing(http: Request) -> Response:
        # Whose path the metrics and the log name.
        http.scope["route"] = api
        return await gateway.answer(http, api)

    return passing


def _add_models(app: FastAPI, gateway: Gateway) -> None:
    @app.get("/v1/models")
    async def list_models(http: Request) -> Response:
        entries = [_entry(http, name, endpoint.name) for name, endpoint in gateway.setup.endpoints.models]
        if not speaks_messages(http.scope):
            return JSONResponse({"object": "list", "data": entries})
        ends = {"first_id": entries[0]["id"], "last_id": entries[-1]["id"]} if entries else {}
        return JSONResponse({"data": entries, "has_more": False, "first_id": None, "last_id": None, **ends})

    # Names may hold slashes.
    @app.get("/v1/models/{model_id:path}")
    async def retrieve_model(http: Request, model_id: str) -> Response:
        for name, endpoint in gateway.setup.endpoints.models:
            if name == model_id:
                return JSONResponse(_entry(http, name, endpoint.name))
        return refuse(
            http.scope, 404, f"no endpoint serves the model {model_id[:200]!r}", "model_not_found", param="model"
        )

    @app.head("/health")
    @app.get("/health")
    async def health() -> Response:
        return JSONResponse({"status": "ok"})


def _entry(http: Request, name: str, endpoint: str) -> dict[str, Any]:
    """A model, in the form of the client's API. When an endpoint's models were made, nobody here knows."""
    if speaks_messages(http.scope):
        return {"type": "model", "id": name, "display_name": name, "created_at": "1970-01-01T00:00:00Z"}
    return {"id": name, "object": "model", "created": 0, "owned_by": endpoint}


async def _http_exception(http: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return refuse_http_error(http.scope, error)
