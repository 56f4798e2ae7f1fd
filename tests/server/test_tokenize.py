"""What a text becomes, by /v1/tokenize and in /v1/completions; special tokens are read only where they are meant."""

from __future__ import annotations

import pytest

from freehold.core.logprobs import TokenLogprobs
from freehold.server.app import create_app
from freehold.server.openai.logprobs import text_logprobs
from support.fake_backend import FakeBackend

PATHS = ("/v1/tokenize", "/tokenize")
SPECIAL = "<bos>hi<eos>"


class Beginning(FakeBackend):
    """A model whose files ask for a BOS token."""

    def encode(self, text, *, special, add_bos):
        return super().encode(text, special=special, add_bos=add_bos is not False)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    ("fields", "tokens"),
    [
        ({}, b"\x02hi\x03"),
        ({"parse_special": True}, b"\x02hi\x03"),
        ({"parse_special": False}, SPECIAL.encode()),
        ({"add_special_tokens": False}, b"\x02hi\x03"),
    ],
)
def test_special_tokens_of_a_text(ask, path, fields, tokens):
    backend = FakeBackend()
    asker = ask(create_app(backend))
    body = asker.post(path, {"prompt": SPECIAL, "return_token_strs": True, **fields}).json()
    assert bytes(body["tokens"]) == tokens
    assert (body["count"], len(body["token_strs"])) == (len(tokens), len(tokens))
    assert asker.complete(prompt=SPECIAL, **fields).status_code == 200
    assert bytes(backend.streams[-1].prompt_ids) == tokens


def test_a_bos_token_comes_first_unless_it_is_not_wanted(ask):
    backend = Beginning()
    asker = ask(create_app(backend))
    for fields, tokens in (({}, b"\x02hi"), ({"add_special_tokens": True}, b"\x02hi"),
                           ({"add_special_tokens": False}, b"hi")):  # fmt: skip
        assert bytes(asker.post("/v1/tokenize", {"prompt": "hi", **fields}).json()["tokens"]) == tokens
        asker.complete(prompt="hi", **fields)
        assert bytes(backend.streams[-1].prompt_ids) == tokens


@pytest.mark.parametrize("path", ["/v1/detokenize", "/detokenize"])
def test_tokens_become_their_text(ask, path):
    assert ask(create_app(FakeBackend())).post(path, {"tokens": [104, 105]}).json() == {"prompt": "hi"}


@pytest.mark.parametrize("name", ["add_special_tokens", "parse_special"])
def test_chats_write_their_special_tokens_themselves(ask, name):
    body = {"messages": [{"role": "user", "content": "hi"}], name: True}
    response = ask(create_app(FakeBackend())).post("/v1/tokenize", body)
    assert (response.status_code, response.json()["error"]["param"]) == (400, name)


def test_the_tokenizer_tells_its_special_tokens(ask):
    info = ask(create_app(FakeBackend())).get("/tokenizer_info").json()
    assert info == {"bos_token": "<bos>", "eos_token": "<eos>", "chat_template": None}


def test_of_tokens_with_the_same_text_the_likeliest_is_told():
    """Whoever asks whether a token is the likeliest compares its probability with the largest."""
    texts = {1: b"same", 2: b"same", 3: b"other"}
    found = TokenLogprobs(-3.0, ((1, -0.5), (3, -1.0), (2, -3.0)))
    assert text_logprobs([(2, found)], texts.__getitem__).top_logprobs == [{"same": -0.5, "other": -1.0}]


def test_unknown_ids_are_named(ask):
    response = ask(create_app(FakeBackend())).post("/v1/detokenize", {"tokens": [104, 256]})
    assert (response.status_code, response.json()["error"]["param"]) == (400, "tokens[1]")
