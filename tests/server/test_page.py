"""The files of the web page: who gets them, and with which headers."""

from __future__ import annotations

import base64
import re
from pathlib import Path

import pytest

from freehold.server.app import create_app
from freehold.server.routes_page import page_files
from support.fake_backend import FakeBackend

NAMES = sorted(page_files())
PATHS = ["/", *(f"/page/{name}" for name in NAMES if name != "index.html")]
HTML = {"accept": "text/html,application/xhtml+xml,*/*;q=0.8"}


def basic(password: str) -> dict[str, str]:
    return {"authorization": "Basic " + base64.b64encode(f"me:{password}".encode()).decode()}


@pytest.mark.parametrize("path", PATHS)
def test_every_file_comes_with_strict_headers(ask, path):
    response = ask(create_app(FakeBackend())).get(path)
    assert response.status_code == 200
    policy = dict(part.split(" ", 1) for part in response.headers["content-security-policy"].split("; "))
    assert policy["default-src"] == policy["base-uri"] == policy["frame-ancestors"] == policy["form-action"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert response.headers["x-content-type-options"] == "nosniff"
    assert response.headers["referrer-policy"] == "no-referrer"


@pytest.mark.parametrize("path", PATHS)
def test_a_file_that_the_browser_has_is_not_sent_again(ask, path):
    asker = ask(create_app(FakeBackend()))
    etag = asker.get(path).headers["etag"]
    for given in (etag, f'"other", W/{etag}'):
        again = asker.get(path, headers={"if-none-match": given})
        assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", etag)
    assert asker.get(path, headers={"if-none-match": '"other"'}).status_code == 200


def test_head_has_the_headers_alone(ask):
    asker = ask(create_app(FakeBackend()))
    head, whole = asker.request("HEAD", "/"), asker.get("/")
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["etag"] == whole.headers["etag"]


@pytest.mark.parametrize("name", ["none.js", "index.html", "..%2Frun.py", "%2e%2e/run.py", "a/app.js"])
def test_there_is_nothing_else_to_get(ask, name):
    assert ask(create_app(FakeBackend())).get(f"/page/{name}").status_code == 404


@pytest.mark.parametrize("path", PATHS)
def test_without_the_key_there_is_no_page(ask, path):
    app = create_app(FakeBackend(), api_key="k")
    for headers in ({}, basic("wrong"), basic(""), {"authorization": "Basic ???"}, {"authorization": "Basic"}):
        assert ask(app).get(path, headers=headers | HTML).status_code == 401
    assert ask(app, Authorization="Bearer k").get(path).status_code == 200
    assert ask(app).get(path, headers=basic("k")).status_code == 200


def test_browsers_are_asked_for_the_key_and_other_clients_are_not(ask):
    asker = ask(create_app(FakeBackend(), api_key="k"))
    assert asker.get("/", headers=HTML).headers["www-authenticate"].startswith("Basic ")
    assert asker.get("/").headers["www-authenticate"] == "Bearer"
    assert asker.get("/v1/models", headers=HTML).headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize("path", ["/v1/models", "/v1/requests", "/metrics", "/openapi.json", "/page"])
def test_a_password_opens_nothing_but_the_page(ask, path):
    asker = ask(create_app(FakeBackend(), api_key="k"))
    assert asker.get(path, headers=basic("k")).status_code == 401
    assert asker.request("POST", "/v1/chat/completions", json={}, headers=basic("k")).status_code == 401
    assert asker.request("POST", "/", json={}, headers=basic("k")).status_code == 401


def test_a_key_may_hold_a_colon_and_any_letters(ask):
    app = create_app(FakeBackend(), api_key="k:ü")
    assert ask(app).get("/", headers=basic("k:ü")).status_code == 200


def test_a_foreign_name_for_this_machine_gets_no_page(ask):
    response = ask(create_app(FakeBackend())).get("/", headers={"host": "elsewhere.example"})
    assert response.status_code == 403


def test_the_page_names_files_that_exist_and_no_other_place():
    kept = page_files()
    texts = {name: file.body.decode() for name, file in kept.items()}
    html = texts["index.html"]
    assert set(re.findall(r'(?:src|href)="(?!#)([^"]+)"', html)) <= {f"page/{name}" for name in kept}
    for name, text in texts.items():
        assert set(re.findall(r'from "\./([^"]+)"', text)) <= set(kept), name
        assert not re.search(r"(?:https?:)?//\w+\.\w", text.replace("http://www.w3.org/2000/svg", "")), name
    assert not re.search(r"<script(?![^>]*\bsrc=)|\son\w+=|<style|\sstyle=", html)


def test_no_script_makes_html_of_text():
    sinks = re.compile(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|DOMParser|\beval\b|new Function|srcdoc")
    found = {name: sinks.findall(file.body.decode()) for name, file in page_files().items()}
    assert {name: names for name, names in found.items() if names} == {}


def test_every_file_of_the_folder_is_served():
    folder = Path(page_files.__code__.co_filename).parent / "page"
    assert sorted(path.name for path in folder.iterdir()) == NAMES
