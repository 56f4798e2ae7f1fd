"""A cache whose lanes hold what follows from the tokens, so that every wrong byte is seen: in memory, in a frame or on
the disk. And a store whose disk works only when it is told to."""

from __future__ import annotations

import hashlib
import struct
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch

from freehold.cache import BlockPool, BlockStore, Identity, record_layout
from freehold.cache.prefix import ROOT
from freehold.cache.store_writer import Completion
from freehold.core.axes import ceil_div
from freehold.core.blocks import LaneSpec, LayerLanes, Span, Spans

BLOCK = 16
SPECS = (LaneSpec(1, 16), LaneSpec(1, 16, index_dim=8))
LAYOUT = record_layout(SPECS, BLOCK, torch.float32)
LAYOUT = replace(LAYOUT, segment_bytes=3 * LAYOUT.record_bytes)  # three blocks a file: many files
RESIDENT_PARTS = frozenset(LAYOUT.places) - {"1/kv"}  # what comes back with a block; the rest when it is chosen
OWNERS = (b"one", b"two")

Prefix = tuple[int, ...]


def identity_of(owner: bytes) -> Identity:
    """The identity whose blocks hold what follows from an owner's name."""
    return Identity(hashlib.sha256(owner).digest(), {"model": owner.decode()})


@lru_cache(maxsize=20_000)
def key_of(prefix: Prefix) -> bytes:
    """The key of the block that ends a prefix of whole blocks, as FORMAT.md has it."""
    parent = key_of(prefix[:-BLOCK]) if prefix else ROOT
    return hashlib.sha256(parent + struct.pack(f"<{BLOCK}q", *prefix[-BLOCK:])).digest() if prefix else ROOT


