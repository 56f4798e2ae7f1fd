from __future__ import annotations

import logging
import os
from datetime import datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from freehold.core.errors import ConfigError
from freehold.server.app import create_app
from freehold.server.operation.guards import OPEN_PATHS
from freehold.server.operation.key_file import add_key, revoke_key
from freehold.server.operation.keys import Keys
from freehold.server.operation.operation import Operation
from freehold.server.operation.principal import SCOPES
from support.fake_backend import FakeBackend

NOW = datetime(2026, 11, 24, 12, tzinfo=timezone.utc)


class Clock:
    """A monotonic clock and a time of day that only the test moves."""

    def __init__(self):
        self.seconds = 0.0

    def __call__(self):
        return self.seconds

    def now(self):
        return NOW + timedelta(seconds=self.seconds)


@pytest.fixture
def file(tmp_path):
    return tmp_path / "keys.json"


def app_with(file, clock=None, **options):
    backend = FakeBackend()
    clock = clock or Clock()
    keys = Keys(file, clock=clock, now=clock.now, **options)
    return create_app(backend, operation=Operation.of(backend, keys=keys))


def all_routes(routes):
    """(method, path) of everything below `routes`, however it was put there."""
    for route in routes:
        inner = getattr(route, "routes", None) or getattr(getattr(route, "original_router", None), "routes", None)
        if inner:
            yield from all_routes(inner)
        else:
            for method in sorted(getattr(route, "methods", None) or {"GET"}):
                yield method, route.path


def filled(path):
    """A path that the pattern matches."""
    return path.replace("{model_id:path}", "fake/model").replace("{", "").replace("}", "")


@pytest.mark.parametrize("headers", [{}, {"x-api-key": "wrong"}, {"Host": "models.example"}], ids=repr)
def test_without_a_key_no_route_but_health_answers(ask, headers):
    backend = FakeBackend()
    app = create_app(backend, api_key="key")
    routes = list(all_routes(app.routes))
    assert len(routes) >= 8
    assert {"/v1/chat/completions", "/metrics", "/openapi.json"} <= {path for _, path in routes}
    for method, path in routes:
        response = ask(app, **headers).request(method, filled(path), content=b"{}" if method == "POST" else None)
        assert (response.status_code == 401) == (path not in OPEN_PATHS), (method, path)
    assert backend.streams == []
    assert {"/health", "/health/ready"} == OPEN_PATHS


@pytest.mark.parametrize("path", ["/health/", "//health", "/health/../v1/models", "/HEALTH", "/v1/models/health"])
def test_paths_like_an_open_one_are_closed(ask, path):
    assert ask(create_app(FakeBackend(), api_key="key")).get(path).status_code == 401


@pytest.mark.parametrize("name", ["Authorization", "x-api-key"])
@pytest.mark.parametrize("path", ["/v1/models", "/metrics", "/openapi.json"])
def test_a_key_is_taken_in_both_ways_on_every_path(ask, name, path):
    asker = ask(create_app(FakeBackend(), api_key="key"))
    prefix = "Bearer " if name == "Authorization" else ""
    assert asker.get(path, headers={name: f"{prefix}key"}).status_code == 200
    assert asker.get(path, headers={name: f"{prefix}wrong"}).status_code == 401


def test_one_right_key_of_two_is_enough(ask):
    headers = {"Authorization": "Bearer leftover", "x-api-key": "key"}
    assert ask(create_app(FakeBackend(), api_key="key"), **headers).get("/v1/models").status_code == 200


def test_errors_have_the_form_of_the_path_s_api(ask):
    asker = ask(create_app(FakeBackend(), api_key="key"))
    body = asker.post("/v1/messages", {}).json()
    assert set(body) == {"type", "error", "request_id"}
    assert (body["type"], body["error"]["type"]) == ("error", "authentication_error")
    assert asker.post("/v1/messages/count_tokens", {}).json()["type"] == "error"
    assert "type" not in asker.post("/v1/chat/completions", {}).json()


def test_a_key_of_the_file_opens_what_its_scopes_say(ask, file):
    inference = add_key(file, "a", now=NOW)
    metrics = add_key(file, "b", now=NOW, scopes=("metrics",))
    app = app_with(file)
    opens = {
        (key, path): ask(app, Authorization=f"Bearer {key}").get(path).status_code
        for key in (inference, metrics)
        for path in ("/v1/models", "/metrics")
    }
    assert opens == {
        (inference, "/v1/models"): 200,
        (inference, "/metrics"): 403,
        (metrics, "/v1/models"): 403,
        (metrics, "/metrics"): 200,
    }


