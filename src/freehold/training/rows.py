"""What a model is trained on: rows of one length, any of which can be made again from its number."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import torch
from torch import Tensor

from freehold.core.errors import ArgumentError
from freehold.training.corpus import Document
from freehold.training.looking import NO_SOURCE
from freehold.training.m3_forward import NO_TARGET, Batch


@dataclass(frozen=True, slots=True)
class Row:
    """token_ids (length,); targets (length,): the next token, or NO_TARGET; starts: where documents begin, 0 first.
    sources (2, length): places in the row where each token should look in the first layer, and in the last, or
    NO_SOURCE; None if none is known."""

    token_ids: Tensor
    targets: Tensor
    starts: tuple[int, ...]
    sources: Tensor | None = None


class Rows(Protocol):
    """A source of rows."""

    @property
    def name(self) -> str:
        """What it is, for the card: another source has another name."""

    def row(self, number: int) -> Row:
        """The row of this number, the same whenever it is asked for."""


def batch_of(rows: Sequence[Row]) -> Batch:
    """The rows one after another, none of which sees another."""
    documents, sources, begin = [], [], 0
    for row in rows:
        edges = [*row.starts, len(row.token_ids)]
        documents += [(begin + a, begin + b) for a, b in pairwise(edges)]
        if row.sources is not None:
            sources.append(torch.where(row.sources == NO_SOURCE, NO_SOURCE, row.sources + begin))
        begin += len(row.token_ids)
    ids, targets = torch.cat([r.token_ids for r in rows]), torch.cat([r.targets for r in rows])
    return Batch(ids, targets, tuple(documents), torch.cat(sources, dim=1) if len(sources) == len(rows) else None)


class TextRows:
    """Rows cut from documents that follow each other, shuffled once; a row begins anywhere."""

    def __init__(
        self, documents: Sequence[Document], encode: Callable[[str], list[int]], end: int, length: int, *, seed: int
    ) -> None:
        """end: the token that ends each document. Raises ArgumentError for too little text."""
        mine = sorted(documents, key=lambda d: d.name)
        random.Random(seed).shuffle(mine)
        tokens: list[int] = []
        self._starts: list[int] = []
        for document in mine:
            self._starts.append(len(tokens))
            tokens += [*encode(document.text), end]
        if len(tokens) <= length:
            raise ArgumentError(f"the texts have {len(tokens)} tokens; a row has {length}, and needs one more")
        self._tokens, self.length, self._seed = torch.tensor(tokens), length, seed
        self._is_start = torch.zeros(len(tokens), dtype=torch.bool)
        self._is_start[self._starts] = True
        # Texts that were edited may have as many tokens as before.
        self._digest = hashlib.sha256(self._tokens.numpy().tobytes()).hexdigest()[:16]

    @property
    def name(self) -> str:
        """See `Rows`."""
        return f"{len(self._starts)} documents, {len(self._tokens)} tokens (sha256 {self._digest}), seed {self._seed}"

    def row(self, number: int) -> Row:
        """See `Rows`."""
        begin = random.Random(f"{self._seed} {number}").randrange(len(self._tokens) - self.length)
        end = begin + self.length
        targets = self._tokens[begin + 1 : end + 1].clone()
        targets[self._is_start[begin + 1 : end + 1]] = NO_TARGET  # another document begins there
        inner = self._is_start[begin + 1 : end].nonzero().flatten() + 1
        return Row(self._tokens[begin:end], targets, (0, *inner.tolist()))
