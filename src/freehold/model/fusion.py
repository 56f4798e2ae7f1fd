"""Running a layer in one call where its compute has one for it, else letting the layer go step by step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from freehold.core.blocks import LayerLanes, Spans
from freehold.kernels import FusedLayer, FusedLayerParts, IndexParts
from freehold.model.compute import Compute
from freehold.model.index_branch import IndexBranch


class Fusion:
    """One call for a layer. The layer asks at every step, as its weights come late and its lanes may be paged."""

    def __init__(self, compute: Compute, parts: Callable[[], FusedLayerParts] | None) -> None:
        """parts: what the layer is made of, once its weights are there; None: it is of another kind."""
        self.compute, self._parts = compute, parts
        self._layer: FusedLayer | None = None

    def run(
        self, h: Tensor, cos: Tensor, sin: Tensor, spans: Spans, lanes: LayerLanes, *, dense: bool
    ) -> tuple[Tensor, Tensor | None] | None:
        """What the layer's `forward` returns, or None: then nothing was done that its steps would not do again."""
        if self._parts is not None:
            self._layer, self._parts = self.compute.fused_layer(self._parts), None
        if self._layer is None:
            return None
        frames = None
        if lanes.pager is not None:
            frames = lanes.pager.writable(spans.slot)
            if not lanes.pager.direct:
                return None
        return self._layer.run(h, cos, sin, spans, lanes, dense=dense, frames=frames)


def index_parts(branch: IndexBranch | None) -> IndexParts | None:
    """The branch as `FusedLayerParts` takes it."""
    if branch is None:
        return None
    s, q, k = branch.sizes, branch.q_proj.weight, branch.k_proj.weight
    norms: Any = (branch.q_norm.weight, branch.k_norm.weight) if branch.has_norms else (None, None)
    weights: Any = (q, k)
    return IndexParts(weights, norms, s.topk, s.local_blocks, s.init_blocks)
