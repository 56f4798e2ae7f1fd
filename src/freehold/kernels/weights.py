"""Weights in the form that products take: panels of 64 outputs, as numbers or as codes of 8 or 4 bits."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch

from freehold.core.axes import ceil_div
from freehold.core.coded import CodedWeight
from freehold.core.errors import ArgumentError
from freehold.core.memory import large_empty
from freehold.kernels.library import STORAGE, check, native

PANEL = 64

_KINDS = {"float32": 0, "bfloat16": 1, "int8": 2, "int4": 3, "float16": 4}
_STORED = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}
_BITS = {"int8": 8, "int4": 4}


@dataclass(frozen=True, slots=True)
class PackedWeight:
    """A weight (out_features, in_features) laid out for `linear` and `experts`.

    data: (ceil(out_features / 64), in_features, 64) float32, bfloat16 or float16; of codes (panels, in_features / 4 or
    8, 64) int32 words. scales, offsets: (panels, in_features / group, 64) float32 of codes. bias: (out_features,)
    float32 that is added to the product. coded_inputs: products round inputs to codes of 8 bits, with a scale for 32 of
    them, and add integers; of codes whose values are no small integers they do not (`handle.coded_inputs` says so).
    """

    kind: str
    data: torch.Tensor
    in_features: int
    out_features: int
    scales: torch.Tensor | None = None
    offsets: torch.Tensor | None = None
    table: tuple[float, ...] = ()
    bias: torch.Tensor | None = None
    coded_inputs: bool = False
    handle: Any = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        groups = 1 if self.scales is None else self.scales.shape[1]
        handle = native().Weight(
            _KINDS[self.kind], self.out_features, self.in_features, self.data.data_ptr(), _address(self.scales),
            _address(self.offsets), self.in_features // groups, list(self.table), _address(self.bias),
            self.coded_inputs,
        )  # fmt: skip
        object.__setattr__(self, "handle", handle)

    @property
    def nbytes(self) -> int:
        """Bytes that a product of one row reads."""
        return sum(t.nbytes for t in (self.data, self.scales, self.offsets, self.bias) if t is not None)

    def with_bias(self, bias: torch.Tensor) -> PackedWeight:
        """The same weight with a bias (out_features,)."""
        bias = bias.detach().float().contiguous().clone()
        check("bias", bias, torch.float32, self.out_features)
        return replace(self, bias=bias)

    def rows(self, ids: torch.Tensor) -> torch.Tensor:
        """Rows of the float32 matrix that the weight stands for: ids (n,) int64 -> (n, in_features)."""
        to = torch.empty(ids.shape[0], self.in_features)
        native().unpack_rows(self.handle, check("ids", ids, torch.int64, None), ids.shape[0], to.data_ptr())
        return to


def pack_weight(weight: torch.Tensor) -> PackedWeight:
    """Packs a (out_features, in_features) float32, bfloat16 or float16 weight.

    The values stay the same to the bit. The source is only read, so it may be a memory map.
    """
    if weight.ndim != 2 or 0 in weight.shape:
        raise ArgumentError(f"weight has shape {tuple(weight.shape)}; it must be (out_features, in_features)")
    if weight.dtype not in _STORED:
        raise ArgumentError(f"weight has type {weight.dtype}; it must be float32, bfloat16 or float16")
    weight = weight.contiguous()
    out_features, in_features = weight.shape
    panels = large_empty(ceil_div(out_features, PANEL), in_features, PANEL, dtype=weight.dtype)
    storage = STORAGE.get(weight.dtype, STORAGE[torch.bfloat16])  # of float16 the bits are moved like those of bfloat16
    native().pack_weight(weight.data_ptr(), storage, out_features, in_features, panels.data_ptr(), storage)
    return PackedWeight(_STORED[weight.dtype], panels, in_features, out_features)


def pack_codes(weight: CodedWeight, *, coded_inputs: bool = False) -> PackedWeight:
    """Packs a weight of codes, whose group must be a multiple of 8. coded_inputs: see `PackedWeight`.

    Raises ArgumentError for tensors that disagree.
    """
    codes, scales, bits = weight.codes, weight.scales, weight.bits
    kind = f"int{bits}"
    if kind not in _BITS:
        raise ArgumentError(f"bits is {bits}; it must be 8 or 4")
    dtype = torch.int8 if bits == 8 else torch.uint8
    if codes.ndim != 2 or 0 in codes.shape or codes.dtype != dtype:
        raise ArgumentError(
            f"codes have shape {tuple(codes.shape)} and type {codes.dtype}; with {bits} bits they must be "
            f"(out_features, in_features) {dtype}"
        )
    if bits == 4 and (len(weight.table) != 16 or int(codes.max()) > 15):
        raise ArgumentError(f"codes go up to {int(codes.max())} with {len(weight.table)} values; 4 bits take 16 values")
    out_features, in_features = codes.shape
    groups = scales.shape[1] if scales.ndim == 2 else 0
    if groups < 1 or in_features % groups or in_features // groups % 8:
        raise ArgumentError(
            f"scales have shape {tuple(scales.shape)} for {in_features} inputs; "
            "each scale must belong to the same number of inputs, a multiple of 8"
        )
    codes = codes.contiguous()
    words = large_empty(ceil_div(out_features, PANEL), in_features * bits // 32, PANEL, dtype=torch.int32)
    native().pack_codes(codes.data_ptr(), _KINDS[kind], out_features, in_features, words.data_ptr())
    offsets = None if weight.offsets is None else _panels(weight.offsets, out_features)
    scales, table = _panels(scales, out_features), tuple(weight.table)
    return PackedWeight(kind, words, in_features, out_features, scales, offsets, table, coded_inputs=coded_inputs)


def _panels(values: torch.Tensor, out_features: int) -> torch.Tensor:
    """(out_features, groups) -> (panels, groups, 64); lanes beyond the outputs are zero."""
    check("scales or offsets", values.contiguous(), torch.float32, out_features, None)
    groups, panels = values.shape[1], ceil_div(out_features, PANEL)
    padded = torch.nn.functional.pad(values, (0, 0, 0, panels * PANEL - out_features))
    to = large_empty(panels, groups, PANEL)
    return to.copy_(padded.view(panels, PANEL, groups).transpose(1, 2))


def _address(tensor: torch.Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()
