"""Which layers of a converted model stay dense: those whose sparseness costs most, each measured alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch

from freehold.training.corpus import Window
from freehold.training.frozen import FrozenModel


@dataclass(frozen=True, slots=True)
class Harm:
    """Of one layer that is sparse while all others are dense: nats that a token in the second half of a window costs
    more, and the standard error of that mean."""

    layer: int
    nats: float
    error: float


def harms(
    sparse: FrozenModel, windows: Sequence[Window], layers: Iterable[int], progress: Callable[[int], None]
) -> list[Harm]:
    """Each layer's harm, the largest first. sparse: the model with a branch in each of the layers."""
    every = frozenset(layers)
    model, before = sparse.model, sparse.model.dense_layers
    try:
        model.dense_layers = every
        dense = [late(sparse, window) for window in windows]
        found = []
        for layer in sorted(every):
            model.dense_layers = every - {layer}
            more = torch.cat([late(sparse, w) - base for w, base in zip(windows, dense, strict=True)]).double()
            found.append(Harm(layer, float(more.mean()), float(more.std() / len(more) ** 0.5)))
            progress(layer)
    finally:
        model.dense_layers = before
    return sorted(found, key=lambda harm: -harm.nats)


def late(model: FrozenModel, window: Window) -> torch.Tensor:
    """Losses of the second half of a window."""
    return model.losses(window.token_ids)[len(window.token_ids) // 2 :]
