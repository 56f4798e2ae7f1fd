"""What a guard answers when it refuses: each API's own form of error, chosen by the path."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from fastapi.responses import JSONResponse
from starlette.responses import Response
from starlette.types import Scope

from freehold.server.errors import error_response as openai_error

Refuse = Callable[[Scope, int, str, str, Mapping[str, str] | None], Response]
"""(scope, status, message, code, headers) -> the whole answer."""

_ANTHROPIC_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}


def route_path(scope: Scope) -> str:
    """The path as the routes see it: without the prefix under which a proxy has put the whole server."""
    path, prefix = str(scope["path"]), str(scope.get("root_path", ""))
    return path[len(prefix) :] if prefix and path.startswith(prefix + "/") else path


def refuse(scope: Scope, status: int, message: str, code: str, headers: Mapping[str, str] | None = None) -> Response:
    """The answer in the form that clients of this path know."""
    path = route_path(scope)
    if path == "/v1/messages" or path.startswith("/v1/messages/"):
        return _anthropic_error(scope, status, message, headers)
    return openai_error(status, message, code=code, headers=headers)


def _anthropic_error(scope: Scope, status: int, message: str, headers: Mapping[str, str] | None) -> Response:
    kind = _ANTHROPIC_TYPES.get(status) or ("invalid_request_error" if status < 500 else "api_error")
    body: dict[str, Any] = {
        "type": "error",
        "error": {"type": kind, "message": message},
        "request_id": scope.get("state", {}).get("http_request_id"),
    }
    return JSONResponse(body, status_code=status, headers=dict(headers) if headers else None)
