"""GET /v1/models, /v1/models/{id} and /health."""

from __future__ import annotations

from fastapi import APIRouter, Request

from freehold.server.openai.wire import ErrorBody, ModelCard, ModelList
from freehold.server.operation.wire import Health
from freehold.server.service import Service


def model_routes(service: Service) -> APIRouter:
    """The routes of this file, serving `service`."""
    router = APIRouter()

    @router.get("/v1/models")
    async def list_models() -> ModelList:
        return ModelList(data=[_card(service)])

    # Names may hold slashes.
    @router.get("/v1/models/{model_id:path}", responses={404: {"model": ErrorBody}})
    async def retrieve_model(model_id: str) -> ModelCard:
        service.check_model(model_id)
        return _card(service)

    # Probes often ask for the head alone.
    @router.head("/health", include_in_schema=False)
    @router.get("/health", response_model_exclude_unset=True)
    async def health(http: Request) -> Health:
        """Alive; and for those who may use the API, how the engine is doing."""
        if not http.scope["state"].get("has_key", True):
            return Health(status="ok")
        return Health(status="ok", model=service.backend.model_name, engine=service.backend.stats())

    return router


def _card(service: Service) -> ModelCard:
    backend = service.backend
    return ModelCard(
        id=backend.model_name,
        created=backend.created,
        context_length=backend.context_length,
        input_modalities=list(backend.input_modalities),
    )
