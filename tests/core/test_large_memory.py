"""Memory for large tensors: zero, apart from each other, and given back."""

from __future__ import annotations

import gc
import weakref

import torch

from freehold.core import memory
from freehold.core.memory import large_empty


def test_tensors_are_zero_aligned_and_apart():
    shapes = [(3,), (17, 1001), (40_000,), (2_000_000,), (256, 513), (1000, 300)] * 40  # some pages' worth
    tensors = [large_empty(*shape) for shape in shapes]
    for number, tensor in enumerate(tensors):
        assert not tensor.any()
        assert tensor.data_ptr() % 16 == 0
        tensor.fill_(number)
    for number, (shape, tensor) in enumerate(zip(shapes, tensors, strict=True)):
        assert tensor.shape == shape
        assert bool((tensor == number).all())


def test_shared_pages_go_when_their_last_tensor_goes(monkeypatch):
    monkeypatch.setattr(memory, "_open", None)
    made = []
    pages = memory._pages
    monkeypatch.setattr(memory, "_pages", lambda nbytes: made.append(weakref.ref(p := pages(nbytes))) or p)
    kept, other = large_empty(100_000), large_empty(100_000, dtype=torch.bfloat16)
    large_empty(3 * 2**18).fill_(1)
    assert len(made) == 1
    memory._open = None
    del other
    gc.collect()
    assert made[0]() is not None
    del kept
    gc.collect()
    assert made[0]() is None
