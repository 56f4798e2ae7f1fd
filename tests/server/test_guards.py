from __future__ import annotations

import gzip
import json
import logging

import pytest

from freehold.core.errors import ConfigError
from freehold.server.app import create_app
from freehold.server.json_body import MAX_JSON_DEPTH
from support.fake_backend import FakeBackend

CHAT = {"model": "fake/model", "messages": [{"role": "user", "content": "hi"}]}
JSON = {"Content-Type": "application/json"}


def error_of(response):
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return response.status_code, error["code"]


@pytest.mark.parametrize(
    "header",
    [
        None,
        "Bearer",
        "Bearer ",
        "Bearer wrong",
        "Bearer key1",
        "Bearer KEY",
        "key",
        "Basic key",
        "Bearer k\xe9y",
    ],
)
def test_without_the_key_nothing_is_answered(ask, header):
    backend = FakeBackend()
    headers = {"Authorization": header.encode("latin-1")} if header is not None else {}
    asker = ask(create_app(backend, api_key="key"), **headers)
    for response in (
        asker.chat(),
        asker.get("/v1/models"),
        asker.get("/openapi.json"),
        asker.get("/nowhere"),
    ):
        assert error_of(response) == (401, "invalid_api_key")
    assert backend.streams == []


@pytest.mark.parametrize("header", ["Bearer key", "bearer key", "Bearer  key "])
def test_with_the_key_everything_is(ask, header):
    asker = ask(create_app(FakeBackend(), api_key="key"), Authorization=header)
    assert asker.chat().status_code == 200
    assert asker.get("/v1/models", headers={"Host": "models.example"}).status_code == 200


@pytest.mark.parametrize("key", ["", "  "])
def test_an_empty_key_is_no_key(key):
    with pytest.raises(ConfigError, match="empty"):
        create_app(FakeBackend(), api_key=key)


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8000", "localhost.evil.example", "10.0.0.1", ""])
def test_without_a_key_only_names_of_this_machine_are_served(ask, host):
    response = ask(create_app(FakeBackend())).get("/v1/models", headers={"Host": host})
    assert error_of(response) == (403, "host_not_allowed")


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:80", "127.0.0.1:8000", "[::1]:8000", "[::1]", "a.localhost"])
def test_names_of_this_machine(ask, host):
    assert ask(create_app(FakeBackend())).get("/v1/models", headers={"Host": host}).status_code == 200


def test_the_body_limit_is_exact(ask):
    backend = FakeBackend()
    asker = ask(create_app(backend, max_body_bytes=1000))
    filler = 1000 - len(b'{"model":"fake/model","messages":[{"role":"user","content":""}]}')
    for extra, status in ((0, 200), (1, 413), (100_000, 413)):
        body = b'{"model":"fake/model","messages":[{"role":"user","content":"%s"}]}' % (b"x" * (filler + extra))
        response = asker.request("POST", "/v1/chat/completions", content=body, headers=JSON)
        assert response.status_code == status
    assert error_of(response) == (413, "body_too_large")
    assert "1000 bytes" in response.json()["error"]["message"]
    assert len(backend.streams) == 1


@pytest.mark.parametrize("content_type", [None, "text/plain", "application/x-www-form-urlencoded"])
def test_what_a_web_page_may_send_unasked_is_refused(ask, content_type):
    headers = {"Content-Type": content_type} if content_type else {}
    response = ask(create_app(FakeBackend())).request("POST", "/v1/chat/completions", content=b"{}", headers=headers)
    assert error_of(response) == (415, "unsupported_media_type")


@pytest.mark.parametrize("coding", ["gzip", "GZIP", "br", "zstd, gzip", "identity, deflate"])
def test_a_compressed_body_is_refused_by_the_name_of_its_header(ask, coding):
    backend = FakeBackend()
    headers = {**JSON, "Content-Encoding": coding}
    body = gzip.compress(json.dumps(CHAT).encode())
    response = ask(create_app(backend)).request("POST", "/v1/chat/completions", content=body, headers=headers)
    assert error_of(response) == (415, "unsupported_content_encoding")
    assert "Content-Encoding" in response.json()["error"]["message"]
    assert response.headers["accept-encoding"] == "identity"
    assert backend.streams == []


