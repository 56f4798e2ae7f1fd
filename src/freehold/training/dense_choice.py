"""Which layers of a converted model stay dense: those whose sparseness costs most, each measured alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from freehold.training.corpus import Window
from freehold.training.frozen import FrozenModel
from freehold.training.kept_losses import KeptLosses


@dataclass(frozen=True, slots=True)
class Harm:
    """Of one layer that is sparse while all others are dense: nats that a token in the second half of a window costs
    more, and the standard error of that mean."""

    layer: int
    nats: float
    error: float


def harms(
    sparse: FrozenModel,
    windows: Sequence[Window],
    layers: Iterable[int],
    kept: KeptLosses,
    progress: Callable[[int, int], None],
) -> list[Harm]:
    """Each layer's harm, the largest first. sparse: the model with a branch in each of the layers. kept: of this model.
    progress(done, of) after each layer of a window."""
    model, before, every = sparse.model, sparse.model.dense_layers, sorted(set(layers))
    more: dict[int, list[Tensor]] = {layer: [] for layer in every}
    try:
        for number, window in enumerate(windows):
            costs, half = _Costs(sparse, every), _half(window.token_ids)
            for place, layer in enumerate(every, number * len(every) + 1):
                more[layer].append(kept.of(f"layer {layer}", window, partial(costs.of, layer), first=half))
                progress(place, len(windows) * len(every))
    finally:
        model.dense_layers = before
    found = [_harm(layer, torch.cat(costs)) for layer, costs in more.items() if costs]
    return sorted(found, key=lambda harm: -harm.nats)


def _harm(layer: int, costs: Tensor) -> Harm:
    found = costs.double().numpy()  # torch's own order of adding depends on its threads
    return Harm(layer, float(found.mean()), float(found.std(ddof=1) / len(found) ** 0.5))


def _half(token_ids: Sequence[int]) -> int:
    return len(token_ids) // 2


class _Costs:
    """What its sparseness costs each token of the second half of a window, of one layer after the other, upwards.

    Below a layer everything is dense, and the same for each layer above: it is computed once. Of its first tokens a
    sparse layer leaves nothing out, so that they, and their K and V in all layers, are those of the dense model:
    they stay in the lanes.
    """

    def __init__(self, sparse: FrozenModel, every: Sequence[int]) -> None:
        self._sparse, self._dense = sparse, frozenset(every)
        self._whole = range(len(sparse.model.layers))
        self._first = self._below = 0
        self._begun: tuple[Tensor, Tensor] | None = None

    def of(self, layer: int, token_ids: Sequence[int]) -> Tensor:
        """Of a layer above those that were asked before; of the same window."""
        sparse, model = self._sparse, self._sparse.model
        model.dense_layers = self._dense
        known, h = self._begun or self._begin(token_ids)
        h = sparse.run_layers(h, range(self._below, layer), self._first)
        self._begun, self._below = (known, h), layer
        model.dense_layers = self._dense - {layer}
        behind = sparse.run_layers(h, self._whole[layer:], self._first)
        return sparse.losses_behind(behind, token_ids, _half(token_ids)) - known

    def _begin(self, token_ids: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Of the dense model: losses of the second half, and what the first layer reads of the tokens that change."""
        sparse, half = self._sparse, _half(token_ids)
        self._first = sparse.stretch_of(min(half, sparse.seen_whole))
        h = sparse.embedded(token_ids)
        known = sparse.losses_behind(sparse.run_layers(h, self._whole), token_ids, half)
        return known, h[self._first :].clone()