def before(prefix: Prefix) -> Prefix:
    """The prefix without its last block, which may be less than a whole one."""
    return prefix[: (len(prefix) - 1) // BLOCK * BLOCK]


# What blocks hold.


def _ints(tensor: torch.Tensor) -> np.ndarray:
    width = {1: torch.uint8, 2: torch.int16, 4: torch.int32}[tensor.element_size()]
    return tensor.view(width).numpy()


def kv_views(layer: LayerLanes, frame: int) -> list[np.ndarray]:
    """K and V of a frame, as integers, the token first."""
    return [np.moveaxis(_ints(layer.k)[frame], -1, 0), np.moveaxis(_ints(layer.v)[frame], -2, 0)]


def index_views(layer: LayerLanes, slot: int) -> list[np.ndarray]:
    """What a slot's index lane has for each token, the token first."""
    index = layer.index
    if index is None:
        return []
    halves = [np.moveaxis(_ints(half)[slot], 1, 0) for half in (index.high, index.low)]
    return [_ints(index.keys)[slot], *halves, _ints(index.scales)[slot]]


def sketch_views(layer: LayerLanes, slot: int) -> list[np.ndarray]:
    """What a slot's index lane has once for a full block."""
    return [] if layer.index is None else [_ints(t)[slot] for t in (layer.index.centre, layer.index.bounds)]


def _fill(view: np.ndarray, *source: object) -> None:
    content = hashlib.shake_128(repr(source).encode()).digest(view.nbytes)
    view[...] = np.frombuffer(content, view.dtype).reshape(view.shape)


@lru_cache(maxsize=8_000)
def image(owner: bytes, number: int, prefix: Prefix) -> LayerLanes:
    """One slot with what the last block of a prefix must hold in layer `number`."""
    layer = LayerLanes.allocate(SPECS[number], 1, BLOCK, torch.float32)
    first = len(before(prefix))
    views = [*kv_views(layer, 0), *index_views(layer, 0)]
    last = len(prefix) - 1 - first
    if last:
        shorter = image(owner, number, prefix[:-1])
        for view, old in zip(views, [*kv_views(shorter, 0), *index_views(shorter, 0)], strict=True):
            view[:last] = old[:last]
    for lane, view in enumerate(views):
        token = np.empty(view.shape[1:], view.dtype)
        _fill(token, owner, number, lane, prefix)
        view[last] = token
    for lane, view in enumerate(sketch_views(layer, 0) if len(prefix) % BLOCK == 0 else []):
        _fill(view, owner, number, "sketch", lane, prefix)
    return layer


@lru_cache(maxsize=8_000)
def right_views(owner: bytes, number: int, prefix: Prefix) -> tuple[list[np.ndarray], ...]:
    """The three kinds of views of `image`."""
    layer = image(owner, number, prefix)
    return kv_views(layer, 0), index_views(layer, 0), sketch_views(layer, 0)


@lru_cache(maxsize=4_000)
def part_of(owner: bytes, prefix: Prefix, part: str) -> bytes:
    """The bytes of a part of the record of a full block."""
    layer = image(owner, int(part[0]), prefix)
    tensors = [layer.k, layer.v] if part.endswith("kv") else layer.index_tensors()
    return b"".join(t.view(torch.uint8).numpy().tobytes() for t in tensors)


def write_tokens(pool: BlockPool, owner: bytes, tokens: Sequence[int], slots: Sequence[int], begin: int) -> None:
    """What a model does: puts tokens[begin:] into the lanes of all layers."""
    spans = Spans.pack([Span(begin, len(tokens) - begin, slots)], BLOCK)
    for number, layer in enumerate(pool.lanes):
        frames = (spans.slot if layer.pager is None else layer.pager.writable(spans.slot)).tolist()
        for b in range(begin // BLOCK, ceil_div(len(tokens), BLOCK)):
            prefix = tuple(tokens[: (b + 1) * BLOCK])
            low, high = max(begin - b * BLOCK, 0), len(prefix) - b * BLOCK
            frame, slot = frames[b * BLOCK + low - begin], slots[b]
            kv, index, sketch = right_views(owner, number, prefix)
            for to, of in zip([*kv_views(layer, frame), *index_views(layer, slot)], [*kv, *index], strict=True):
                to[low:high] = of[low:high]
            if high == BLOCK:
                for to, of in zip(sketch_views(layer, slot), sketch, strict=True):
                    to[...] = of


def check_kv(layer: LayerLanes, number: int, owner: bytes, prefix: Prefix, frame: int) -> None:
    """K and V of the prefix's last block in a frame."""
    length = len(prefix) - len(before(prefix))
    kv, _, _ = right_views(owner, number, prefix)
    for lane, ours, right in zip("KV", kv_views(layer, frame), kv, strict=True):
        assert (ours[:length] == right[:length]).all(), f"wrong {lane} of layer {number} in frame {frame}"


def check_slot(pool: BlockPool, owner: bytes, prefix: Prefix, slot: int) -> None:
    """All that is in memory of the prefix's last block."""
    length = len(prefix) - len(before(prefix))
    for number, layer in enumerate(pool.lanes):
        _, index, sketch = right_views(owner, number, prefix)
        for ours, right in zip(index_views(layer, slot), index, strict=True):
            assert (ours[:length] == right[:length]).all(), f"wrong index keys in slot {slot}"
        if length == BLOCK:
            for ours, right in zip(sketch_views(layer, slot), sketch, strict=True):
                assert (ours == right).all(), f"wrong sketch in slot {slot}"
        frame = frame_of(layer, slot)
        if frame is not None:
            check_kv(layer, number, owner, prefix, frame)


def frame_of(layer: LayerLanes, slot: int) -> int | None:
    """Where K and V of a slot are in memory; None if they lie on the disk only."""
    if layer.pager is None:
        return slot
    frame = int(layer.pager._frame_of[slot])  # type: ignore[attr-defined]
    if frame < 0:
        assert layer.pager._absent[slot], f"slot {slot} has K and V nowhere"  # type: ignore[attr-defined]
        return None
    return frame


def read_blocks(
    pool: BlockPool, owner: bytes, pieces: Sequence[tuple[Prefix, Sequence[int]]], chosen: Sequence[int] | None
) -> Iterator[tuple[int, int]]:
    """Reads blocks of sequences as attention does, for the last token of each, and checks K and V; yields (piece,
    block) of each that came. chosen: block ids, for all pieces the same; None: all."""
    spans = Spans.pack([Span(len(prefix) - 1, 1, slots) for prefix, slots in pieces], BLOCK)
    counts = [ceil_div(len(prefix), BLOCK) for prefix, _ in pieces]
    rows = None
    if chosen is not None:
        picked = [sorted({b % count for b in chosen}) for count in counts]
        most = max(map(len, picked))
        rows = torch.tensor([[ids + [-1] * (most - len(ids))] for ids in picked], dtype=torch.int32)
    for number, layer in enumerate(pool.lanes):
        if layer.pager is None:
            continue
        num_parts, parts = layer.pager.parts(spans, rows)
        came, end = set(), 0
        for part in parts:
            num_parts -= 1
            assert part.begin >= end, "parts overlap"
            end = part.end
            for piece, (prefix, _) in enumerate(pieces):
                for b in range(counts[piece]) if chosen is None else picked[piece]:
                    if part.begin <= b < part.end:
                        frame = int(part.spans.table[int(spans.table_begin[piece]) + b])
                        assert frame >= 0, "a chosen block has no frame"
                        check_kv(layer, number, owner, prefix[: (b + 1) * BLOCK], frame)
                        came.add((piece, b))
        wanted = {(p, b) for p, n in enumerate(counts) for b in (range(n) if chosen is None else picked[p])}
        assert (num_parts, came) == (0, wanted), "parts do not cover the chosen blocks"
        yield from sorted(came)


# The disk.


class SteppedStore(BlockStore):
    """Writes block after block, each in a call of ours, so that the same calls have the same results. While it is
    `slow` it writes nothing but what is waited for, and takes few blocks."""

    slow = False
    most_waiting = 2

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._waiting: deque[tuple[bytes, tuple[int, ...], Mapping[str, Any]]] = deque()

    def put(self, parent: bytes, tokens: Sequence[int], parts: Mapping[str, Any]) -> bool:
        """Takes a block; what its buffers hold is read when it is written."""
        if len(self._waiting) == self.most_waiting:
            return False
        self._waiting.append((parent, tuple(tokens), parts))
        return True

    def completed(self) -> list[Completion]:
        """What is done; a disk that is not slow does all first."""
        if not self.slow and self._waiting:
            self.flush()
        return super().completed()

    def flush(self) -> None:
        """Writes all that was taken, in order."""
        while self._waiting:
            assert super().put(*self._waiting.popleft())
            super().flush()
        super().flush()
