"""GET /v1/models, /v1/models/{id} and /health."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timezone
from typing import Annotated, Any

from fastapi import APIRouter, Header, Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel

from freehold.server.messages.wire_answer import ModelInfo, ModelInfoList
from freehold.server.openai.wire import ErrorBody, ModelCard, ModelList
from freehold.server.operation.wire import Health, SealState
from freehold.server.refusals import speaks_messages
from freehold.server.service import Service, http_request_id

_Version = Annotated[str | None, Header(description="Sent by Anthropic's clients: the answer has their form.")]


def model_routes(service: Service, seal: Callable[[], SealState] | None = None) -> APIRouter:
    """The routes of this file, serving `service`. seal: how the process is sealed, if it is."""
    router = APIRouter()

    @router.get("/v1/models", response_model=ModelList | ModelInfoList)
    async def list_models(http: Request, anthropic_version: _Version = None) -> Response:
        if not speaks_messages(http.scope):
            return _json(http, ModelList(data=[_card(service)]))
        # The list ends where it begins: before and behind its only model there is nothing.
        bounds = [name for key in ("after_id", "before_id") if (name := http.query_params.get(key))]
        for name in bounds:
            service.check_model(name)
        return _json(http, ModelInfoList.of([] if bounds else [_info(service)]))

    # Names may hold slashes.
    @router.get(
        "/v1/models/{model_id:path}", response_model=ModelCard | ModelInfo, responses={404: {"model": ErrorBody}}
    )
    async def retrieve_model(http: Request, model_id: str, anthropic_version: _Version = None) -> Response:
        service.check_model(model_id)
        return _json(http, _info(service) if speaks_messages(http.scope) else _card(service))

    # Probes often ask for the head alone.
    @router.head("/health", include_in_schema=False)
    @router.get("/health", response_model_exclude_unset=True)
    async def health(http: Request) -> Health:
        """Alive; and for those who may use the API, how the engine is doing."""
        if not http.scope["state"].get("has_key", True):
            return Health(status="ok")
        told = Health(status="ok", model=service.backend.model_name, engine=service.backend.stats())
        if seal is not None:
            told.seal = seal()
        return told

    return router


def _json(http: Request, body: BaseModel) -> Response:
    named: dict[str, Any] = {"request-id": http_request_id(http)} if speaks_messages(http.scope) else {}
    return JSONResponse(body.model_dump(), headers=named)


def _card(service: Service) -> ModelCard:
    backend = service.backend
    return ModelCard(
        id=backend.model_name,
        created=backend.created,
        context_length=backend.context_length,
        input_modalities=list(backend.input_modalities),
    )


def _info(service: Service) -> ModelInfo:
    """The same for Anthropic's clients."""
    backend = service.backend
    created = datetime.fromtimestamp(backend.created, timezone.utc).isoformat().replace("+00:00", "Z")
    return ModelInfo(
        id=backend.model_name,
        display_name=backend.model_name,
        created_at=created,
        max_input_tokens=backend.context_length,
    )
