"""Images over HTTP: the same prompt through each API, with a model that sees."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi import FastAPI
from PIL import Image

import freehold
from freehold.cli.served_model import ServedModel
from freehold.server.app import create_app
from support.tiny_m3 import SHAPES, write_tiny_m3

NAME = "seeing"


def _png(seed: int) -> bytes:
    out = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (56, 84, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def _url(data: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(data).decode()


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[freehold.LLM]:
    directory = tmp_path_factory.mktemp("served") / NAME
    write_tiny_m3(SHAPES["release_selection"], directory)
    with freehold.LLM(directory, cache_tokens=8192) as loaded:
        yield loaded


@pytest.fixture(scope="module")
def app(llm: freehold.LLM) -> Iterator[FastAPI]:
    with ServedModel(llm) as model:
        yield create_app(model)


def _bodies(llm: freehold.LLM, data: bytes) -> dict[str, dict[str, Any]]:
    """One question about one image, in the words of each API."""
    common = {"model": llm.name, "temperature": 0.0}
    blocks = [
        {"type": "image", "source": {"type": "base64", "media_type": "image/png",
                                     "data": base64.b64encode(data).decode()}},
        {"type": "text", "text": "What is it?"},
    ]  # fmt: skip
    parts = [{"type": "image_url", "image_url": {"url": _url(data), "detail": "auto"}},
             {"type": "text", "text": "\n\nWhat is it?"}]  # fmt: skip
    items = [{"type": "input_image", "image_url": _url(data), "detail": "high"},
             {"type": "input_text", "text": "\n\nWhat is it?"}]  # fmt: skip
    return {
        "/v1/chat/completions": {**common, "messages": [{"role": "user", "content": parts}], "max_tokens": 5},
        "/v1/responses": {**common, "input": [{"role": "user", "content": items}], "max_output_tokens": 5},
        "/v1/messages": {**common, "messages": [{"role": "user", "content": blocks}], "max_tokens": 5},
    }


def _prompt_tokens(path: str, body: dict[str, Any]) -> tuple[int, int]:
    """Tokens of the prompt, and how many were found in the cache."""
    usage = body["usage"]
    if path == "/v1/chat/completions":
        return usage["prompt_tokens"], usage["prompt_tokens_details"]["cached_tokens"]
    if path == "/v1/responses":
        return usage["input_tokens"], usage["input_tokens_details"]["cached_tokens"]
    return usage["input_tokens"] + usage["cache_read_input_tokens"], usage["cache_read_input_tokens"]


def test_all_apis_make_one_prompt_of_an_image(ask: Any, app: FastAPI, llm: freehold.LLM) -> None:
    """What one API computed is found by the others, up to the last token; another image is not found."""
    messages = [
        {"role": "user", "content": [{"type": "image", "image": _png(1)}, {"type": "text", "text": "\n\nWhat is it?"}]}
    ]
    expected = len(llm.prompt(messages)[0])
    for number, (path, body) in enumerate(_bodies(llm, _png(1)).items()):
        response = ask(app).post(path, body)
        assert response.status_code == 200, response.text
        total, cached = _prompt_tokens(path, response.json())
        assert total == expected, path
        assert number == 0 or cached == total - 1, path
    opens = llm.prompt(messages)[1][0].runs[0].start - 1
    for path, body in _bodies(llm, _png(2)).items():
        total, cached = _prompt_tokens(path, ask(app).post(path, body).json())
        assert total == expected
        assert cached <= opens or path != "/v1/chat/completions"


def test_streams_and_counts_take_images(ask: Any, app: FastAPI, llm: freehold.LLM) -> None:
    bodies = _bodies(llm, _png(3))
    for path, body in bodies.items():
        response = ask(app).post(path, {**body, "stream": True})
        assert response.status_code == 200
        assert "data:" in response.text
    body = {k: v for k, v in bodies["/v1/messages"].items() if k in ("model", "messages")}
    counted = ask(app).post("/v1/messages/count_tokens", body).json()["input_tokens"]
    assert counted == _prompt_tokens("/v1/messages", ask(app).post("/v1/messages", bodies["/v1/messages"]).json())[0]


def test_results_of_tools_may_hold_images(ask: Any, app: FastAPI, llm: freehold.LLM) -> None:
    image = _bodies(llm, _png(4))["/v1/messages"]["messages"][0]["content"][0]
    call = {"type": "tool_use", "id": "t1", "name": "look", "input": {}}
    messages = [
        {"role": "user", "content": "Look."},
        {"role": "assistant", "content": [call]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t1", "content": [image]}]},
    ]
    body = {"model": llm.name, "messages": messages, "max_tokens": 2}
    seen = ask(app).post("/v1/messages", body)
    assert seen.status_code == 200, seen.text
    messages[2]["content"][0]["content"] = []
    blind = ask(app).post("/v1/messages", body)
    rows = 6  # 56 x 84 pixels
    assert _prompt_tokens("/v1/messages", seen.json())[0] == _prompt_tokens("/v1/messages", blind.json())[0] + rows + 2


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("https://example.org/cat.png", "is not fetched"),
        ("file:///etc/passwd", "is not fetched"),
        ("/etc/passwd", "is no data URL"),
        ("data:image/png;base64,AAAA", "known are PNG"),
    ],
)
def test_what_cannot_be_seen_is_refused_with_its_place(
    ask: Any, app: FastAPI, llm: freehold.LLM, url: str, said: str
) -> None:
    for path, place in (
        ("/v1/chat/completions", "messages[0].content[0]"),
        ("/v1/responses", "input[0].content[0]"),
    ):
        body = _bodies(llm, _png(1))[path]
        content = (body.get("messages") or body["input"])[0]["content"]
        content[0]["image_url"] = {"url": url} if path == "/v1/chat/completions" else url
        response = ask(app).post(path, body)
        error = response.json()["error"]
        assert (response.status_code, error["param"]) == (400, place)
        assert said in error["message"]


def test_the_model_says_what_it_takes(ask: Any, app: FastAPI) -> None:
    (card,) = ask(app).get("/v1/models").json()["data"]
    assert card["input_modalities"] == ["text", "image", "video"]


def test_no_file_of_the_server_is_read(ask: Any, app: FastAPI, llm: freehold.LLM, tmp_path: Path) -> None:
    """However a client writes the path of an image that is really there."""
    (tmp_path / "x.png").write_bytes(_png(5))
    for source in (str(tmp_path / "x.png"), f"file://{tmp_path}/x.png", "x.png"):
        body = _bodies(llm, _png(1))["/v1/chat/completions"]
        body["messages"][0]["content"][0]["image_url"] = {"url": source}
        assert ask(app).post("/v1/chat/completions", body).status_code == 400
    for field in ("path", "image", "where", "otherwise", "rows", "digest"):
        body = _bodies(llm, _png(1))["/v1/chat/completions"]
        body["messages"][0]["content"][0][field] = str(tmp_path / "x.png")
        assert ask(app).post("/v1/chat/completions", body).json()["error"]["param"] == f"messages[0].content[0].{field}"
