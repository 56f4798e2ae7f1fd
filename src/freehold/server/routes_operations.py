"""GET /health/ready and /metrics: for those who operate the server."""

from __future__ import annotations

from anyio.to_thread import run_sync
from fastapi import APIRouter
from fastapi.responses import JSONResponse, Response

from freehold.server.metrics import CONTENT_TYPE
from freehold.server.operation import Operation


def operation_routes(operation: Operation) -> APIRouter:
    """The routes of this file, serving `operation`."""
    router = APIRouter()

    @router.get("/health/ready", responses={503: {"description": "The server is about to end."}})
    async def ready() -> Response:
        """Whether new requests are taken; what load balancers ask."""
        if operation.lifecycle.draining:
            return JSONResponse({"status": "draining", "reason": "the server is shutting down"}, status_code=503)
        return JSONResponse({"status": "ready"})

    @router.get("/metrics", responses={200: {"content": {"text/plain": {}}}}, response_class=Response)
    async def metrics() -> Response:
        """Prometheus' text format. Where there are keys, it needs one with the scope "metrics"."""
        # In a thread, since a backend may take a moment to count.
        text = await run_sync(operation.metrics.text)
        return Response(text, media_type=CONTENT_TYPE)

    return router
