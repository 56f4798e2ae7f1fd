"""Which layers of a converted model stay dense: those whose sparseness costs most, each measured alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

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
    sparse: FrozenModel, windows: Sequence[Window], layers: Iterable[int], progress: Callable[[int, int], None]
) -> list[Harm]:
    """Each layer's harm, the largest first. sparse: the model with a branch in each of the layers. progress(done, of)
    after each layer of a window."""
    model, before, every = sparse.model, sparse.model.dense_layers, sorted(set(layers))
    more: dict[int, list[Tensor]] = {layer: [] for layer in every}
    try:
        for number, window in enumerate(windows):
            for place, (layer, costs) in enumerate(_costs(sparse, window, every), number * len(every) + 1):
                more[layer].append(costs)
                progress(place, len(windows) * len(every))
    finally:
        model.dense_layers = before
    found = [_harm(layer, torch.cat(costs).double()) for layer, costs in more.items() if costs]
    return sorted(found, key=lambda harm: -harm.nats)


def _harm(layer: int, costs: Tensor) -> Harm:
    return Harm(layer, float(costs.mean()), float(costs.std() / len(costs) ** 0.5))


def _costs(sparse: FrozenModel, window: Window, every: Sequence[int]) -> Iterator[tuple[int, Tensor]]:
    """(layer, what its sparseness costs each token of the second half of a window) for each layer, in order.

    Below a layer everything is dense, and the same for each layer above: it is computed once. Of its first tokens a
    sparse layer leaves nothing out, so that they, and their K and V in all layers, are those of the dense model:
    they stay in the lanes.
    """
    model, ids, half = sparse.model, window.token_ids, len(window.token_ids) // 2
    whole, dense = range(len(model.layers)), frozenset(every)
    first = sparse.stretch_of(min(half, sparse.seen_whole))
    model.dense_layers = dense
    h = sparse.embedded(ids)
    known = sparse.losses_behind(sparse.run_layers(h, whole), ids, half)
    h = h[first:].clone()
    below = 0
    for layer in every:
        h = sparse.run_layers(h, range(below, layer), first)
        below = layer
        model.dense_layers = dense - {layer}
        yield layer, sparse.losses_behind(sparse.run_layers(h, whole[layer:], first), ids, half) - known
        model.dense_layers = dense
