"""What the two sides of a miss say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from freehold.core.errors import TokenizerError
from freehold.core.events import Miss
from freehold.model.tokenizer import Tokenizer

_PICTURE = b"[picture]"


def with_texts(miss: Miss, tokenizer: Tokenizer) -> Miss:
    """The miss with both texts. Bytes that are no whole character become U+FFFD."""
    expected, got = (_text(tokenizer, tokens) for tokens in (miss.expected, miss.got))
    return replace(miss, expected_text=expected, got_text=got)


def _text(tokenizer: Tokenizer, tokens: Sequence[int]) -> str:
    return b"".join(_bytes(tokenizer, token) for token in tokens).decode(errors="replace")


def _bytes(tokenizer: Tokenizer, token: int) -> bytes:
    if token < 0:  # see `freehold.core.visuals.content_keys`
        return _PICTURE
    try:
        return tokenizer.token_bytes(token)
    except TokenizerError:  # a row of the embedding beyond the vocabulary
        return b""
