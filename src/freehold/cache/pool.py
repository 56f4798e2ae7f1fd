"""Slots for blocks: the lanes of every layer, and who holds which slot."""

from __future__ import annotations

from collections.abc import Sequence as Items

import torch

from freehold.core.blocks import LaneSpec, LayerLanes
from freehold.core.errors import ArgumentError


class BlockPool:
    """A fixed number of slots. A slot is free, or held by `references(slot)` holders.

    specs: sizes of each layer's lanes. dtype: torch.float32 or torch.bfloat16.
    """

    def __init__(self, specs: Items[LaneSpec], *, num_slots: int, block_tokens: int, dtype: torch.dtype) -> None:
        if num_slots < 1:
            raise ArgumentError(f"num_slots is {num_slots}; a cache needs at least one block")
        self.num_slots = num_slots
        self.block_tokens = block_tokens
        self.lanes = tuple(LayerLanes.allocate(spec, num_slots, block_tokens, dtype) for spec in specs)
        self._references = [0] * num_slots
        self._free = list(range(num_slots - 1, -1, -1))

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

    def copy(self, source: int, target: int) -> None:
        """Copies all lanes of one slot into another."""
        for lanes in self.lanes:
            for lane in lanes.tensors():
                lane[target].copy_(lane[source])

    def check_integrity(self, holders: Items[int]) -> None:
        """Recounts: `holders` names a slot once for each holder. Raises AssertionError on any disagreement."""
        counted = [0] * self.num_slots
        for slot in holders:
            counted[slot] += 1
        assert counted == self._references, "slot references do not match their holders"
        free = [slot for slot in range(self.num_slots) if counted[slot] == 0]
        assert sorted(self._free) == free, "the free list does not match the slots without holders"