def test_what_each_scope_opens(ask, file):
    opened = {}
    for scope in SCOPES:
        key = add_key(file, scope, now=NOW, scopes=(scope,))
        asker = ask(app_with(file), Authorization=f"Bearer {key}")
        paths = ("/v1/models", "/metrics", "/v1/requests", "/admin/x")
        opened[scope] = [path for path in paths if asker.get(path).status_code != 403]
    assert opened == {
        "inference": ["/v1/models", "/v1/requests"],
        "metrics": ["/metrics"],
        "admin": ["/v1/requests", "/admin/x"],
    }


def test_the_given_key_has_every_scope_beside_the_file(ask, file):
    add_key(file, "a", now=NOW)
    asker = ask(app_with(file, api_key="word"), Authorization="Bearer word")
    assert {asker.get(path).status_code for path in ("/v1/models", "/metrics")} == {200}


def test_no_key_of_the_file_has_the_name_of_the_given_one(file):
    with pytest.raises(ConfigError, match="give this one another"):
        add_key(file, "api-key", now=NOW)
    assert not file.exists()


def test_a_changed_file_counts_within_a_second(ask, file):
    key, clock = add_key(file, "a", now=NOW), Clock()
    asker = ask(app_with(file, clock), Authorization=f"Bearer {key}")
    assert asker.get("/v1/models").status_code == 200
    revoke_key(file, "a", now=NOW)
    clock.seconds += 1.1
    assert asker.get("/v1/models").status_code == 401
    other = add_key(file, "b", now=NOW)
    clock.seconds += 1.1
    assert asker.get("/v1/models", headers={"Authorization": f"Bearer {other}"}).status_code == 200


def test_reload_does_not_wait(file):
    keys = Keys(file, clock=lambda: 0.0)
    key = add_key(file, "a", now=NOW)
    assert keys.find(key) is None
    keys.reload()
    assert keys.find(key).name == "a"


@pytest.mark.parametrize("harm", ["delete", "garbage", "readable", "all revoked"])
def test_a_server_with_keys_never_opens(ask, file, caplog, harm):
    key, clock = add_key(file, "a", now=NOW), Clock()
    asker = ask(app_with(file, clock))
    if harm == "delete":
        file.unlink()
    elif harm == "garbage":
        file.write_text("{")
    elif harm == "readable":
        file.chmod(0o644)
    else:
        revoke_key(file, "a", now=NOW)
    clock.seconds += 2
    with caplog.at_level(logging.INFO):
        assert asker.get("/v1/models").status_code == 401
    # A file that cannot be used changes nothing; one that says "no keys" does.
    kept = harm in ("garbage", "readable")
    response = asker.get("/v1/models", headers={"x-api-key": key})
    assert response.status_code == (200 if kept else 401)
    assert ("stay as they were" in caplog.text) == kept


def test_the_first_key_closes_a_keyless_server(ask, file):
    clock = Clock()
    asker = ask(app_with(file, clock))
    assert asker.get("/v1/models").status_code == 200
    add_key(file, "a", now=NOW)
    clock.seconds += 2
    assert asker.get("/v1/models").status_code == 401


def test_an_expired_key_is_told_so(ask, file):
    clock = Clock()
    key = add_key(file, "a", now=NOW, expires=(NOW + timedelta(hours=1)).isoformat())
    asker = ask(app_with(file, clock), Authorization=f"Bearer {key}")
    assert asker.get("/v1/models").status_code == 200
    clock.seconds = 3600
    response = asker.get("/v1/models")
    assert response.status_code == 401
    assert "expired" in response.json()["error"]["message"]
    # Only to who has the key: others learn nothing.
    wrong = key[:-1] + ("A" if key[-1] != "A" else "B")
    assert "expired" not in asker.get("/v1/models", headers={"Authorization": f"Bearer {wrong}"}).text


@given(st.text(max_size=80), st.integers(0, 80))
def test_only_the_whole_key_is_found(tmp_path_factory, text, cut):
    file = tmp_path_factory.getbasetemp() / "only.json"
    if not file.exists():
        key = add_key(file, "a", now=NOW)
        (file.with_suffix(".key")).write_text(key)
    key = file.with_suffix(".key").read_text()
    keys = Keys(file)
    assert keys.find(key) is not None
    for wrong in (text, key[:cut] + text, key + text, key[:cut]):
        assert keys.find(wrong) is None or wrong == key


def test_the_file_is_replaced_as_a_whole(file, monkeypatch):
    add_key(file, "a", now=NOW)
    before = file.read_text()
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(OSError, match="full"):
        add_key(file, "b", now=NOW)
    assert file.read_text() == before
    assert {path.name for path in file.parent.iterdir()} == {"keys.json", "keys.json.lock"}
