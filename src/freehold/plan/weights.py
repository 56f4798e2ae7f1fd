"""How many bytes the weights take in memory and on the disk, in the type they are stored in or in another."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Literal, get_args

from freehold.core.axes import ceil_div
from freehold.kernels.encode import BLOCK
from freehold.loading.expert_file import ALIGNMENT
from freehold.plan.part import Part
from freehold.plan.subject import Kind, Subject

Format = Literal["as-stored", "bf16", "int8", "int4"]
FORMATS: tuple[Format, ...] = get_args(Format)

_EXPERT_MATRIX = re.compile(r"(w1|w2|w3|_gate_exps|_up_exps|_down_exps)\.weight$")
_PANEL = 64  # rows of a weight that lie together in memory; the last ones are filled up
# As `freehold quantize` writes them and the loader keeps them: a scale for 32 weights, in int4 with an offset.
_MEMORY_BITS: dict[Format, float] = {"bf16": 16, "int8": 8 + 32 / 32, "int4": 4 + 64 / 32}
_DISK_BITS: dict[Format, float] = {"bf16": 16, "int8": 8 + 16 / 32, "int4": 4 + 32 / 32}
_DELICATE: tuple[Part, ...] = ("embeddings", "head", "attention", "index")
"""Parts that keep 8 bits where others have 4."""
NOT_LOADED: tuple[Part, ...] = ("other",)
"""Parts that only stand in the files."""
KEPT: tuple[Part, ...] = ("router", "norms", "vision")
"""Parts that no choice of a format changes."""


def _codes(bits: int, group: int, *, offsets: bool = False) -> float:
    """Bits of a weight in memory: a code, and a float32 scale for each group, with an offset or without."""
    return bits + (64 if offsets else 32) / group


# How the loader keeps what is stored; every other type becomes float32.
_LOADED_BITS: dict[str, float] = {
    "BF16": 16,
    "F16": 16,
    "MXFP8": 16,
    "NVFP4": _codes(4, 16),
    "Q4_0": _codes(4, 32),
    "Q4_1": _codes(4, 32, offsets=True),
    "Q4_K": _codes(4, 32, offsets=True),
    "Q2_K": _codes(4, 16, offsets=True),
    "MXFP4": _codes(4, 32),
    "IQ4_NL": _codes(4, 32),
    "IQ4_XS": _codes(4, 32),
    "Q5_0": _codes(8, 32),
    "Q5_1": _codes(8, 32, offsets=True),
    "Q5_K": _codes(8, 32, offsets=True),
    "Q8_0": _codes(8, 32),
    "Q3_K": _codes(8, 16),
    "Q6_K": _codes(8, 16),
}

FORMAT_NOTE = (
    "int8 and int4: what freehold quantize writes: codes with a scale for 32 weights, with 4 bits an offset, too; "
    "float32 in memory, float16 on the disk; attention, embeddings and head have 8 bits in any case, the router and "
    "the norms are float32, the vision tower and matrices whose rows 32 does not divide are as they are stored"
)


@dataclass(frozen=True, slots=True)
class WeightCost:
    """memory: bytes in memory of each part that is loaded. expert, stored_expert: bytes of one
    routed expert of one layer in memory and on the disk; place: bytes of memory for any one that is read from the disk,
    whose matrices begin at whole pages; 0 without experts."""

    format: Format
    memory: dict[Part, int]
    expert: int
    stored_expert: int
    place: int

    @property
    def total(self) -> int:
        """Bytes of all weights in memory."""
        return sum(self.memory.values())

    @property
    def routed(self) -> int:
        """Bytes of the routed experts in memory."""
        return self.memory.get("routed experts", 0)


def weight_cost(subject: Subject, weights: Format) -> WeightCost:
    """What the weights take in this format. "as-stored" is what loading the checkpoint takes: floats
    stay, most quantised types are kept as codes with scales, MXFP8 becomes bfloat16 and everything else float32."""
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
        place=_place(subject, weights),
    )


def _place(subject: Subject, weights: Format) -> int:
    """Of each of an expert's matrices the largest that any layer has."""
    largest: dict[str, int] = {}
    for tensor in subject.tensors:
        if tensor.kind.part == "routed experts":
            found = _EXPERT_MATRIX.search(tensor.name)  # of files that do not load there may be others
            role = found[0] if found else ""
            shape, nbytes = tensor.kind.info.shape, _in_memory(tensor.kind, weights)
            one = nbytes // max(1, shape[0]) if len(shape) == 3 else nbytes
            largest[role] = max(largest.get(role, 0), ceil_div(one, ALIGNMENT) * ALIGNMENT)
    return sum(largest.values())


def _in_memory(kind: Kind, weights: Format) -> int:
    shape = kind.info.shape
    if kind.form == "scales":
        return 0  # counted with its codes
    if len(shape) < 2 or not kind.info.numel:
        return 4 * kind.info.numel
    if kind.part == "router":
        bits = 32.0
    elif weights == "as-stored" or kind.part in KEPT:
        bits = _LOADED_BITS.get(kind.form, 32.0)
    elif _stays(kind, weights):
        bits = _unencoded_bits(kind)
    else:
        bits = _MEMORY_BITS[_format_of(kind.part, weights)]
    return math.ceil(_padded(kind) * bits / 8)


def _on_disk(kind: Kind, weights: Format) -> int:
    if weights == "as-stored":
        return kind.nbytes  # of scales, too
    if _stays(kind, weights):
        return math.ceil(kind.parameters * _unencoded_bits(kind) / 8)
    return math.ceil(kind.parameters * _DISK_BITS[_format_of(kind.part, weights)] / 8)


def _stays(kind: Kind, weights: Format) -> bool:
    """Whether `freehold quantize` keeps its values: codes have a scale for 32 weights of a row."""
    rows = math.prod(kind.info.shape[:-1])
    return weights in ("int8", "int4") and kind.parameters // max(1, rows) % BLOCK != 0


def _unencoded_bits(kind: Kind) -> float:
    """Bits of a weight of a matrix that is not encoded: floats are copied, what is quantised is expanded."""
    return _LOADED_BITS[kind.form] if kind.form in ("BF16", "F16", "MXFP8", "MXFP4") else 32.0


def _format_of(part: Part, weights: Format) -> Format:
    return "int8" if weights == "int4" and part in _DELICATE else weights


def _padded(kind: Kind) -> int:
    """Weights of a matrix, of a stack of them or of a kernel, in panels of whole rows."""
    shape = kind.info.shape
    stack, rows = (1, shape[0]) if len(shape) != 3 else shape[:2]
    columns = kind.parameters // (stack * rows)
    return stack * ceil_div(rows, _PANEL) * _PANEL * columns
