"""Which blocks of the context an answer was made from."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class BlockReads:
    """What the sparse layers read to predict one token.

    position: of the query, the last token before the predicted one. layers: layer -> for each KV head the ids of its
    blocks, ascending; the query's own block is always among them. Dense layers read everything and are not listed.
    """

    position: int
    layers: dict[int, tuple[tuple[int, ...], ...]]


@dataclass(frozen=True, slots=True)
class TokenRange:
    """Tokens [first, end) of the context, and how often a KV head of a sparse layer read their block."""

    first: int
    end: int
    reads: int


@dataclass(frozen=True, slots=True)
class Provenance:
    """The reads of an answer, a `BlockReads` for each generated token. block_tokens: tokens in a block."""

    block_tokens: int
    tokens: tuple[BlockReads, ...]

    def ranges(self) -> list[TokenRange]:
        """The blocks that were read, summed over tokens, layers and heads; the most read first, then by place."""
        counts = Counter(
            block for token in self.tokens for heads in token.layers.values() for blocks in heads for block in blocks
        )
        size, total = self.block_tokens, max((token.position + 1 for token in self.tokens), default=0)
        found = [TokenRange(b * size, min((b + 1) * size, total), reads) for b, reads in counts.items()]
        return sorted(found, key=lambda r: (-r.reads, r.first))
