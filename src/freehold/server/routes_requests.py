"""GET /v1/requests, and DELETE of one of them: what is being answered, and how far it is."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import Response

from freehold.server.board import Entry
from freehold.server.openai.wire import ErrorBody
from freehold.server.operation.principal import ADMIN, principal_of
from freehold.server.operation.wire import RunningRequests
from freehold.server.refusals import refuse
from freehold.server.service import Service, client_names


def request_routes(service: Service) -> APIRouter:
    """The routes of this file, serving `service`. A key without the scope "admin" sees and ends its own requests."""
    router = APIRouter()

    def visible(http: Request, entry: Entry) -> bool:
        holder = principal_of(http.scope)
        mine, _ = client_names(http, None)
        return holder is None or ADMIN in holder.scopes or entry.client[0] == mine

    @router.get("/v1/requests")
    async def list_requests(http: Request) -> RunningRequests:
        return RunningRequests(data=[e.as_body() for e in service.board.entries() if visible(http, e)])

    @router.delete("/v1/requests/{request_id}", status_code=204, responses={404: {"model": ErrorBody}})
    async def cancel_request(http: Request, request_id: str) -> Response:
        """What was read of its prompt stays in the cache."""
        entry = service.board.find(request_id)
        if entry is None or not visible(http, entry):
            message = f"there is no running request {request_id[:80]!r}; GET /v1/requests lists them"
            return refuse(http.scope, 404, message, "request_not_found")
        entry.cancel()
        return Response(status_code=204)

    return router
