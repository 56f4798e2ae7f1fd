"""The API's description at /openapi.json: what the framework knows of the routes, and what the guards around them and
the bodies that the routes read themselves add to it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from freehold.server.messages.wire import CountTokensRequest, MessagesRequest
from freehold.server.messages.wire_answer import MessagesErrorBody
from freehold.server.openai.wire import CompletionRequest, ErrorBody
from freehold.server.openai.wire_chat import ChatRequest
from freehold.server.openai.wire_tokenize import DetokenizeRequest, TokenizeRequest
from freehold.server.operation.guards import OPEN_PATHS, REQUEST_ID_HEADER
from freehold.server.responses.wire import InputFields, ResponsesRequest

Json = dict[str, Any]

BODIES: dict[str, type[BaseModel]] = {
    "/v1/chat/completions": ChatRequest,
    "/v1/completions": CompletionRequest,
    "/v1/messages": MessagesRequest,
    "/v1/messages/count_tokens": CountTokensRequest,
    "/v1/responses": ResponsesRequest,
    "/v1/responses/input_tokens": InputFields,
    "/v1/tokenize": TokenizeRequest,
    "/v1/detokenize": DetokenizeRequest,
    "/tokenize": TokenizeRequest,
    "/detokenize": DetokenizeRequest,
}
"""What is posted where."""

STREAMING = ("/v1/chat/completions", "/v1/completions", "/v1/messages", "/v1/responses")
"""Paths whose answer is a stream of events where "stream": true asks for one."""

_EVERYWHERE = {
    403: "The Host header does not name this machine, or the key is not for this path.",
    414: "The path and query are too long.",
    431: "The headers are too many or too long.",
    500: "The server failed; its log tells more under the request's id.",
}
_WITH_A_KEY = {401: "The API key is missing, wrong or expired."}
_WITH_A_BODY = {
    408: "The body took too long to arrive.",
    413: "The body is too large.",
    415: "The body is not declared to be JSON, or it is declared to be compressed.",
    503: "The server is shutting down, or reads too many large bodies; try again.",
}
_POSTED = {429: "The engine's queue is full, or a limit of the key is reached; try again after Retry-After."}
_READ = {400: "The body is not JSON, or asks for something that is wrong or cannot be done."}
_NAMES_A_MODEL = {404: "There is no such model here."}
_GENERATING = {
    410: "The request was ended by DELETE /v1/requests/{id}.",
    504: "The answer was not done in the time that this server allows.",
}

_SECURITY_SCHEMES = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "A key, where the server has keys."},
    "x-api-key": {"type": "apiKey", "in": "header", "name": "x-api-key", "description": "The same, in another header."},
}
_EITHER_OR_NONE: list[dict[str, list[str]]] = [{"bearer": []}, {"x-api-key": []}, {}]


def describe_api(app: FastAPI) -> Json:
    """The OpenAPI description of `app`, as JSON. The web page and its files are no part of it."""
    schema = get_openapi(title=app.title, version=app.version, routes=app.routes)
    models: set[type[BaseModel]] = {*BODIES.values(), ErrorBody, MessagesErrorBody}
    _, definitions = models_json_schema(
        [(model, "validation") for model in sorted(models, key=lambda model: model.__name__)],
        ref_template="#/components/schemas/{model}",
    )
    components = schema["components"]
    components["schemas"].update(definitions["$defs"])
    components["securitySchemes"] = _SECURITY_SCHEMES
    for unused in ("HTTPValidationError", "ValidationError"):
        components["schemas"].pop(unused, None)
    for path, method, operation in _operations(schema):
        _describe(path, method, operation)
    return schema


def _operations(schema: Json) -> Iterator[tuple[str, str, Json]]:
    for path, methods in schema["paths"].items():
        for method, operation in methods.items():
            yield path, method, operation


def _describe(path: str, method: str, operation: Json) -> None:
    """Adds what the framework does not know of one operation."""
    answers = operation["responses"]
    answers.pop("422", None)  # the framework's own form of refusal, which no route here uses
    operation["security"] = [] if path in OPEN_PATHS else _EITHER_OR_NONE
    if path in BODIES:
        reference = _reference(BODIES[path])
        operation["requestBody"] = {"required": True, "content": {"application/json": {"schema": reference}}}
    if path in STREAMING:
        answers["200"]["content"]["text/event-stream"] = {"schema": {"type": "string"}}
    refusals = _refusals(path, method)
    for status in answers:
        if status.startswith(("4", "5")) and int(status) not in refusals and path not in OPEN_PATHS:
            refusals[int(status)] = answers[status]["description"]
    for status, text in refusals.items():
        content = {"application/json": {"schema": _error_schema(path)}}
        answers[str(status)] = {"description": text, "content": content, "headers": _refusal_headers(status)}
    for answer in answers.values():
        answer.setdefault("headers", {})[REQUEST_ID_HEADER] = _header("The id under which the server's log knows it.")
    operation["responses"] = dict(sorted(answers.items()))


def _error_schema(path: str) -> Json:
    if path.startswith("/v1/models"):  # the client's headers decide
        return {"anyOf": [_reference(ErrorBody), _reference(MessagesErrorBody)]}
    return _reference(MessagesErrorBody if path.startswith("/v1/messages") else ErrorBody)


def _refusals(path: str, method: str) -> dict[int, str]:
    """Statuses that guards and routes refuse an operation with, and why."""
    found = dict(_EVERYWHERE)
    if path not in OPEN_PATHS:
        found |= _WITH_A_KEY
    if method != "get":
        found |= _WITH_A_BODY
    if method == "post":
        found |= _POSTED
    if path in BODIES:
        found |= _READ | _NAMES_A_MODEL
    if path in STREAMING:
        found |= _GENERATING
    return found


def _refusal_headers(status: int) -> Json:
    if status == 401:
        return {"WWW-Authenticate": _header("How a key is sent.")}
    if status in (429, 503):
        return {"Retry-After": _header("Seconds to wait, where they are known.")}
    return {}


def _header(text: str) -> Json:
    return {"description": text, "schema": {"type": "string"}}


def _reference(model: type[BaseModel]) -> Json:
    return {"$ref": f"#/components/schemas/{model.__name__}"}
