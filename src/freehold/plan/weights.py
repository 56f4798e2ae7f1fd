"""How many bytes the weights take in memory and on the disk, in the type they are stored in or in another."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from freehold.core.axes import ceil_div
from freehold.loading.checkpoint import TensorInfo
from freehold.plan.part import Part
from freehold.plan.subject import Kind, Subject

Format = Literal["as-stored", "bf16", "int8", "int4"]
FORMATS: tuple[Format, ...] = get_args(Format)

_PANEL = 64  # rows of a weight that lie together in memory; the last ones are filled up
_GROUP = 32  # weights that share a scale in int8 and int4
_MEMORY_BITS: dict[Format, float] = {"bf16": 16, "int8": 8 + 32 / _GROUP, "int4": 4 + 32 / _GROUP}
_DISK_BITS: dict[Format, float] = {"bf16": 16, "int8": 8 + 16 / _GROUP, "int4": 4 + 16 / _GROUP}
_LOADED_BITS = {"BF16": 16, "F32": 32, "F16": 32}
NOT_LOADED: tuple[Part, ...] = ("vision", "other")
"""Parts that only stand in the files."""
KEPT: tuple[Part, ...] = ("router", "norms")
"""Always float32 in memory."""

FORMAT_NOTE = (
    f"int8 and int4: codes with a float32 scale for each {_GROUP} weights in memory, a float16 one on the disk; the "
    "router and the norms stay float32, the index branch bfloat16"
)


@dataclass(frozen=True, slots=True)
class WeightCost:
    """memory: bytes in memory of each part that is loaded; the vision tower is not. expert, stored_expert: bytes of one
    routed expert of one layer in memory and on the disk; 0 without experts."""

    format: Format
    memory: dict[Part, int]
    expert: int
    stored_expert: int

    @property
    def total(self) -> int:
        """Bytes of all weights in memory."""
        return sum(self.memory.values())

    @property
    def routed(self) -> int:
        """Bytes of the routed experts in memory."""
        return self.memory.get("routed experts", 0)


def weight_cost(subject: Subject, weights: Format) -> WeightCost:
    """What the weights take in this format. "as-stored" is what loading the checkpoint takes today: safetensors keep
    bfloat16 and float32, everything else becomes float32."""
    memory: dict[Part, int] = {}
    stored = 0
    for kind, count in subject.kinds.items():
        if kind.part in NOT_LOADED or (kind.part == "head" and subject.config.tie_embeddings):
            continue
        memory[kind.part] = memory.get(kind.part, 0) + count * _in_memory(kind, weights)
        if kind.part == "routed experts":
            stored += count * _on_disk(kind, weights)
    num_experts = subject.num_experts * subject.num_moe_layers
    routed = memory.get("routed experts", 0)
    return WeightCost(
        weights,
        memory,
        expert=routed // num_experts if num_experts else 0,
        stored_expert=stored // num_experts if num_experts else 0,
    )


def _in_memory(kind: Kind, weights: Format) -> int:
    info = kind.info
    if len(info.shape) < 2:
        return 0 if kind.parameters == 0 and info.numel else 4 * info.numel
    if kind.part in KEPT:
        return _padded(info) * 4
    if weights != "as-stored":
        if kind.parameters == 0:
            return 0  # a scale of the stored form
        bits = 16.0 if kind.part == "index" else _MEMORY_BITS[weights]
        return math.ceil(_padded(info) * (kind.parameters // info.numel) * bits / 8)
    bits = _LOADED_BITS.get(info.dtype, 32)
    return kind.nbytes if _is_packed(info) else math.ceil(_padded(info) * bits / 8)


def _is_packed(info: TensorInfo) -> bool:
    """Whether it is a tensor of MXFP8 or NVFP4, which would stay as it is."""
    return info.dtype.startswith(("F8_", "F4", "U8"))


def _on_disk(kind: Kind, weights: Format) -> int:
    if weights == "as-stored":
        return kind.nbytes
    return math.ceil(kind.parameters * _DISK_BITS[weights] / 8)


def _padded(info: TensorInfo) -> int:
    """Elements of a matrix, or of a stack of them, in panels of whole rows."""
    *stack, rows, columns = info.shape
    return math.prod(stack) * ceil_div(rows, _PANEL) * _PANEL * columns
