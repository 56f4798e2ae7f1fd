"""What a checkpoint's `quantization_config` says about its weights, read strictly.

Read are the forms in which MiniMax-M3 is published, and their close kin:

    quant_method "mxfp8"     MiniMax: E4M3 with an E8M0 scale for 32 columns of a row
    quant_method "fp8"       transformers: E4M3 with a float scale for weight_block_size, or one for the matrix
    quant_method "modelopt"  NVIDIA: quant_algo MXFP8, FP8, NVFP4, W4A16_NVFP4, or MIXED_PRECISION of these

How activations are to be quantised is left out of account: here the engine's own settings say it.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from freehold.core.errors import ConfigError
from freehold.loading.quantized import ScaledKind
from freehold.loading.quoting import quoted


@dataclass(frozen=True, slots=True)
class WeightFormat:
    """How a quantised matrix is stored.

    block: rows and columns that share a scale; None if the matrix has only one. scale_dtypes: the types that the scales
    may have, in safetensors' words.
    """

    kind: ScaledKind
    block: tuple[int, int] | None
    scale_dtypes: tuple[str, ...]


MXFP8 = WeightFormat("MXFP8", (1, 32), ("U8", "F8_E8M0"))
NVFP4 = WeightFormat("NVFP4", (1, 16), ("F8_E4M3",))
FP8 = WeightFormat("FP8", None, ("F32", "BF16"))

_ALGORITHMS = {"MXFP8": MXFP8, "NVFP4": NVFP4, "W4A16_NVFP4": NVFP4, "FP8": FP8}
_MODELOPT = ("modelopt", "modelopt_fp4", "modelopt_mixed", "modelopt_mxfp8")
IGNORED_KEYS = ("ignored_layers", "modules_to_not_convert", "ignore", "exclude_modules")
"""Under which lists of modules that are not quantised stand."""
MAX_IGNORED_PARTS = 32
"""Most components of a name in a list of ignored modules; M3's have nine."""
MAX_PATTERNS = 1000
_MAX_REPEATS = 3
_REPEATED_GROUP = re.compile(r"\)[*+{]")
# activation_scheme and config_groups' input_activations concern activations; config_groups repeats, for other readers,
# what quant_algo and quantized_layers say. producer is a remark.
_HARMLESS_KEYS = frozenset({"activation_scheme", "config_groups", "producer", "quant_method"})


@dataclass(frozen=True, slots=True)
class Quantization:
    """Which modules are quantised, and how.

    default: the format of modules that nothing else is said of; None if only those in `layers` are quantised.
    layers: module, or a module above it -> format. ignored: components of paths, joined by dots: modules whose path
    holds them in a row are not quantised. ignored_patterns: nor are those that one of these fits.
    """

    default: WeightFormat | None
    layers: Mapping[str, WeightFormat]
    ignored: frozenset[str]
    ignored_patterns: tuple[re.Pattern[str], ...]

    def format_of(self, module: str) -> WeightFormat | None:
        """The format of a module's weight, or None if it is not to be quantised. A name in `layers` counts first."""
        parts = module.split(".")
        for end in range(len(parts), 0, -1):
            found = self.layers.get(".".join(parts[:end]))
            if found is not None:
                return found
        lengths = range(1, min(len(parts), MAX_IGNORED_PARTS) + 1)
        runs = (".".join(parts[a : a + length]) for length in lengths for a in range(len(parts) - length + 1))
        if any(run in self.ignored for run in runs) or any(p.match(module) for p in self.ignored_patterns):
            return None
        return self.default


def read_quantization(values: Any, where: str) -> Quantization:
    """Reads a `quantization_config`; `where` names it in errors. Raises ConfigError for whatever it does not know."""
    if not isinstance(values, Mapping):
        raise ConfigError(f"{where}: is {quoted(values)}; it must be an object")
    inner = values.get("quantization")
    if isinstance(inner, Mapping):  # the form of hf_quant_config.json
        _refuse_unknown(values, {"quantization"}, where)
        values = {"quant_method": values.get("quant_method", "modelopt"), **inner}
    method = values.get("quant_method")
    if method is None and "quant_algo" in values:
        method = "modelopt"
    if method == "mxfp8":
        return _read_mxfp8(values, where)
    if method == "fp8":
        return _read_fp8(values, where)
    if method in _MODELOPT:
        return _read_modelopt(values, where)
    raise ConfigError(
        f"{where}: quant_method is {quoted(method)}, which is not read; read are 'mxfp8', 'fp8' and 'modelopt'. Use"
        " another quantisation of the model, or GGUF"
    )


def _read_mxfp8(values: Mapping[str, Any], where: str) -> Quantization:
    _require(values, "weight_block_size", ([1, 32], None), where)
    _require(values, "fmt", ("e4m3", None), where)
    _require(values, "scale_fmt", ("ue8m0", None), where)
    _refuse_unknown(values, {"weight_block_size", "fmt", "scale_fmt", *IGNORED_KEYS}, where)
    return Quantization(MXFP8, {}, *_ignored(values, where))


