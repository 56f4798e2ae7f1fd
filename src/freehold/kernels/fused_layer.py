"""A whole layer in one call: attention, over all blocks or those that an index branch picks, and a gated network."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from freehold.core.blocks import LayerLanes, Spans
from freehold.core.errors import ArgumentError
from freehold.kernels.attention import (
    addresses,
    check_choice,
    check_spans,
    sketch_addresses,
    slots_and_frames,
    storage_of,
)
from freehold.kernels.experts import Gate, Network
from freehold.kernels.library import check, native, threads
from freehold.kernels.weights import PackedWeight

Norm = torch.Tensor | None


@dataclass(frozen=True, slots=True)
class IndexParts:
    """projections: of index queries (num_kv_heads * index_dim, hidden_size) and of the key that all heads share
    (index_dim, hidden_size). norms: of both (index_dim,), or None. The rest: see `select`."""

    projections: tuple[PackedWeight, PackedWeight]
    norms: tuple[Norm, Norm]
    topk: int
    local_blocks: int
    init_blocks: int


@dataclass(frozen=True, slots=True)
class FusedLayerParts:
    """h += o(attend(rope(norm(q n)), rope(norm(k n)), v n)) with n = norm(h); h += network(norm(h)).

    attention: q, k, v and o. norms: before attention and network (hidden_size,), float32; of q and k (head_dim,), or
    None. All norms are RMS norms with `eps`. index: None where attention reads every block.
    """

    attention: tuple[PackedWeight, PackedWeight, PackedWeight, PackedWeight]
    network: Network
    norms: tuple[torch.Tensor, torch.Tensor, Norm, Norm]
    eps: float
    num_q_heads: int
    num_kv_heads: int
    head_dim: int
    gate: Gate
    index: IndexParts | None = None


class FusedLayer:
    """The parts, ready to run. It keeps them alive."""

    def __init__(self, parts: FusedLayerParts) -> None:
        """Raises ArgumentError for weights that do not fit together."""
        q, k, v, o = parts.attention
        gate, up, down = parts.network
        wide, narrow, hidden = parts.num_q_heads * parts.head_dim, parts.num_kv_heads * parts.head_dim, q.in_features
        width = gate.out_features
        wanted = [(wide, hidden), (narrow, hidden), (narrow, hidden), (hidden, wide)]
        wanted += [(width, hidden), (width, hidden), (hidden, width)]
        _check_shapes("a layer", (q, k, v, o, gate, up, down), wanted)
        sizes = (hidden, hidden, parts.head_dim, parts.head_dim)
        norms = [_norm(norm, size) for norm, size in zip(parts.norms, sizes, strict=True)]
        self.parts, self._hidden, self._index_dim = parts, hidden, 0
        self._handle = native().FusedLayer(
            [w.handle for w in parts.attention], [w.handle for w in parts.network], norms, parts.eps,
            parts.head_dim**-0.5, parts.num_q_heads, parts.num_kv_heads, parts.head_dim,
            int(parts.gate.clamped), parts.gate.alpha, parts.gate.limit,
        )  # fmt: skip
        if parts.index is not None:
            self._set_index(parts.index)

    def _set_index(self, index: IndexParts) -> None:
        (q, k), dim = index.projections, index.projections[1].out_features
        _check_shapes("an index branch", (q, k), [(self.parts.num_kv_heads * dim, self._hidden), (dim, self._hidden)])
        check_choice(index.topk, index.local_blocks, index.init_blocks)
        norms = [_norm(norm, dim) for norm in index.norms]
        self._handle.set_index(q.handle, k.handle, *norms, dim, index.topk, index.local_blocks, index.init_blocks)
        self._index_dim = dim

    def run(
        self,
        h: torch.Tensor,
        cos: torch.Tensor,
        sin: torch.Tensor,
        spans: Spans,
        lanes: LayerLanes,
        *,
        dense: bool = False,
        frames: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """h (rows, hidden_size) float32, which is changed and returned; cos, sin (rows, half). And the block ids that
        were read, int32 (rows, num_kv_heads, topk), or None where all were.

        The same bits as the layer's operators one by one. dense: read every block though there is an index branch.
        frames: see `write`. Every block that may be read must lie in the frame of its own number. Raises ArgumentError
        for lanes of another kind of layer.
        """
        for name, tensor in (("h", h), ("cos", cos)):
            if tensor.dim() != 2:
                raise ArgumentError(f"{name} has shape {tuple(tensor.shape)}; it must have 2 axes")
        rows, half, index = h.shape[0], cos.shape[1], self.parts.index
        self._check_lanes(lanes, half)
        check_spans(spans, rows, lanes.block_tokens)
        chosen = None
        if index is not None and not dense:
            chosen = torch.empty(rows, lanes.num_kv_heads, index.topk, dtype=torch.int32)
        frames = spans.slot if frames is None else frames
        try:
            self._handle.run(
                check("h", h, torch.float32, rows, self._hidden), rows, check("cos", cos, torch.float32, rows, half),
                check("sin", sin, torch.float32, rows, half), half, lanes.k.data_ptr(), lanes.v.data_ptr(),
                *sketch_addresses(lanes.index), storage_of(lanes), *addresses(spans, slots_and_frames(lanes)),
                check("frames", frames, torch.int32, rows), spans.slot.data_ptr(), spans.offset.data_ptr(),
                lanes.block_tokens, 0 if chosen is None else chosen.data_ptr(), threads(),
                lanes.k.size(0), 0 if lanes.index is None else lanes.index.keys.size(0),
            )  # fmt: skip
        except ValueError as error:  # what the spans hold is looked at by the kernels
            raise ArgumentError(str(error)) from None
        return h, chosen

    def _check_lanes(self, lanes: LayerLanes, half: int) -> None:
        parts, has = self.parts, 0 if lanes.index is None else lanes.index.index_dim
        if has != self._index_dim:
            raise ArgumentError(f"the lanes hold index keys of {has} dimensions; the layer's have {self._index_dim}")
        least = min(parts.head_dim, self._index_dim or parts.head_dim)
        if 2 * half > least:
            raise ArgumentError(f"cos turns {2 * half} channels; a head has {least}")
        if (lanes.num_kv_heads, lanes.head_dim) != (parts.num_kv_heads, parts.head_dim):
            raise ArgumentError(
                f"the lanes hold {lanes.num_kv_heads} heads of {lanes.head_dim}; the layer has "
                f"{parts.num_kv_heads} of {parts.head_dim}"
            )


def _norm(norm: Norm, size: int) -> int:
    return 0 if norm is None else check("norm", norm, torch.float32, size)


def _check_shapes(what: str, weights: tuple[PackedWeight, ...], wanted: list[tuple[int, int]]) -> None:
    found = [(w.out_features, w.in_features) for w in weights]
    if found != wanted:
        raise ArgumentError(f"the weights of {what} are {found}; they must be {wanted}")
