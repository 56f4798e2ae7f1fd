"""The only room that knows a compiled library exists: one Python function for each native kernel.

Each function checks shapes, types and layout once, by name, and hands addresses to the library. Nothing here
falls back: without the library every call raises KernelError.
"""

from freehold.kernels.attention import SelectStats, Stage, attend, select, select_with_stats, sparse, write
from freehold.kernels.attention_backward import attend_backward
from freehold.kernels.elementwise import rms_norm, rope_, rope_table, route_sigmoid
from freehold.kernels.encode import encode
from freehold.kernels.experts import Experts, Gate, experts, experts_in_waves, gated_mlp
from freehold.kernels.fused_layer import FusedLayer, FusedLayerParts, IndexParts
from freehold.kernels.library import isa, set_threads, threads, use_isa
from freehold.kernels.linear import linear, linears
from freehold.kernels.using_threads import using_threads
from freehold.kernels.weights import PackedWeight, pack_codes, pack_weight

__all__ = [
    "Experts",
    "FusedLayer",
    "FusedLayerParts",
    "Gate",
    "IndexParts",
    "PackedWeight",
    "SelectStats",
    "Stage",
    "attend",
    "attend_backward",
    "encode",
    "experts",
    "experts_in_waves",
    "gated_mlp",
    "isa",
    "linear",
    "linears",
    "pack_codes",
    "pack_weight",
    "rms_norm",
    "rope_",
    "rope_table",
    "route_sigmoid",
    "select",
    "select_with_stats",
    "set_threads",
    "sparse",
    "threads",
    "use_isa",
    "using_threads",
    "write",
]
