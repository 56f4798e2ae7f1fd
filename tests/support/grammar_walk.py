"""Walking through a grammar at random: what an answer of a model without any sense could be."""

from __future__ import annotations

import random

from freehold.core.errors import TokenizerError
from freehold.model.grammar import Grammars
from freehold.model.m3_tokens import THINK_CLOSE, THINK_OPEN, TOOL_NAMESPACE

NAMED = ["<eos>", "<eos2>", TOOL_NAMESPACE, THINK_OPEN, THINK_CLOSE]
NUM_TOKENS = 256 + len(NAMED)


class Bytes:
    """A vocabulary of the 256 bytes and some special tokens, the first two of which end an answer."""

    eos_ids = frozenset({256, 257})
    special_ids = frozenset(range(256, NUM_TOKENS))

    def token_bytes(self, token_id: int) -> bytes:
        """The byte, or the token's name."""
        if not 0 <= token_id < NUM_TOKENS:
            raise TokenizerError(f"no token {token_id}")
        return bytes([token_id]) if token_id < 256 else NAMED[token_id - 256].encode()

    def token_id(self, token: str) -> int | None:
        """The id of a special token by its name."""
        return 256 + NAMED.index(token) if token in NAMED else None


def walk(grammars: Grammars, grammar: str, seed: int, *, begin: bytes = b"", most: int = 1500) -> str | None:
    """An answer of tokens drawn from those that are allowed, or None if it is not over after `most` tokens.

    begin: what the answer begins with, byte by byte.
    Bytes that end something (quotes, brackets, `<`, special tokens) are drawn more often, so that answers do end.
    """
    draw, matcher, out = random.Random(seed), grammars.matcher(grammar), bytearray()
    vocabulary, ending = Bytes(), {*b'"]}<>,:', *range(256, NUM_TOKENS)}
    for byte in begin:
        matcher.push(byte)
        out.append(byte)
    for _ in range(most):
        if matcher.is_done:
            return out.decode()
        allowed = matcher.allowed().tolist()
        likely = [token for token in allowed if token in ending]
        token = draw.choice(likely if likely and draw.random() < 0.5 else allowed)
        if token in vocabulary.eos_ids:
            assert matcher.may_end
            return out.decode()
        assert len(allowed) > 0
        matcher.push(token)
        out += vocabulary.token_bytes(token)
    return None