def _read_fp8(values: Mapping[str, Any], where: str) -> Quantization:
    _require(values, "fmt", ("e4m3", None), where)
    _require(values, "scale_fmt", ("float", "ue8m0", None), where)
    _require(values, "expert_dtype", ("fp8", None), where)
    _require(values, "dequantize", (False, True, None), where)
    _require(values, "modules_to_convert", (None, []), where)
    known = {"weight_block_size", "fmt", "scale_fmt", "expert_dtype", "dequantize", "modules_to_convert"}
    _refuse_unknown(values, {*known, *IGNORED_KEYS}, where)
    block = values.get("weight_block_size")
    if block is not None and not (
        isinstance(block, list) and len(block) == 2 and all(type(size) is int and size > 0 for size in block)
    ):
        raise ConfigError(f"{where}: weight_block_size is {quoted(block)}; it must be [rows, columns] or null")
    if values.get("scale_fmt") == "ue8m0":
        if block is None:
            raise ConfigError(f"{where}: scale_fmt is 'ue8m0', but weight_block_size is missing")
        return Quantization(
            WeightFormat("MXFP8", (block[0], block[1]), MXFP8.scale_dtypes), {}, *_ignored(values, where)
        )
    shape = None if block is None else (block[0], block[1])
    return Quantization(WeightFormat("FP8", shape, FP8.scale_dtypes), {}, *_ignored(values, where))


def _read_modelopt(values: Mapping[str, Any], where: str) -> Quantization:
    for key in ("kv_cache_quant_algo", "kv_cache_scheme"):  # the cache has types of its own
        _require(values, key, (None,), where)
    _require(values, "group_size", (16, 32, None), where)
    known = {"quant_algo", "kv_cache_quant_algo", "kv_cache_scheme", "group_size", "quantized_layers"}
    _refuse_unknown(values, {*known, *IGNORED_KEYS}, where)
    algorithm, listed = values.get("quant_algo"), values.get("quantized_layers")
    if algorithm != "MIXED_PRECISION":
        if listed:
            raise ConfigError(
                f"{where}: quantized_layers goes with quant_algo 'MIXED_PRECISION', not {quoted(algorithm)}"
            )
        return Quantization(_format(algorithm, where), {}, *_ignored(values, where))
    if not isinstance(listed, Mapping) or not listed:
        raise ConfigError(
            f"{where}: quantized_layers is {quoted(listed)}; with MIXED_PRECISION it must name the layers"
        )
    layers = {}
    for module, entry in listed.items():
        if not isinstance(entry, Mapping):
            raise ConfigError(f"{where}: quantized_layers[{quoted(module)}] is {quoted(entry)}; it must be an object")
        layers[module] = _format(entry.get("quant_algo"), f"{where}: quantized_layers[{quoted(module)}]")
    return Quantization(None, layers, *_ignored(values, where))


def _format(algorithm: Any, where: str) -> WeightFormat:
    if not isinstance(algorithm, str) or algorithm not in _ALGORITHMS:
        known = ", ".join(_ALGORITHMS)
        raise ConfigError(f"{where}: quant_algo is {quoted(algorithm)}, which is not read; read are {known}")
    return _ALGORITHMS[algorithm]


def _require(values: Mapping[str, Any], key: str, allowed: tuple[Any, ...], where: str) -> None:
    value = values.get(key)
    if value not in allowed:
        known = ", ".join("null" if option is None else repr(option) for option in allowed)
        raise ConfigError(f"{where}: {key} is {quoted(value)}, which is not supported; supported: {known}")


def _refuse_unknown(values: Mapping[str, Any], known: set[str], where: str) -> None:
    unknown = sorted(set(values) - known - _HARMLESS_KEYS)
    if unknown:
        raise ConfigError(f"{where}: unknown keys {unknown}; they may change what the stored weights mean")


def _ignored(values: Mapping[str, Any], where: str) -> tuple[frozenset[str], tuple[re.Pattern[str], ...]]:
    """Names, and patterns."""
    found: list[str] = []
    for key in IGNORED_KEYS:
        names = values.get(key) or []
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise ConfigError(f"{where}: {key} is {quoted(names)}; it must list names of modules")
        found += names
    patterns, names = list(filter(_is_pattern, found)), [name for name in found if not _is_pattern(name)]
    if len(patterns) > MAX_PATTERNS:
        raise ConfigError(f"{where}: has {len(patterns)} patterns of ignored modules; at most {MAX_PATTERNS} are read")
    for name in names:
        if name.count(".") >= MAX_IGNORED_PARTS:
            raise ConfigError(
                f"{where}: the ignored module {quoted(name)} has {name.count('.') + 1} components; at most"
                f" {MAX_IGNORED_PARTS} are read"
            )
    return frozenset(names), tuple(compiled for pattern in patterns for compiled in _compiled(pattern, where))


def _compiled(pattern: str, where: str) -> list[re.Pattern[str]]:
    """A pattern with `*` or `?` fits the whole path, or all of it up to a dot; `re:` begins a regular expression for
    the path's beginning. Raises ConfigError for one that may take longer than anyone waits: nested repetitions do."""
    if not pattern.startswith("re:"):
        return [re.compile(fnmatch.translate(form)) for form in (pattern, f"{pattern}.*")]
    written = pattern[3:]
    if _REPEATED_GROUP.search(written) or sum(map(written.count, "*+{")) > _MAX_REPEATS:
        raise ConfigError(
            f"{where}: the pattern {quoted(pattern)} of ignored modules repeats a group, or more than {_MAX_REPEATS}"
            " times; such patterns may take very long, and are not read"
        )
    try:
        return [re.compile(written)]
    except (re.error, OverflowError, RecursionError) as error:
        raise ConfigError(
            f"{where}: the pattern {quoted(pattern)} of ignored modules is no regular expression: {error}"
        ) from error


def _is_pattern(name: str) -> bool:
    return name.startswith("re:") or "*" in name or "?" in name
