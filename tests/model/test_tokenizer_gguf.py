"""Tokenizers from GGUF metadata: the same ids as from a tokenizer.json, and no guessing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from freehold.core.errors import TokenizerError
from freehold.model.tokenizer import Tokenizer
from freehold.model.tokenizer_pre import PRE_TOKENIZERS
from support.byte_tokenizer import SPECIAL_TOKENS, write_byte_tokenizer


@pytest.fixture(scope="module")
def from_json(tmp_path_factory: pytest.TempPathFactory) -> tuple[Tokenizer, dict[str, Any]]:
    """A tokenizer, and the same as GGUF metadata."""
    path: Path = tmp_path_factory.mktemp("tokenizer")
    write_byte_tokenizer(path)
    document = json.loads((path / "tokenizer.json").read_text())
    ids = dict(document["model"]["vocab"])
    ids.update({token["content"]: token["id"] for token in document["added_tokens"]})
    tokens = sorted(ids, key=lambda token: ids[token])
    metadata = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "minimax-m2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3 if token in SPECIAL_TOKENS else 1 for token in tokens],
        "tokenizer.ggml.merges": [" ".join(pair) for pair in document["model"]["merges"]],
        "tokenizer.ggml.bos_token_id": ids["]~b]"],
        "tokenizer.ggml.eos_token_id": ids["[e~["],
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.chat_template": "the template",
    }
    return Tokenizer.from_directory(path), metadata


@pytest.fixture(scope="module")
def from_gguf(from_json: tuple[Tokenizer, dict[str, Any]]) -> Tokenizer:
    return Tokenizer.from_gguf(from_json[1])


@pytest.fixture
def metadata(from_json: tuple[Tokenizer, dict[str, Any]]) -> dict[str, Any]:
    return dict(from_json[1])


@given(text=st.text() | st.lists(st.sampled_from([*SPECIAL_TOKENS, "the ", " a", "\r\n", "12"])).map("".join))
def test_metadata_encodes_as_the_json_does(
    from_json: tuple[Tokenizer, dict[str, Any]], from_gguf: Tokenizer, text: str
) -> None:
    for allow_special in (False, True):
        expected = from_json[0].encode(text, allow_special=allow_special)
        assert from_gguf.encode(text, allow_special=allow_special) == expected


def test_facts_come_from_the_metadata(from_json: tuple[Tokenizer, dict[str, Any]]) -> None:
    expected, metadata = from_json
    tokenizer = Tokenizer.from_gguf(metadata | {"tokenizer.ggml.eot_token_id": 5, "tokenizer.ggml.eom_token_id": 6})
    assert tokenizer.eos_ids == expected.eos_ids | {5, 6}
    assert (tokenizer.bos_id, tokenizer.add_bos) == (expected.bos_id, False)
    assert (tokenizer.vocab_size, tokenizer.special_ids) == (expected.vocab_size, expected.special_ids)
    assert tokenizer.chat_template == "the template"
    assert tokenizer.eos_token == "[e~["


@pytest.mark.parametrize("pre", sorted(PRE_TOKENIZERS))
def test_every_known_pre_tokenizer_keeps_every_character(metadata: dict[str, Any], pre: str) -> None:
    text = "It's 12345 Größen,\r\n\t«ok»  \u3000日本語/ABCdef 👍🏽\n\n"
    tokenizer = Tokenizer.from_gguf(metadata | {"tokenizer.ggml.pre": pre})
    assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize("pre", ["default", "gpt2", "MINIMAX-M2", ""])
def test_an_unknown_pre_tokenizer_is_refused_and_the_known_ones_named(metadata: dict[str, Any], pre: str) -> None:
    with pytest.raises(TokenizerError, match=f"pre-tokenizer '{pre}'.*smollm"):
        Tokenizer.from_gguf(metadata | {"tokenizer.ggml.pre": pre})


def test_an_absent_pre_tokenizer_is_refused(metadata: dict[str, Any]) -> None:
    del metadata["tokenizer.ggml.pre"]
    with pytest.raises(TokenizerError, match=r"does not say which pre-tokenizer.*smollm"):
        Tokenizer.from_gguf(metadata)


@pytest.mark.parametrize(("model", "way_out"), [("llama", "sentencepiece.*tokenizer.json"), ("bert", "'bert'")])
def test_other_kinds_of_vocabulary_are_refused(metadata: dict[str, Any], model: str, way_out: str) -> None:
    with pytest.raises(TokenizerError, match=way_out):
        Tokenizer.from_gguf(metadata | {"tokenizer.ggml.model": model})


@pytest.mark.parametrize("name", ["model", "tokens", "token_type", "merges"])
def test_an_absent_key_is_named(metadata: dict[str, Any], name: str) -> None:
    del metadata[f"tokenizer.ggml.{name}"]
    with pytest.raises(TokenizerError, match=name):
        Tokenizer.from_gguf(metadata)


def test_arrays_that_contradict_each_other_are_refused(metadata: dict[str, Any]) -> None:
    tokens, kinds = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.token_type"]
    with pytest.raises(TokenizerError, match=f"{len(tokens)} tokens but {len(tokens) - 1} token types"):
        Tokenizer.from_gguf(metadata | {"tokenizer.ggml.token_type": kinds[:-1]})
    with pytest.raises(TokenizerError, match="'!' stands in the vocabulary twice"):
        Tokenizer.from_gguf(
            metadata | {"tokenizer.ggml.tokens": [*tokens, "!"], "tokenizer.ggml.token_type": [*kinds, 1]}
        )
    for merge in ("th", "t ", "t nothing"):
        with pytest.raises(TokenizerError, match="merge"):
            Tokenizer.from_gguf(metadata | {"tokenizer.ggml.merges": [merge]})


def test_user_defined_tokens_are_matched_always_and_are_not_special(metadata: dict[str, Any]) -> None:
    kinds = list(metadata["tokenizer.ggml.token_type"])
    index = metadata["tokenizer.ggml.tokens"].index("<mm:think>")
    kinds[index] = 4
    tokenizer = Tokenizer.from_gguf(metadata | {"tokenizer.ggml.token_type": kinds})
    assert tokenizer.encode("<mm:think>") == [index]
    assert index not in tokenizer.special_ids
    assert tokenizer.decode([index]) == "<mm:think>"


@pytest.mark.parametrize(("pre", "num_tokens"), [("llama-bpe", 1), ("smaug-bpe", 2)])
def test_a_whole_word_of_the_vocabulary_needs_no_merges_in_llama_3(
    metadata: dict[str, Any], pre: str, num_tokens: int
) -> None:
    tokens, kinds = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.token_type"]
    more = {"tokenizer.ggml.tokens": [*tokens, "thex"], "tokenizer.ggml.token_type": [*kinds, 1]}
    tokenizer = Tokenizer.from_gguf(metadata | more | {"tokenizer.ggml.pre": pre})
    assert len(tokenizer.encode("thex", add_bos=False)) == num_tokens


@pytest.mark.parametrize(("pre", "add_bos"), [("llama-bpe", True), ("minimax-m2", False), ("smollm", False)])
def test_where_a_file_does_not_say_the_family_decides_about_bos(
    metadata: dict[str, Any], pre: str, add_bos: bool
) -> None:
    del metadata["tokenizer.ggml.add_bos_token"]
    assert Tokenizer.from_gguf(metadata | {"tokenizer.ggml.pre": pre}).add_bos is add_bos
