"""A tokenizer for models that are made here: bytes, and whatever words they are given whole."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

END = "[e~["
"""Ends a text."""


def bytes_tokenizer(words: Sequence[str] = ()) -> Tokenizer:
    """One token for each byte, then `END`, then one for each word."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(END, special=True)])
    tokenizer.add_tokens([AddedToken(word, normalized=False) for word in words])
    return tokenizer


def write_bytes_tokenizer(path: Path, words: Sequence[str] = ()) -> None:
    """Writes tokenizer.json and tokenizer_config.json into the directory."""
    bytes_tokenizer(words).save(str(path / "tokenizer.json"))
    (path / "tokenizer_config.json").write_text(json.dumps({"eos_token": END}), encoding="utf-8")
