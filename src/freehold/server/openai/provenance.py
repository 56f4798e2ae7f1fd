"""Which blocks of a prompt an answer was made from, in the wire's form."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from pydantic import BaseModel

from freehold.core.provenance import BlockReads, Provenance


class TokenReadsBody(BaseModel):
    """For one generated token: the blocks that sparse layers read, and how often (layers times KV heads)."""

    position: int
    blocks: list[tuple[int, int]]


class SourceBody(BaseModel):
    """A message, its tokens [first, end), and the reads of its blocks, each shared among the messages in the block by
    their part of it."""

    message: int
    first: int
    end: int
    reads: float


class ProvenanceBody(BaseModel):
    """block_tokens: tokens of a block; block b holds [b * block_tokens, (b + 1) * block_tokens). sparse_layers: those
    whose reads are counted; a model without any reads everything, and `tokens` is then without blocks."""

    block_tokens: int
    sparse_layers: int
    tokens: list[TokenReadsBody]
    messages: list[SourceBody]


def provenance_body(provenance: Provenance, message_ranges: Sequence[tuple[int, int]]) -> ProvenanceBody:
    """message_ranges: tokens [first, end) of each message of the prompt."""
    size = provenance.block_tokens
    total: Counter[int] = Counter()
    tokens = []
    for token in provenance.tokens:
        counts = _blocks(token)
        total.update(counts)
        tokens.append(TokenReadsBody(position=token.position, blocks=sorted(counts.items())))
    end = max((token.position + 1 for token in provenance.tokens), default=0)
    sources = []
    for number, (first, last) in enumerate(message_ranges):
        reads = 0.0
        for block in range(first // size, -(-last // size)):
            begin, stop = block * size, min((block + 1) * size, end)
            shared = min(last, stop) - max(first, begin)
            if shared > 0:
                reads += total[block] * shared / (stop - begin)
        sources.append(SourceBody(message=number, first=first, end=last, reads=round(reads, 3)))
    layers = len({layer for token in provenance.tokens for layer in token.layers})
    return ProvenanceBody(block_tokens=size, sparse_layers=layers, tokens=tokens, messages=sources)


def _blocks(token: BlockReads) -> Counter[int]:
    return Counter(block for heads in token.layers.values() for blocks in heads for block in blocks)
