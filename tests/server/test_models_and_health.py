from __future__ import annotations

import httpx

from freehold.server.app import create_app
from freehold.server.operation.keys import Keys
from freehold.server.operation.metrics import Metrics
from freehold.server.operation.operation import Operation
from freehold.server.operation.wire import SealState
from support.fake_backend import FakeBackend

CARD = {
    "id": "fake/model",
    "object": "model",
    "created": 1_700_000_000,
    "owned_by": "freehold",
    "context_length": 4096,
    "input_modalities": ["text"],
}


def test_models(ask):
    asker = ask(create_app(FakeBackend(), aliases=["other"]))
    assert asker.get("/v1/models").json() == {"object": "list", "data": [CARD]}
    assert asker.get("/v1/models/fake/model").json() == CARD
    assert asker.get("/v1/models/other").json() == CARD
    missing = asker.get("/v1/models/none")
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "model_not_found")


def test_health_tells_more_to_those_who_have_the_key(ask):
    more = {"status": "ok", "model": "fake/model", "engine": {"requests": 0}}
    assert ask(create_app(FakeBackend())).get("/health").json() == more
    app = create_app(FakeBackend(), api_key="k")
    assert ask(app).get("/health").json() == {"status": "ok"}
    assert ask(app, Authorization="Bearer k").get("/health").json() == more


def test_health_tells_of_a_seal_to_those_who_have_the_key(ask):
    state = {
        "since": "s",
        "layers": {"filter": "f"},
        "missing": {},
        "open_files": [],
        "filter_sha256": "0",
        "refused": 2,
        "recorder_alive": True,
    }
    sealed = Operation(Metrics(FakeBackend().stats), Keys(api_key="k"), seal=lambda: SealState.model_validate(state))
    app = create_app(FakeBackend(), operation=sealed)
    assert "seal" not in ask(app).get("/health").json()
    assert ask(app, Authorization="Bearer k").get("/health").json()["seal"] == state


def test_the_description_names_the_fields_and_resolves_its_references(ask):
    schema = ask(create_app(FakeBackend())).get("/openapi.json").json()
    chat = schema["components"]["schemas"]["ChatRequest"]
    assert {"messages", "temperature", "stop"} <= set(chat["properties"])
    assert chat["additionalProperties"] is False

    def references(value):
        if isinstance(value, dict):
            yield from ([value["$ref"]] if "$ref" in value else [])
            value = list(value.values())
        if isinstance(value, list):
            for child in value:
                yield from references(child)

    found = set(references(schema))
    names = {f"#/components/schemas/{name}" for name in schema["components"]["schemas"]}
    assert "#/components/schemas/ChatRequest" in found
    assert found <= names


def test_no_page_that_loads_from_elsewhere(ask):
    asker = ask(create_app(FakeBackend()))
    assert asker.get("/docs").status_code == 404
    assert asker.get("/redoc").status_code == 404


def test_probes_may_ask_for_the_head_alone(running):
    operation = Operation.of(FakeBackend(), keys=Keys(api_key="secret"))
    with running(create_app(FakeBackend(), operation=operation)) as url:
        for path in ("/health", "/health/ready"):
            response = httpx.head(url + path)
            assert (response.status_code, response.content) == (200, b"")
        operation.lifecycle.drain()
        assert httpx.head(f"{url}/health/ready").status_code == 503
