"""Whose blocks these are: the model and the numerics that made them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from freehold.core.errors import ArgumentError

DIGEST_BYTES = 32


@dataclass(frozen=True, slots=True)
class Identity:
    """What has to be the same for a stored block to be used again.

    digest: 32 bytes over everything that decides a block's bits: weights, configuration, tokenizer, the version
        of the kernels' layout, dtype, block_tokens, instruction set.
    description: the same in words, for people; it is stored, shown and never compared.
    """

    digest: bytes
    description: Mapping[str, str] = field(default_factory=dict, compare=False)

    def __post_init__(self) -> None:
        if len(self.digest) != DIGEST_BYTES:
            raise ArgumentError(f"digest has {len(self.digest)} bytes; an identity's digest has {DIGEST_BYTES}")

    @property
    def short(self) -> str:
        """The first 16 hexadecimal digits: the name by which people and directories call it."""
        return self.digest.hex()[:16]
