"""The tokenizer inside a GGUF file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from tokenizers import AddedToken

from freehold.core.errors import TokenizerError
from freehold.model.tokenizer_parts import TokenizerParts, build_byte_level
from freehold.model.tokenizer_pre import pre_tokenizer

_KEY = "tokenizer.ggml."
_WHERE = "the GGUF file's tokenizer"
# Token types of the format. The others (normal, unknown, unused, byte) are plain vocabulary entries.
_CONTROL = 3
_USER_DEFINED = 4
_EOS_KEYS = ("eos_token_id", "eot_token_id", "eom_token_id")


def read_gguf(metadata: Mapping[str, Any], extra_eos_ids: Iterable[int]) -> TokenizerParts:
    """The parts of a tokenizer from a GGUF file's key/value pairs; raises TokenizerError."""
    _check_model(metadata)
    pre = pre_tokenizer(metadata.get(_KEY + "pre"))
    tokens = [str(token) for token in _required(metadata, "tokens")]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    if len(vocabulary) != len(tokens):
        twice = next(token for index, token in enumerate(tokens) if vocabulary[token] != index)
        raise TokenizerError(f"{_WHERE}: the token {twice!r} stands in the vocabulary twice")
    added = _added_tokens(tokens, [int(kind) for kind in _required(metadata, "token_type")])
    merges = [_split_merge(str(merge), rank) for rank, merge in enumerate(_required(metadata, "merges"))]
    bos_id = metadata.get(_KEY + "bos_token_id")
    eos = [int(metadata[_KEY + key]) for key in _EOS_KEYS if metadata.get(_KEY + key) is not None]
    template = metadata.get("tokenizer.chat_template")
    return TokenizerParts(
        where=_WHERE,
        backend=build_byte_level(_WHERE, vocabulary, merges, pre, added),
        bos_id=None if bos_id is None else int(bos_id),
        eos_ids=tuple(dict.fromkeys((*eos, *extra_eos_ids))),
        add_bos=bool(metadata.get(_KEY + "add_bos_token", pre.add_bos)),
        chat_template=None if template is None else str(template),
    )


def _check_model(metadata: Mapping[str, Any]) -> None:
    model = metadata.get(_KEY + "model")
    if model == "gpt2":
        return
    if model is None:
        raise TokenizerError(f"the GGUF file has no tokenizer ({_KEY}model is absent)")
    if model == "llama":
        raise TokenizerError(
            "the GGUF file's tokenizer is of the sentencepiece kind ('llama'), whose merge order cannot be "
            "rebuilt exactly from the file; use the model's directory with its tokenizer.json, or a GGUF "
            "file of a model with a byte-level vocabulary ('gpt2')"
        )
    raise TokenizerError(
        f"the GGUF file's tokenizer is of the kind {model!r}; only byte-level BPE ('gpt2') is read from GGUF "
        "files. Use the model's directory with its tokenizer.json"
    )


def _required(metadata: Mapping[str, Any], name: str) -> list[Any]:
    values = metadata.get(_KEY + name)
    if values is None:
        raise TokenizerError(f"{_WHERE}: {_KEY}{name} is absent; convert the model again with a current converter")
    return list(values)


def _added_tokens(tokens: list[str], kinds: list[int]) -> dict[int, AddedToken]:
    if len(kinds) != len(tokens):
        raise TokenizerError(f"{_WHERE}: {len(tokens)} tokens but {len(kinds)} token types")
    return {
        index: AddedToken(tokens[index], special=kind == _CONTROL, normalized=False)
        for index, kind in enumerate(kinds)
        if kind in (_CONTROL, _USER_DEFINED)
    }


def _split_merge(merge: str, rank: int) -> tuple[str, str]:
    # From index 1: the left half is never empty, but may itself begin with a space.
    space = merge.find(" ", 1)
    if space < 0 or space == len(merge) - 1:
        raise TokenizerError(f"{_WHERE}: merge {rank} is {merge!r}; it must be two tokens with a space between")
    return merge[:space], merge[space + 1 :]
