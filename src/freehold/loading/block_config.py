"""The quantization_config of checkpoints that hold GGML's blocks in safetensors, as `freehold quantize` writes them.

A quantised matrix is a tensor U8 (out, bytes of a row) under its weight's name; the configuration says of which kind
its blocks are.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import gguf

from freehold.core.errors import ConfigError, TensorMismatchError
from freehold.loading.checkpoint import TensorInfo
from freehold.loading.ggml_blocks import LAYOUTS
from freehold.loading.quoting import quoted

_METHOD = "freehold"
_VERSION = 1


def is_block_config(values: Any) -> bool:
    """Whether a quantization_config is one of these."""
    return isinstance(values, Mapping) and values.get("quant_method") == _METHOD


def block_config(kinds: Mapping[str, str]) -> dict[str, Any]:
    """The configuration of a checkpoint; kinds: the kind of each quantised tensor, by its name."""
    default = Counter(kinds.values()).most_common(1)[0][0] if kinds else "Q8_0"
    others: dict[str, list[str]] = {}
    for name, kind in kinds.items():
        if kind != default:
            others.setdefault(kind, []).append(name)
    return {"quant_method": _METHOD, "version": _VERSION, "default": default, "tensors": others}


def find_blocks(values: Mapping[str, Any], stored: Mapping[str, TensorInfo], where: str) -> dict[str, TensorInfo]:
    """The quantised tensors, with the matrix's own shape and the blocks' kind as dtype.

    Raises ConfigError for a configuration that is not understood, TensorMismatchError for tensors that do not fit it.
    """
    known = {"quant_method", "version", "default", "tensors"}
    unknown = sorted(set(values) - known)
    if unknown:
        raise ConfigError(f"{where}: unknown keys {unknown}; they may change what the stored weights mean")
    if values.get("version") != _VERSION:
        raise ConfigError(f"{where}: version is {quoted(values.get('version'))}; this release reads {_VERSION}")
    default, others = str(values.get("default")), values.get("tensors")
    if not isinstance(others, Mapping) or not all(map(_is_names, others.values())):
        raise ConfigError(f"{where}: tensors is {quoted(others)}; it must map kinds to lists of names")
    for kind in (default, *others):
        if kind not in LAYOUTS:
            raise ConfigError(f"{where}: {quoted(kind)} is no kind of blocks that is read: {', '.join(LAYOUTS)}")
    kind_of = {name: kind for kind, names in others.items() for name in names}
    misshapen, mistyped = [], []
    found = {}
    for name in kind_of:
        if name not in stored or stored[name].dtype != "U8":
            what = stored[name].dtype if name in stored else "missing"
            mistyped.append(f"{name}: is {what}, must be U8, since quantization_config has it as {kind_of[name]}")
    for name, info in stored.items():
        if info.dtype != "U8":
            continue
        kind = kind_of.get(name, default)
        block, nbytes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
        if len(info.shape) < 2 or info.shape[-1] % nbytes:
            misshapen.append(f"{name}: is {info.shape}; rows of {kind} have a multiple of {nbytes} bytes")
            continue
        found[name] = TensorInfo((*info.shape[:-1], info.shape[-1] // nbytes * block), kind)
    if misshapen or mistyped:
        raise TensorMismatchError(where, misshapen=misshapen, mistyped=mistyped)
    return found


def _is_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)
