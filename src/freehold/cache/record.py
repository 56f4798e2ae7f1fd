"""A record: one stored block, and the header that describes it."""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass

import xxhash

from freehold.cache.identity import Identity
from freehold.cache.layout import CHECKSUM_BYTES, RecordLayout
from freehold.cache.prefix import ROOT

_MAGIC = b"FHBLOCK1"
_FIXED = struct.Struct("<8s32s32s32sqII")  # magic, stamp, key, parent, created, num_tokens, num_parts
KEY_BYTES = 32
TOKEN_BYTES = 8
_ROOT_FIELD = ROOT.ljust(KEY_BYTES, b"\0")


def checksum(*pieces: bytes | memoryview) -> bytes:
    """XXH3-128 of the pieces, one after another; 16 bytes, big-endian as xxHash's canonical form."""
    if len(pieces) == 1:
        return xxhash.xxh3_128_digest(pieces[0])
    state = xxhash.xxh3_128()
    for piece in pieces:
        state.update(piece)
    return state.digest()


def stamp_of(identity: Identity, layout: RecordLayout) -> bytes:
    """32 bytes that stand in every header: a record is read by the identity and layout that wrote it, or not at all."""
    return hashlib.sha256(identity.digest + layout.canonical).digest()


def pack_tokens(tokens: tuple[int, ...]) -> bytes:
    """Token ids as int64, little-endian: what the block's key is computed from."""
    return struct.pack(f"<{len(tokens)}q", *tokens)


@dataclass(frozen=True, slots=True)
class Record:
    """A stored block.

    key: sha256(parent + token_bytes). parent: the key of the block before it, or ROOT. token_bytes: see `tokens`.
    slot: its place. checksums: 16 bytes for each part. created: nanoseconds since 1970.
    """

    key: bytes
    parent: bytes
    token_bytes: bytes
    slot: int
    checksums: bytes
    created: int

    @property
    def tokens(self) -> tuple[int, ...]:
        """The block's token ids."""
        return struct.unpack(f"<{len(self.token_bytes) // TOKEN_BYTES}q", self.token_bytes)

    def checksum_of(self, part_index: int) -> bytes:
        """The checksum of one part."""
        return self.checksums[part_index * CHECKSUM_BYTES : (part_index + 1) * CHECKSUM_BYTES]


def pack_header(record: Record, stamp: bytes) -> bytes:
    """The record's header, without padding; the slot is not in it. Its last 16 bytes are a checksum of the others."""
    parent = _ROOT_FIELD if record.parent == ROOT else record.parent
    counts = len(record.token_bytes) // TOKEN_BYTES, len(record.checksums) // CHECKSUM_BYTES
    fixed = _FIXED.pack(_MAGIC, stamp, record.key, parent, record.created, *counts)
    body = fixed + record.token_bytes + record.checksums
    return body + checksum(body)


def unpack_header(page: bytes, slot: int, layout: RecordLayout, stamp: bytes) -> Record:
    """The record that a header describes; what follows the header on the page is ignored.

    Raises ValueError if it is not a whole header of this identity and layout.
    """
    end = layout.header_bytes
    body, seal = page[: end - CHECKSUM_BYTES], page[end - CHECKSUM_BYTES : end]
    if len(page) < end or checksum(body) != seal:
        raise ValueError("the header's checksum is wrong")
    magic, found_stamp, key, parent, created, num_tokens, num_parts = _FIXED.unpack_from(body)
    if magic != _MAGIC or found_stamp != stamp or (num_tokens, num_parts) != (layout.block_tokens, len(layout.parts)):
        raise ValueError("the header is of another identity or layout")
    tokens_end = _FIXED.size + TOKEN_BYTES * num_tokens
    token_bytes = body[_FIXED.size : tokens_end]
    parent = ROOT if parent == _ROOT_FIELD else parent
    if hashlib.sha256(parent + token_bytes).digest() != key:
        raise ValueError("the key is not that of the tokens")
    return Record(key, parent, token_bytes, slot, body[tokens_end:], created)
