from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import httpx
import openai
import pytest
from fastapi import FastAPI

from freehold.server.app import create_app
from support.page_browser import open_browser, open_page
from support.served_app import served


class Asker:
    """Requests to an application, without a socket."""

    def __init__(self, app: FastAPI, **headers: str) -> None:
        self._app = app
        self._headers = headers

    def request(self, method: str, path: str, **options: Any) -> httpx.Response:
        async def ask() -> httpx.Response:
            transport = httpx.ASGITransport(self._app)
            async with httpx.AsyncClient(
                transport=transport, base_url="http://localhost", headers=self._headers
            ) as client:
                return await client.request(method, path, **options)

        return asyncio.run(ask())

    def get(self, path: str, **options: Any) -> httpx.Response:
        return self.request("GET", path, **options)

    def post(self, path: str, body: Any) -> httpx.Response:
        return self.request("POST", path, json=body)

    def chat(self, **fields: Any) -> httpx.Response:
        body = {"model": "fake/model", "messages": [{"role": "user", "content": "hi"}], **fields}
        return self.post("/v1/chat/completions", body)

    def complete(self, **fields: Any) -> httpx.Response:
        return self.post("/v1/completions", {"model": "fake/model", "prompt": "hi", **fields})


@pytest.fixture(autouse=True)
def _logs_as_they_were() -> None:
    """Servers that run inside of this process set the loggers' levels; no test hears less for another's."""
    names = ("freehold", "freehold.access", "uvicorn")
    for logger in map(logging.getLogger, names):
        logger.setLevel(logging.NOTSET)
    logging.getLogger("freehold").propagate = True


@pytest.fixture
def ask() -> type[Asker]:
    return Asker


@pytest.fixture
def chunks_of() -> Callable[[httpx.Response], list[dict[str, Any]]]:
    """The JSON chunks of a whole event stream, without [DONE], whose place is checked."""

    def parse(response: httpx.Response) -> list[dict[str, Any]]:
        assert response.headers["content-type"].startswith("text/event-stream")
        data = [line[6:] for line in response.text.split("\n") if line.startswith("data: ")]
        assert data[-1] == "[DONE]"
        return [json.loads(text) for text in data[:-1]]

    return parse


@pytest.fixture(scope="session")
def running() -> Callable[[FastAPI], contextlib.AbstractContextManager[str]]:
    """`with running(app) as url:` serves `app` on a socket, in a thread."""

    return partial(served, log_level="warning", lifespan="off")


@pytest.fixture
def until() -> Callable[[Callable[[], bool]], None]:
    """`until(condition)` waits for it, at most five seconds."""

    def wait(condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 5
        while not condition():
            assert time.monotonic() < deadline, "it did not happen within five seconds"
            time.sleep(0.01)

    return wait


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A browser, open as long as a module runs: while it is, its thread has an event loop and can have no other."""
    with open_browser() as opened:
        yield opened


@pytest.fixture
def visit(browser: Any, running: Callable[[FastAPI], Any]) -> Callable[..., contextlib.AbstractContextManager[Any]]:
    """`with visit(app) as page:` serves `app` and opens its web page; options: see open_page."""

    @contextlib.contextmanager
    def visit_app(app: FastAPI, **options: Any) -> Iterator[Any]:
        with running(app) as url, open_page(browser, url, **options) as page:
            yield page

    return visit_app


@pytest.fixture
def connect(running) -> Iterator[object]:
    """`connect(backend)` serves it and gives an official OpenAI client."""
    open_things = []

    def start(backend, **options):
        server = running(create_app(backend, api_key="key", **options))
        url = server.__enter__()
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="key", max_retries=0)
        open_things.append((client, server))
        return client

    yield start
    for client, server in open_things:
        client.close()
        server.__exit__(None, None, None)
