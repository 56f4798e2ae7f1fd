from __future__ import annotations

import pytest

from freehold.core.errors import ConfigError
from freehold.server.app import create_app
from freehold.server.operation.options import ServerOptions
from support.fake_backend import FakeBackend

ORIGIN = "https://chat.example"
PREFLIGHT = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization,x-api-key"}


def preflight(asker, origin):
    return asker.request("OPTIONS", "/v1/chat/completions", headers={"Origin": origin, **PREFLIGHT})


def test_no_page_may_read_by_default(ask):
    asker = ask(create_app(FakeBackend()))
    for response in (preflight(asker, ORIGIN), asker.get("/v1/models", headers={"Origin": ORIGIN})):
        assert not [name for name in response.headers if name.startswith("access-control")]


def test_an_allowed_page_may_ask_first_without_a_key(ask):
    asker = ask(create_app(FakeBackend(), api_key="key", cors_origins=[ORIGIN]))
    response = preflight(asker, ORIGIN)
    assert response.status_code == 200
    assert response.headers["access-control-allow-origin"] == ORIGIN
    assert "x-api-key" in response.headers["access-control-allow-headers"]
    # Asking is all it may; and it can read why.
    refused = asker.get("/v1/models", headers={"Origin": ORIGIN})
    assert (refused.status_code, refused.headers["access-control-allow-origin"]) == (401, ORIGIN)


@pytest.mark.parametrize("origin", ["https://chat.example.evil", "http://chat.example", "null"])
def test_other_pages_may_not(ask, origin):
    asker = ask(create_app(FakeBackend(), api_key="key", cors_origins=[ORIGIN]))
    assert preflight(asker, origin).status_code == 400
    response = asker.get("/v1/models", headers={"Origin": origin, "x-api-key": "key"})
    assert "access-control-allow-origin" not in response.headers


@pytest.mark.parametrize("origin", ["*", "chat.example", "https://chat.example/", "https://*.example", "null"])
def test_origins_are_exact(origin):
    with pytest.raises(ConfigError, match="cors_origin"):
        ServerOptions(cors_origin=(origin,))
