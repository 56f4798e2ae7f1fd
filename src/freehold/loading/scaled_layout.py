"""Finding quantised matrices among the tensors of safetensors files: which codes and scales make one weight."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from freehold.core.axes import ceil_div
from freehold.core.errors import TensorMismatchError
from freehold.loading.checkpoint import TensorInfo
from freehold.loading.quantization_config import Quantization, WeightFormat

_SCALE_SUFFIXES = ("weight_scale_inv", "weight_scale")
_OTHER_SUFFIXES = ("weight_scale_2", "input_scale", "activation_scale")
_CODE_DTYPES = {"F8_E4M3": ("MXFP8", "FP8"), "U8": ("NVFP4",)}


@dataclass(frozen=True, slots=True)
class ScaledLayout:
    """One quantised matrix. shape: its own, (out, in). scales, tensor_scale: names of stored tensors.

    block: rows and columns that share a scale. tensor_scale: None except for NVFP4.
    """

    format: WeightFormat
    shape: tuple[int, int]
    block: tuple[int, int]
    scales: str
    tensor_scale: str | None


def find_scaled(
    stored: Mapping[str, TensorInfo], quantization: Quantization, where: str
) -> tuple[dict[str, TensorInfo], dict[str, ScaledLayout]]:
    """The checkpoint's tensors as a model sees them, in the order of `stored`, and how the quantised ones are stored.

    A quantised matrix appears under its weight's name, with its own shape and the kind as its dtype; its scales do not
    appear. A weight that the configuration calls quantised but that is stored as floats is taken as it is. Raises
    TensorMismatchError with all scales that are missing, misshapen or mistyped, all codes that nothing explains, and
    all scales without codes.
    """
    problems = _Problems()
    layouts: dict[str, ScaledLayout] = {}
    for name, info in stored.items():
        if info.dtype in _CODE_DTYPES and name.endswith(".weight"):
            layout = _layout(stored, name, quantization.format_of(name.removesuffix(".weight")), problems)
            if layout is not None:
                layouts[name] = layout
    scales = {name for name in stored if name.endswith(tuple(f".{s}" for s in (*_SCALE_SUFFIXES, *_OTHER_SUFFIXES)))}
    for name in sorted(scales):
        weight = name.rpartition(".")[0] + ".weight"
        if weight not in stored:
            problems.missing.append(f"{weight} (its {name.rpartition('.')[2]} is there)")
        elif stored[weight].dtype not in _CODE_DTYPES:
            problems.mistyped.append(f"{weight}: is {stored[weight].dtype}, but has a {name.rpartition('.')[2]}")
    problems.raise_if_any(where)
    tensors = {
        name: TensorInfo(layouts[name].shape, layouts[name].format.kind) if name in layouts else info
        for name, info in stored.items()
        if name not in scales
    }
    return tensors, layouts


@dataclass(slots=True)
class _Problems:
    missing: list[str] = field(default_factory=list)
    misshapen: list[str] = field(default_factory=list)
    mistyped: list[str] = field(default_factory=list)

    def raise_if_any(self, where: str) -> None:
        if self.missing or self.misshapen or self.mistyped:
            raise TensorMismatchError(where, missing=self.missing, misshapen=self.misshapen, mistyped=self.mistyped)


def _layout(
    stored: Mapping[str, TensorInfo], name: str, expected: WeightFormat | None, problems: _Problems
) -> ScaledLayout | None:
    """The layout of the weight `name`; None if it has none, and then `problems` says why."""
    info = stored[name]
    if expected is None:
        problems.mistyped.append(f"{name}: is {info.dtype}, but quantization_config does not have it quantised")
        return None
    if expected.kind not in _CODE_DTYPES[info.dtype]:
        problems.mistyped.append(f"{name}: is {info.dtype}, which is not how {expected.kind} is stored")
        return None
    if len(info.shape) != 2:
        problems.misshapen.append(f"{name}: is {info.shape}; a quantised weight must be a matrix")
        return None
    rows, columns = info.shape[0], info.shape[1] * (2 if expected.kind == "NVFP4" else 1)
    block = expected.block or (rows, columns)
    block = min(block[0], max(rows, 1)), min(block[1], max(columns, 1))  # it ends with the matrix
    module = name.removesuffix(".weight")
    scales = _scales_name(stored, module, expected, problems)
    if scales is None:
        return None
    grid = (ceil_div(rows, block[0]), ceil_div(columns, block[1]))
    shapes: list[tuple[int, ...]] = [(), (1,), (1, 1)] if expected.block is None else [grid]
    _check(stored, scales, shapes, expected.scale_dtypes, problems)
    if expected.kind != "NVFP4":
        return ScaledLayout(expected, (rows, columns), block, scales, None)
    tensor_scale = f"{module}.weight_scale_2"
    if tensor_scale not in stored:
        problems.missing.append(tensor_scale)
        return None
    _check(stored, tensor_scale, [(), (1,)], ("F32",), problems)
    return ScaledLayout(expected, (rows, columns), block, scales, tensor_scale)


def _scales_name(
    stored: Mapping[str, TensorInfo], module: str, expected: WeightFormat, problems: _Problems
) -> str | None:
    """MiniMax and transformers end the name in `_inv`, ModelOpt does not; the scale is multiplied with either way."""
    names = [f"{module}.{suffix}" for suffix in _SCALE_SUFFIXES]
    if expected.kind == "NVFP4":
        names = names[1:]
    found = [name for name in names if name in stored]
    if not found:
        problems.missing.append(" or ".join(names))
        return None
    if len(found) == 2:
        problems.mistyped.append(f"{module}.weight: has both a weight_scale_inv and a weight_scale")
        return None
    return found[0]


def _check(
    stored: Mapping[str, TensorInfo],
    name: str,
    shapes: list[tuple[int, ...]],
    dtypes: tuple[str, ...],
    problems: _Problems,
) -> None:
    info = stored[name]
    if info.shape not in shapes:
        problems.misshapen.append(f"{name}: is {info.shape}, must be {' or '.join(map(str, shapes))}")
    if info.dtype not in dtypes:
        problems.mistyped.append(f"{name}: is {info.dtype}, must be {' or '.join(dtypes)}")
