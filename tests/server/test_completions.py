from __future__ import annotations

import pytest

from freehold.core.events import FinishEvent, TokenEvent, Usage
from freehold.core.logprobs import TokenLogprobs
from freehold.server.app import create_app
from support.fake_backend import FakeBackend, FakeStream, Script


def echo() -> FakeBackend:
    """Answers with the prompt in brackets."""
    return FakeBackend(lambda prompt, _: Script([f"<{prompt}>".encode()], prefill=0.01))


@pytest.mark.parametrize(
    ("prompt", "texts"),
    [
        ("ab", ["<ab>"]),
        (["ab", "c"], ["<ab>", "<c>"]),
        ([97, 98], ["<ab>"]),
        ([[97, 98], [99]], ["<ab>", "<c>"]),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_every_form_of_prompt(ask, chunks_of, prompt, texts, stream):
    response = ask(create_app(echo())).complete(prompt=prompt, stream=stream)
    got = [""] * len(texts)
    parts = chunks_of(response) if stream else [response.json()]
    for part in parts:
        assert part["object"] == "text_completion"
        for choice in part["choices"]:
            got[choice["index"]] += choice["text"]
    assert got == texts


def test_choices_are_ordered_by_prompt_and_usage_is_added_up(ask):
    body = ask(create_app(echo())).complete(prompt=["ab", "c"], n=2).json()
    assert [(choice["index"], choice["text"]) for choice in body["choices"]] == [
        (0, "<ab>"),
        (1, "<ab>"),
        (2, "<c>"),
        (3, "<c>"),
    ]
    assert (body["usage"]["prompt_tokens"], body["usage"]["completion_tokens"]) == (3, 4)


def test_the_default_length_is_openai_s(ask):
    backend = FakeBackend(Script([b"x"] * 50))
    body = ask(create_app(backend)).complete().json()
    assert body["choices"][0]["text"] == "x" * 16
    assert body["choices"][0]["finish_reason"] == "length"


def test_the_usage_chunk(ask, chunks_of):
    app = create_app(FakeBackend())
    *chunks, last = chunks_of(ask(app).complete(stream=True, stream_options={"include_usage": True}))
    assert last["choices"] == []
    assert last["usage"]["total_tokens"] == 5
    assert all(chunk["usage"] is None for chunk in chunks)
    assert all("usage" not in chunk for chunk in chunks_of(ask(app).complete(stream=True)))


@pytest.mark.parametrize("prompt", ["", [], [[]], ["a", ""], [97, "a"], [-1], [1.5], [True], None, {}, [2**31]])
def test_prompts_that_are_none(ask, prompt):
    response = ask(create_app(FakeBackend())).complete(prompt=prompt)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "prompt"


def test_a_token_that_the_engine_refuses_is_the_client_s_error(ask):
    response = ask(create_app(FakeBackend())).complete(prompt=[300])
    assert response.status_code == 400
    assert "300" in response.json()["error"]["message"]


def test_too_many_answers_are_refused(ask):
    response = ask(create_app(FakeBackend())).complete(prompt=["a"] * 10, n=16)
    assert (response.status_code, response.json()["error"]["param"]) == (400, "prompt")


def test_offsets_of_streamed_tokens_are_their_own_while_their_text_is_held_back(ask, chunks_of, monkeypatch):
    """As while it could still become a stop text, or the rest of a character is missing."""

    async def held_back(stream):
        for token, text in ((b"a", "a"), (b"b", ""), (b"\xc3", ""), (b"\xa9", "b\u00e9"), (b"c", "c")):
            yield TokenEvent(stream.request_id, token[0], text, TokenLogprobs(-0.5))
        yield FinishEvent(stream.request_id, "stop", Usage(2, 0, 5))

    monkeypatch.setattr(FakeStream, "__aiter__", held_back)
    asker = ask(create_app(FakeBackend()))
    whole = asker.complete(logprobs=0).json()["choices"][0]
    chunks = [chunk["choices"][0] for chunk in chunks_of(asker.complete(logprobs=0, stream=True))]
    assert "".join(chunk["text"] for chunk in chunks) == whole["text"] == "ab\u00e9c"
    offsets = [offset for chunk in chunks if chunk["logprobs"] for offset in chunk["logprobs"]["text_offset"]]
    assert offsets == whole["logprobs"]["text_offset"] == [0, 1, 2, 2, 3]
