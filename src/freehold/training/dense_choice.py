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
    """Each layer's harm, the largest first. sparse: the model with a branch in each of the layers.

    Below a layer everything is dense, and the same for each layer above: it is computed once. So half of the layers
    run for each measurement, and what is held is one residual stream per window, and one that is being computed.
    """
    model, before, every = sparse.model, sparse.model.dense_layers, frozenset(layers)
    last = max(every, default=-1)
    try:
        model.dense_layers = every
        streams = [sparse.embedded(window.token_ids) for window in windows]
        dense = _late(sparse, streams, windows, 0)
        found = []
        for layer in range(last + 1):
            if layer in every:
                model.dense_layers = every - {layer}
                more = (_late(sparse, streams, windows, layer) - dense).double()
                found.append(Harm(layer, float(more.mean()), float(more.std() / len(more) ** 0.5)))
                progress(layer)
            model.dense_layers = every
            for number in range(len(streams) if layer < last else 0):
                streams[number] = sparse.run_layers(streams[number], range(layer, layer + 1))
    finally:
        model.dense_layers = before
    return sorted(found, key=lambda harm: -harm.nats)


def _late(model: FrozenModel, streams: Sequence[torch.Tensor], windows: Sequence[Window], layer: int) -> torch.Tensor:
    """Losses of the second half of each window, one behind the other, given what stands before a layer."""
    above = range(layer, len(model.model.layers))
    # A window's stream behind the last layer has no name: it would be held while the next one is computed.
    return torch.cat(
        [
            model.losses_behind(model.run_layers(h, above), window.token_ids, len(window.token_ids) // 2)
            for h, window in zip(streams, windows, strict=True)
        ]
    )
