"""Slots for blocks: the lanes of every layer, and who holds which slot."""

from __future__ import annotations

from collections.abc import Sequence as Items
from dataclasses import replace

import torch

from freehold.cache.disk_tier import DiskTier
from freehold.cache.store import BlockStore
from freehold.core.blocks import LaneSpec, LayerLanes
from freehold.core.errors import ArgumentError


class BlockPool:
    """A fixed number of slots. A slot is free, or held by `references(slot)` holders.

    specs: sizes of each layer's lanes. dtype: torch.float32 or torch.bfloat16. store: where blocks outlive the
    process. num_frames: of how many slots K and V of a sparse layer are in memory; only with a store.
    """

    def __init__(
        self,
        specs: Items[LaneSpec],
        *,
        num_slots: int,
        block_tokens: int,
        dtype: torch.dtype,
        store: BlockStore | None = None,
        num_frames: int | None = None,
    ) -> None:
        if num_slots < 1:
            raise ArgumentError(f"num_slots is {num_slots}; a cache needs at least one block")
        assert store is not None or num_frames is None, "blocks without a frame need a store"
        self.num_slots = num_slots
        self.num_frames = num_slots if num_frames is None else num_frames
        self.block_tokens = block_tokens
        lanes = [
            LayerLanes.allocate(
                spec, num_slots, block_tokens, dtype, num_frames=None if spec.index_dim is None else num_frames
            )
            for spec in specs
        ]
        self.disk = None if store is None else DiskTier(store, lanes, num_slots)
        pagers = {} if self.disk is None else self.disk.pagers
        self.lanes = tuple(replace(layer, pager=pagers.get(number)) for number, layer in enumerate(lanes))
        self.clear()

    def clear(self) -> None:
        """Frees every slot, whoever holds it."""
        self._references = [0] * self.num_slots
        self._free = list(range(self.num_slots - 1, -1, -1))
        if self.disk is not None:
            self.disk.clear()

    @property
    def num_free(self) -> int:
        """Slots that nobody holds."""
        return len(self._free)

    def references(self, slot: int) -> int:
        """How many holders the slot has."""
        return self._references[slot]

    def take(self) -> int:
        """A free slot, now held once. The caller has checked `num_free`."""
        slot = self._free.pop()
        self._references[slot] = 1
        return slot

    def hold(self, slot: int) -> None:
        """One more holder for a slot in use."""
        assert self._references[slot] > 0, slot
        self._references[slot] += 1

    def release(self, slot: int) -> None:
        """One holder fewer; without holders the slot is free."""
        assert self._references[slot] > 0, slot
        self._references[slot] -= 1
        if self._references[slot] == 0:
            self._free.append(slot)
            if self.disk is not None:
                self.disk.forget(slot)

    def copy(self, source: int, target: int) -> None:
        """Copies all lanes of one slot into another."""
        for lanes in self.lanes:
            for lane in lanes.tensors() if lanes.pager is None else lanes.index_tensors():
                lane[target].copy_(lane[source])
        if self.disk is not None:
            self.disk.copy(source, target)

    def check_integrity(self, holders: Items[int]) -> None:
        """Recounts: `holders` names a slot once for each holder. Raises AssertionError on any disagreement."""
        counted = [0] * self.num_slots
        for slot in holders:
            counted[slot] += 1
        assert counted == self._references, "slot references do not match their holders"
        free = [slot for slot in range(self.num_slots) if counted[slot] == 0]
        assert sorted(self._free) == free, "the free list does not match the slots without holders"
        if self.disk is not None:
            self.disk.check_integrity([slot for slot in range(self.num_slots) if counted[slot]])
