"""Small blocks for the store's tests: what a block holds follows from its key, so that every wrong byte is seen."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from freehold.cache.identity import Identity
from freehold.cache.layout import RecordLayout
from freehold.cache.prefix import ROOT, block_hash
from freehold.cache.record import Record
from freehold.cache.shelf import shelf_path
from freehold.cache.store import BlockStore
from freehold.core.errors import LostBlockError

BLOCK = 4
PARTS = (("0/kv", 5000), ("0/index", 300), ("1/kv", 4096))
RECORD_BYTES = 4096 + 8192 + 4096 + 4096
LAYOUT = RecordLayout(BLOCK, PARTS, segment_bytes=3 * RECORD_BYTES)  # three blocks a file: many files
IDENTITY = Identity(hashlib.sha256(b"one").digest(), {"model": "one"})
OTHER_IDENTITY = Identity(hashlib.sha256(b"two").digest(), {"model": "two"})


def open_store(
    directory: Path, *, identity: Identity = IDENTITY, blocks: int | None = None, **options: Any
) -> BlockStore:
    """A store with room for so many blocks."""
    limit = None if blocks is None else blocks * RECORD_BYTES
    return BlockStore(directory, identity, LAYOUT, limit_bytes=limit, **options)


def content(key: bytes, part: str, nbytes: int) -> bytes:
    """What a part of a block holds."""
    return hashlib.shake_128(key + part.encode()).digest(nbytes)


def put(store: BlockStore, parent: bytes, tokens: Sequence[int]) -> bytes:
    """Hands a block over, waiting if the store asks for it; returns its key."""
    key = block_hash(parent, tokens)
    parts = {name: content(key, name, nbytes) for name, nbytes in PARTS}
    while not store.put(parent, tokens, parts):
        store.flush()
    return key


def keys_of(*numbers: int, parent: bytes = ROOT) -> list[bytes]:
    """The keys of a chain of blocks; all four tokens of a block are its number."""
    keys = []
    for number in numbers:
        parent = block_hash(parent, [number] * BLOCK)
        keys.append(parent)
    return keys


def put_chain(store: BlockStore, *numbers: int) -> list[bytes]:
    """Stores the chain of `keys_of`, durably."""
    parent = ROOT
    for number in numbers:
        parent = put(store, parent, [number] * BLOCK)
    store.flush()
    return keys_of(*numbers)


def overwrite(directory: Path, record: Record, part: str, content: bytes = b"wrong") -> None:
    """Damages a part of a stored block, behind the store's back."""
    segment, index = divmod(record.slot, LAYOUT.slots_per_segment)
    with (shelf_path(directory, IDENTITY) / f"segment-{segment:06d}.blocks").open("r+b") as file:
        file.seek(index * RECORD_BYTES + LAYOUT.place(part).offset + 7)
        file.write(content)


def read_block(store: BlockStore, key: bytes) -> bool:
    """Whether a block is stored and can be read; AssertionError if any byte is wrong."""
    record = store.find(key)
    if record is None:
        return False
    assert record.key == key == block_hash(record.parent, record.tokens)
    for name, nbytes in PARTS:
        buffer = bytearray(nbytes)
        try:
            store.read(record, name, buffer)
        except LostBlockError:
            return False
        assert buffer == content(key, name, nbytes), f"wrong bytes in {name} of {key.hex()}"
    return True


def stored_keys(store: BlockStore) -> Iterator[bytes]:
    """Every key that a walk from the root finds."""
    todo = [ROOT]
    while todo:
        for record in store.children(todo.pop()):
            yield record.key
            todo.append(record.key)
