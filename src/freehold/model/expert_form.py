"""How an expert's matrix lies in its file: what is said about it there, and what is made of it again."""

from __future__ import annotations

from typing import Any

import torch

from freehold.core.axes import ceil_div
from freehold.kernels import PackedWeight
from freehold.kernels.weights import PANEL
from freehold.loading.expert_file import ALIGNMENT, Listed, Region

_STORED = {
    "float32": (torch.float32, 1),
    "bfloat16": (torch.bfloat16, 1),
    "float16": (torch.float16, 1),
    "int8": (torch.int32, 4),
    "int4": (torch.int32, 8),
}
"""Of each kind the type that its data are stored in, and how many inputs stand in one number of it."""

_TABLE_SIZE = {"int4": 16}
_LARGEST = torch.finfo(torch.float32).max


def form_of(weight: PackedWeight) -> dict[str, Any]:
    """What is needed to find a weight's tensors in its bytes again."""
    groups = 0 if weight.scales is None else int(weight.scales.shape[1])
    return {
        "kind": weight.kind,
        "in_features": weight.in_features,
        "out_features": weight.out_features,
        "groups": groups,
        "offsets": weight.offsets is not None,
        "table": list(weight.table),
    }


def bytes_of(weight: PackedWeight) -> list[memoryview]:
    """A weight's tensors as bytes, in the order in which `weight_in` expects them."""
    tensors = [t for t in (weight.data, weight.scales, weight.offsets) if t is not None]
    return [memoryview(t.contiguous().view(torch.uint8).numpy()) for t in tensors]  # type: ignore[arg-type]


def weight_in(memory: torch.Tensor, form: dict[str, Any], *, coded_inputs: bool = False) -> PackedWeight:
    """A weight whose bytes are in `memory`, uint8, now or later. coded_inputs: see `PackedWeight`."""
    kind, inputs, outputs, groups = form["kind"], form["in_features"], form["out_features"], form["groups"]
    panels = ceil_div(outputs, PANEL)
    dtype, together = _STORED[kind]
    columns = inputs // together
    at = 0

    def take(dtype: torch.dtype, columns: int) -> torch.Tensor:
        nonlocal at
        nbytes = panels * columns * PANEL * dtype.itemsize
        found = memory[at : at + nbytes].view(dtype).view(panels, columns, PANEL)
        at += nbytes
        return found

    data = take(dtype, columns)
    scales = take(torch.float32, groups) if groups else None
    offsets = take(torch.float32, groups) if form["offsets"] else None
    table = tuple(form["table"])
    return PackedWeight(kind, data, inputs, outputs, scales, offsets, table, coded_inputs=coded_inputs)


def check_form(region: Region, shape: tuple[int, ...], where: str) -> None:
    """Raises CorruptFileError unless a weight of this shape, (out, in), can be found in the region's bytes.

    where: the file that lists the region.
    """
    form = Listed(region.form, f"{where}: form of {region.part} in layer {region.layer}")
    kind = form.get("kind", str, _one_of_kinds())
    if kind not in _STORED:
        raise form.fail("kind", _one_of_kinds())
    outputs, inputs = form.number("out_features", *shape[:1] * 2), form.number("in_features", *shape[1:] * 2)
    coded = kind in ("int8", "int4")
    groups = form.number("groups", int(coded), inputs // 8 if coded else 0)
    if coded and (inputs % groups or inputs // groups % 8):
        raise form.fail("groups", f"such that each has the same multiple of 8 of {inputs} inputs")
    offsets = form.get("offsets", bool, "true or false")
    if offsets and not coded:
        raise form.fail("offsets", f"false with {kind}")
    table, size = form.get("table", list, "a list"), _TABLE_SIZE.get(kind, 0)
    if len(table) != size or not all(type(v) in (int, float) and abs(v) <= _LARGEST for v in table):
        raise form.fail("table", f"a list of {size} numbers with {kind}")
    dtype, together = _STORED[kind]
    columns = inputs // together * dtype.itemsize + groups * (1 + offsets) * torch.float32.itemsize
    nbytes = ceil_div(ceil_div(outputs, PANEL) * PANEL * columns, ALIGNMENT) * ALIGNMENT
    if region.nbytes != nbytes:
        raise Listed({"nbytes": region.nbytes}, f"{where}: region of {region.part} in layer {region.layer}").fail(
            "nbytes", f"{nbytes}, which its form takes"
        )


def _one_of_kinds() -> str:
    return f"one of {', '.join(_STORED)}"
