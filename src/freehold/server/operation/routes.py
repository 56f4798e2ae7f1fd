"""GET /health/ready and /metrics: for those who operate the server."""

from __future__ import annotations

from anyio.to_thread import run_sync
from fastapi import APIRouter
from fastapi.responses import JSONResponse, Response

from freehold.server.operation.metrics import CONTENT_TYPE
from freehold.server.operation.operation import Operation
from freehold.server.operation.wire import Readiness


def operation_routes(operation: Operation) -> APIRouter:
    """The routes of this file, serving `operation`."""
    router = APIRouter()

    @router.head("/health/ready", include_in_schema=False)
    @router.get(
        "/health/ready",
        response_model=Readiness,
        responses={503: {"description": "The server is about to end.", "model": Readiness}},
    )
    async def ready() -> Response:
        """Whether new requests are taken; what load balancers ask."""
        if operation.lifecycle.draining:
            body = Readiness(status="draining", reason="the server is shutting down")
            return JSONResponse(body.model_dump(), status_code=503)
        return JSONResponse(Readiness(status="ready").model_dump(exclude_unset=True))

    @router.get("/metrics", responses={200: {"content": {"text/plain": {}}}}, response_class=Response)
    async def metrics() -> Response:
        """Prometheus' text format. Where there are keys, it needs one with the scope "metrics"."""
        # In a thread, since a backend may take a moment to count.
        text = await run_sync(operation.metrics.text)
        return Response(text, media_type=CONTENT_TYPE)

    return router
