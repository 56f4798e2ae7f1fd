"""A whole layer without a choice of blocks, in one call: for one row, calls themselves are a third of the time."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from freehold.core.blocks import LayerLanes, Spans
from freehold.core.errors import ArgumentError
from freehold.kernels.attention import addresses, check_spans, storage_of
from freehold.kernels.experts import Gate, Network
from freehold.kernels.library import check, native, threads
from freehold.kernels.weights import PackedWeight


@dataclass(frozen=True, slots=True)
class DenseLayerParts:
    """h += o(attend(rope(norm(q n)), rope(norm(k n)), v n)) with n = norm(h); h += network(norm(h)).

    attention: q, k, v and o. norms: before attention and network (hidden_size,), float32; of q and k (head_dim,), or
    None. All norms are RMS norms with `eps`.
    """

    attention: tuple[PackedWeight, PackedWeight, PackedWeight, PackedWeight]
    network: Network
    norms: tuple[torch.Tensor, torch.Tensor, torch.Tensor | None, torch.Tensor | None]
    eps: float
    num_q_heads: int
    num_kv_heads: int
    head_dim: int
    gate: Gate


class DenseLayer:
    """The parts, ready to run. It keeps them alive."""

    def __init__(self, parts: DenseLayerParts) -> None:
        """Raises ArgumentError for weights that do not fit together."""
        q, k, v, o = parts.attention
        gate, up, down = parts.network
        wide, narrow, hidden = parts.num_q_heads * parts.head_dim, parts.num_kv_heads * parts.head_dim, q.in_features
        width = gate.out_features
        wanted = [(wide, hidden), (narrow, hidden), (narrow, hidden), (hidden, wide)]
        wanted += [(width, hidden), (width, hidden), (hidden, width)]
        found = [(w.out_features, w.in_features) for w in (q, k, v, o, gate, up, down)]
        if found != wanted:
            raise ArgumentError(f"the weights of a layer are {found}; they must be {wanted}")
        sizes = (hidden, hidden, parts.head_dim, parts.head_dim)
        norms = [
            0 if norm is None else check("norm", norm, torch.float32, size)
            for norm, size in zip(parts.norms, sizes, strict=True)
        ]
        self.parts, self._hidden = parts, hidden
        self._handle = native().DenseLayer(
            [w.handle for w in parts.attention], [w.handle for w in parts.network], norms, parts.eps,
            parts.head_dim**-0.5, parts.num_q_heads, parts.num_kv_heads, parts.head_dim,
            int(parts.gate.clamped), parts.gate.alpha, parts.gate.limit,
        )  # fmt: skip

    def run(
        self, h: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, spans: Spans, lanes: LayerLanes
    ) -> torch.Tensor:
        """h (rows, hidden_size) float32, which is changed and returned; cos, sin (rows, half).

        The same bits as the layer's operators one by one. Raises ArgumentError for lanes with index keys or pages.
        """
        rows, half = h.shape[0], cos.shape[1]
        if lanes.index is not None or lanes.pager is not None:
            raise ArgumentError("these lanes have index keys: the layer is sparse")
        check_spans(spans, rows, lanes.block_tokens)
        if (lanes.num_kv_heads, lanes.head_dim) != (self.parts.num_kv_heads, self.parts.head_dim):
            raise ArgumentError(
                f"the lanes hold {lanes.num_kv_heads} heads of {lanes.head_dim}; the layer has "
                f"{self.parts.num_kv_heads} of {self.parts.head_dim}"
            )
        self._handle.run(
            check("h", h, torch.float32, rows, self._hidden), rows, check("cos", cos, torch.float32, rows, half),
            check("sin", sin, torch.float32, rows, half), half, lanes.k.data_ptr(), lanes.v.data_ptr(),
            storage_of(lanes), *addresses(spans), spans.slot.data_ptr(), spans.offset.data_ptr(), lanes.block_tokens,
            threads(),
        )  # fmt: skip
        return h