@pytest.mark.parametrize("coding", ["", "identity", "Identity"])
def test_a_body_that_is_declared_to_be_plain_is_read(ask, coding):
    headers = {**JSON, "Content-Encoding": coding}
    response = ask(create_app(FakeBackend())).request(
        "POST", "/v1/chat/completions", content=json.dumps(CHAT), headers=headers
    )
    assert response.status_code == 200


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b'"x"',
        b"\xff\xfe",
        b'{"model": "\xff"}',
        b'{"model": "\\ud800"}',
        b'{"model": NaN}',
        b'{"model": ' + b"9" * 5000 + b"}",
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'{"messages": ' + b"[" * 150 + b"]" * 150 + b"}",
        b"[" * (MAX_JSON_DEPTH + 1) + b"]" * (MAX_JSON_DEPTH + 1),
    ],
    ids=lambda body: repr(body[:12]),
)
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
def test_hostile_bodies_are_the_client_s_error(ask, path, body):
    response = ask(create_app(FakeBackend())).request("POST", path, content=body, headers=JSON)
    assert error_of(response)[0] == 400


@pytest.mark.parametrize("number", [b"NaN", b"Infinity", b"-Infinity"])
def test_numbers_that_json_does_not_have(ask, number):
    body = b'{"model":"fake/model","messages":[{"role":"user","content":"a"}],"chat_template_kwargs":{"a":%s}}'
    asker = ask(create_app(FakeBackend()))
    for value, status in ((b"1", 200), (number, 400)):
        response = asker.request("POST", "/v1/chat/completions", content=body % value, headers=JSON)
        assert response.status_code == status


def test_nesting_is_allowed_up_to_the_limit(ask):
    def nested(depth):
        return {"a": nested(depth - 1)} if depth else 0

    # The body itself and `chat_template_kwargs` are two levels.
    asker = ask(create_app(FakeBackend()))
    assert asker.chat(chat_template_kwargs=nested(MAX_JSON_DEPTH - 1)).status_code == 200
    response = asker.chat(chat_template_kwargs=nested(MAX_JSON_DEPTH))
    assert response.status_code == 400
    assert "nested" in response.json()["error"]["message"]


def test_unknown_paths_and_methods_have_the_same_form_of_error(ask):
    asker = ask(create_app(FakeBackend()))
    assert error_of(asker.get("/v1/nowhere")) == (404, "not_found")
    response = asker.get("/v1/chat/completions")
    assert error_of(response) == (405, "method_not_allowed")
    assert response.headers["allow"] == "POST"


@pytest.mark.parametrize("stream", [False, True])
def test_an_error_of_ours_hides_its_text_from_client_and_log(ask, caplog, stream):
    backend = FakeBackend()

    def broken(conversation, *, client):
        raise KeyError(f"SECRET {conversation}") from ValueError("SECRET")

    backend.prepare_chat = broken
    with caplog.at_level(logging.DEBUG):
        response = ask(create_app(backend)).chat(stream=stream, messages=[{"role": "user", "content": "PRIVATE"}])
    assert error_of(response) == (500, "internal_error")
    request_id = response.headers["x-request-id"]
    assert request_id in response.json()["error"]["message"]
    assert request_id in caplog.text
    assert "KeyError" in caplog.text
    assert "in broken" in caplog.text
    for text in (response.text, caplog.text):
        assert "SECRET" not in text
        assert "PRIVATE" not in text


def test_no_prompt_and_no_answer_in_the_log(ask, caplog):
    with caplog.at_level(logging.DEBUG):
        asker = ask(create_app(FakeBackend()))
        asker.chat(messages=[{"role": "user", "content": "PRIVATE"}])
        asker.chat(messages=[{"role": "PRIVATE", "content": "PRIVATE"}])
        asker.request("POST", "/v1/completions", content=b"PRIVATE", headers=JSON)
    assert "PRIVATE" not in caplog.text
    assert "world" not in caplog.text


@pytest.mark.parametrize(
    "options", [{"max_body_bytes": 0}, {"keepalive_seconds": 0}, {"keepalive_seconds": float("nan")}]
)
def test_limits_must_be_positive(options):
    with pytest.raises(ConfigError, match=next(iter(options))):
        create_app(FakeBackend(), **options)
