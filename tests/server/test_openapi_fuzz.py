"""What /openapi.json says is what the server does: requests drawn from it, right and wrong ones, over a socket."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from typing import Any

import httpx
import jsonschema
import pytest
import requests
import schemathesis
from fastapi.routing import APIRoute
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode
from schemathesis.specs.openapi import checks

from freehold.server.app import create_app
from freehold.server.openapi import BODIES, STREAMING
from freehold.server.operation.keys import Keys
from freehold.server.operation.operation import Operation
from support.fake_backend import FakeBackend, Script

pytestmark = pytest.mark.filterwarnings("ignore")  # the fuzzer's own, about schemas that it finds hard to fill

EXAMPLES = 8
MANY_EXAMPLES = 400 if os.environ.get("FREEHOLD_PROVE") else 100
SECONDS = 10
"""For one answer; the backend needs none."""


def new_app(**options: Any) -> Any:
    return create_app(FakeBackend(Script([b"a", b"\xc3", b"\xa4"]), capacity=1 << 30), **options)


DESCRIPTION = new_app().openapi()
OPERATIONS = [(method.upper(), path) for path, methods in DESCRIPTION["paths"].items() for method in methods]
# Only a body can be wrong: what stands in a path is any text.
CASES = [pytest.param(*operation, GenerationMode.POSITIVE, id=" ".join(operation)) for operation in OPERATIONS] + [
    pytest.param("POST", path, GenerationMode.NEGATIVE, id=f"POST {path} with a wrong body") for path in BODIES
]
CHECKS = [
    schemathesis.checks.not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_headers_conformance,
    checks.response_schema_conformance,
    checks.negative_data_rejection,
]


@pytest.fixture(scope="module")
def url(running: Any) -> Iterator[str]:
    with running(new_app()) as url:
        yield url


def fuzz(url: str, method: str, path: str, mode: GenerationMode, examples: int) -> None:
    schema = schemathesis.openapi.from_dict(DESCRIPTION)
    operation = schema[path][method]
    session = requests.Session()

    @given(case=operation.as_strategy(generation_mode=mode))
    @settings(max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck), database=None)
    def ask(case: schemathesis.Case) -> None:
        answer = case.call(base_url=url, session=session, timeout=SECONDS)
        case.validate_response(answer, checks=CHECKS)

    with session:
        ask()


@pytest.mark.parametrize(("method", "path", "mode"), CASES)
def test_answers_are_as_described(url: str, method: str, path: str, mode: GenerationMode) -> None:
    fuzz(url, method, path, mode, EXAMPLES)


@pytest.mark.slow
@pytest.mark.parametrize(("method", "path", "mode"), CASES)
def test_many_answers_are_as_described(url: str, method: str, path: str, mode: GenerationMode) -> None:
    fuzz(url, method, path, mode, MANY_EXAMPLES)


# --- the description itself ---------------------------------------------------------------------------------


def api_routes(routes: Iterable[Any]) -> Iterator[APIRoute]:
    """Also those of routers that newer versions of the framework keep whole."""
    for route in routes:
        inner = getattr(route, "original_router", None)
        if inner is not None:
            yield from api_routes(inner.routes)
        elif isinstance(route, APIRoute):
            yield route


def test_every_route_is_described() -> None:
    pages = {"/", "/page/{name}"}
    served = {
        (method, route.path_format)
        for route in api_routes(new_app().routes)
        if route.path_format not in pages
        for method in route.methods
        if method != "HEAD"  # as GET, without the body
    }
    assert served == set(OPERATIONS)


def test_the_description_is_valid() -> None:
    jsonschema.Draft202012Validator.check_schema(DESCRIPTION["components"]["schemas"])
    for schema in DESCRIPTION["components"]["schemas"].values():
        jsonschema.Draft202012Validator.check_schema(schema)
    names = [operation["operationId"] for methods in DESCRIPTION["paths"].values() for operation in methods.values()]
    assert len(set(names)) == len(names)


def test_bodies_and_streams_are_those_of_the_paths() -> None:
    posted = {path for method, path in OPERATIONS if method == "POST" and "{" not in path}
    assert posted == set(BODIES)
    assert set(STREAMING) <= posted


def assert_described(method: str, path: str, response: httpx.Response) -> None:
    answers = DESCRIPTION["paths"][path][method.lower()]["responses"]
    assert str(response.status_code) in answers, (method, path, response.status_code)
    schema = answers[str(response.status_code)]["content"]["application/json"]["schema"]
    jsonschema.validate(response.json(), {**schema, "components": DESCRIPTION["components"]})
    assert response.headers["x-request-id"]


def refused(name: str) -> tuple[Any, dict[str, Any], int]:
    """An application, what is sent to it besides the method and the path, and the status that it refuses that with."""
    backend = FakeBackend()
    if name == "no key":
        return create_app(backend, api_key="secret"), {}, 401
    if name == "another host":
        return create_app(backend), {"headers": {"Host": "example.com"}}, 403
    if name == "a long target":
        return create_app(backend), {"params": {"x": "y" * 9000}}, 414
    if name == "many headers":
        return create_app(backend), {"headers": {f"x-{number}": "1" for number in range(120)}}, 431
    if name == "a large body":
        json_body = {"headers": {"Content-Type": "application/json"}, "content": b'"' + b"x" * 100 + b'"'}
        return create_app(backend, max_body_bytes=10), json_body, 413
    if name == "another type":
        return create_app(backend), {"headers": {"Content-Type": "text/plain"}, "content": b"{}"}, 415
    operation = Operation.of(backend, keys=Keys())
    operation.lifecycle.drain()
    return create_app(backend, operation=operation), {"headers": {"Content-Type": "application/json"}}, 503


OPEN = ("/health", "/health/ready")
REFUSED = [
    ("no key", [o for o in OPERATIONS if o[1] not in OPEN]),
    ("another host", OPERATIONS),
    ("a long target", OPERATIONS),
    ("many headers", OPERATIONS),
    ("a large body", [o for o in OPERATIONS if o[0] != "GET"]),
    ("another type", [o for o in OPERATIONS if o[0] != "GET"]),
    ("a draining server", [o for o in OPERATIONS if o[0] == "POST"]),
]


@pytest.mark.parametrize(("name", "operations"), REFUSED, ids=[name for name, _ in REFUSED])
def test_what_guards_refuse_is_described(ask: Any, name: str, operations: list[tuple[str, str]]) -> None:
    app, options, status = refused(name)
    for method, path in operations:
        response = ask(app).request(method, path.replace("{", "").replace("}", ""), **options)
        assert response.status_code == status, (method, path)
        assert_described(method, path, response)
