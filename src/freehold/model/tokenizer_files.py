"""The tokenizer inside a model directory of the Hugging Face layout."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tokenizers import AddedToken
from tokenizers import Tokenizer as Backend

from freehold.core.errors import TokenizerError
from freehold.model.tokenizer_parts import TokenizerParts, build_byte_level
from freehold.model.tokenizer_pre import PRE_TOKENIZERS, pre_tokenizer

# Which pre-tokenizer a vocab.json + merges.txt pair was trained with; those two files do not say.
_PRE_OF_MODEL_TYPE = {
    "gpt2": "gpt-2",
    "minimax_m2": "minimax-m2",
    "minimax_m3": "minimax-m2",
    "minimax_m3_vl": "minimax-m2",
    "qwen2": "qwen2",
    "qwen2_moe": "qwen2",
    "qwen3": "qwen2",
    "qwen3_moe": "qwen2",
    "starcoder2": "starcoder",
}


def read_json(
    path: Path, config: Mapping[str, Any], generation_config: Mapping[str, Any], extra_eos_ids: Iterable[int]
) -> TokenizerParts:
    """The parts of a tokenizer from a tokenizer.json; raises TokenizerError."""
    if not path.is_file():
        raise TokenizerError(f"{path}: there is no such tokenizer file")
    try:
        backend = Backend.from_file(str(path))
    except Exception as error:  # the library raises bare Exception for everything
        raise TokenizerError(f"{path}: not a usable tokenizer.json: {error}") from error
    return _with_config(str(path), backend, config, generation_config, extra_eos_ids)


def read_directory(directory: Path, pre: str | None, extra_eos_ids: Iterable[int]) -> TokenizerParts:
    """The parts of a tokenizer from a model directory; raises TokenizerError."""
    config = _json_object(directory / "tokenizer_config.json")
    template = directory / "chat_template.jinja"
    if template.is_file():
        config["chat_template"] = template.read_text(encoding="utf-8")
    generation_config = _json_object(directory / "generation_config.json")
    if (directory / "tokenizer.json").is_file():
        if pre is not None:
            raise TokenizerError(f"{directory}: pre={pre!r} was given, but its tokenizer.json decides that itself")
        return read_json(directory / "tokenizer.json", config, generation_config, extra_eos_ids)
    if (directory / "vocab.json").is_file() and (directory / "merges.txt").is_file():
        backend = _read_vocab_and_merges(directory, pre, config)
        return _with_config(str(directory), backend, config, generation_config, extra_eos_ids)
    if (directory / "tokenizer.model").is_file():
        raise TokenizerError(
            f"{directory}: it has only a sentencepiece tokenizer.model. Put the model's tokenizer.json "
            "beside it; transformers writes one with "
            "AutoTokenizer.from_pretrained(directory).save_pretrained(directory)"
        )
    raise TokenizerError(f"{directory}: no tokenizer here; a tokenizer.json, or vocab.json with merges.txt, is needed")


def _read_vocab_and_merges(directory: Path, pre: str | None, config: Mapping[str, Any]) -> Backend:
    if pre is None:
        model_type = _json_object(directory / "config.json").get("model_type")
        pre = _PRE_OF_MODEL_TYPE.get(str(model_type))
        if pre is None:
            raise TokenizerError(
                f"{directory}: vocab.json and merges.txt do not say how texts are cut before merging, "
                f"and the model_type {model_type!r} does not decide it; give pre=, one of "
                f"{', '.join(sorted(PRE_TOKENIZERS))}"
            )
    vocabulary = {str(token): int(index) for token, index in _json_object(directory / "vocab.json").items()}
    merges: list[tuple[str, str]] = []
    with (directory / "merges.txt").open(encoding="utf-8", newline="\n") as file:
        for number, line in enumerate(file, start=1):
            pair = line.rstrip("\r\n").split(" ")
            if (number == 1 and line.startswith("#version")) or pair == [""]:
                continue
            if len(pair) != 2:
                raise TokenizerError(f"{directory / 'merges.txt'}: line {number} is {line!r}, not two tokens")
            merges.append((pair[0], pair[1]))
    added = _added_tokens(directory, config)
    return build_byte_level(str(directory), vocabulary, merges, pre_tokenizer(pre), added)


def _added_tokens(directory: Path, config: Mapping[str, Any]) -> dict[int, AddedToken]:
    added = {
        int(index): AddedToken(content, special=True, normalized=False)
        for content, index in _json_object(directory / "added_tokens.json").items()
    }
    for index, entry in config.get("added_tokens_decoder", {}).items():
        flags = {name: bool(entry.get(name, False)) for name in ("lstrip", "rstrip", "single_word", "normalized")}
        added[int(index)] = AddedToken(str(entry["content"]), special=bool(entry.get("special")), **flags)
    return added


def _with_config(
    where: str,
    backend: Backend,
    config: Mapping[str, Any],
    generation_config: Mapping[str, Any],
    extra_eos_ids: Iterable[int],
) -> TokenizerParts:
    bos_id = _named_token(where, backend, config, "bos_token")
    eos_id = _named_token(where, backend, config, "eos_token")
    also = generation_config.get("eos_token_id")
    from_generation = [] if also is None else also if isinstance(also, list) else [also]
    if not all(isinstance(i, int) for i in from_generation):
        raise TokenizerError(
            f"{where}: eos_token_id of generation_config.json is {also!r}; it must be a token id or a list"
        )
    ids = ([] if eos_id is None else [eos_id]) + [int(i) for i in from_generation] + [int(i) for i in extra_eos_ids]
    asked = config.get("add_bos_token")
    # Without an explicit word, the post-processor tells: what it adds to an empty text is its frame.
    framed = backend.encode("", add_special_tokens=True).ids
    add_bos = bool(asked) if asked is not None else bool(framed) and bos_id is not None and framed[0] == bos_id
    return TokenizerParts(
        where=where,
        backend=backend,
        bos_id=bos_id,
        eos_ids=tuple(dict.fromkeys(ids)),
        add_bos=add_bos,
        chat_template=_chat_template(where, config.get("chat_template")),
    )


def _named_token(where: str, backend: Backend, config: Mapping[str, Any], name: str) -> int | None:
    value = config.get(name)
    if value is None:
        return None
    content = value["content"] if isinstance(value, Mapping) else value
    token_id: int | None = backend.token_to_id(content)
    if token_id is None:
        raise TokenizerError(f"{where}: the configuration's {name} is {content!r}, which is not in the vocabulary")
    return token_id


def _chat_template(where: str, value: object) -> str | None:
    """One template, or from a list of named ones that called "default"."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, list):
        named = {str(entry.get("name")): entry.get("template") for entry in value if isinstance(entry, Mapping)}
        chosen = named.get("default")
        if isinstance(chosen, str):
            return chosen
        raise TokenizerError(f"{where}: none of the chat templates {sorted(named)} is called 'default'")
    raise TokenizerError(f"{where}: chat_template is a {type(value).__name__}; it must be a text or a list")


def _json_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file; empty if there is no such file."""
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise TokenizerError(f"{path}: not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise TokenizerError(f"{path}: it holds a {type(value).__name__}; an object is needed")
    return value
