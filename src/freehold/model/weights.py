"""Filling a model from a checkpoint: every tensor is accounted for before the first one is read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch

from freehold.core.coded import CodedWeight
from freehold.core.errors import TensorMismatchError
from freehold.loading.checkpoint import TensorInfo
from freehold.loading.quantized import QuantizedTensor

_UNREADABLE_PREFIXES = ("F8_", "F4", "I", "U", "BOOL", "C")


class TensorSource(Protocol):
    """What `load_weights` asks of a checkpoint; see `freehold.loading.checkpoint.Checkpoint`."""

    @property
    def path(self) -> Path:
        """What was opened, for messages."""

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """Name -> shape and type."""

    def tensor(self, name: str) -> torch.Tensor:
        """The tensor `name`."""

    def quantized(self, name: str) -> QuantizedTensor | None:
        """The tensor `name` as it is stored, or None if it is not quantised."""

    def release(self, name: str) -> None:
        """The tensor `name` is not needed for now."""


class ExpertMatrix(NamedTuple):
    """Which matrix of which expert a source is: part is "gate", "up" or "down"."""

    layer: int
    expert: int
    part: str


@dataclass(frozen=True)
class Source:
    """Where a weight comes from: the tensor's name and shape on disk, and who takes it.

    adapt: changes the tensor first (a norm's 1 + w). rows: puts the rows of a matrix into another order. `select` takes
    one part along the first axis (an expert out of a stack). matrix: a quantised tensor may come as codes.
    expert: of a routed expert's matrix, which one it is. read: False: it must be there, and is not needed.
    """

    name: str
    shape: tuple[int, ...]
    take: Callable[[Any], None]
    adapt: Callable[[torch.Tensor], torch.Tensor] | None = None
    rows: Callable[[torch.Tensor], torch.Tensor] | None = None
    select: int | None = None
    matrix: bool = False
    expert: ExpertMatrix | None = None
    read: bool = True


def load_weights(
    checkpoint: TensorSource, sources: list[Source], *, ignored: Callable[[str], bool] = lambda name: False
) -> None:
    """Hands every source its tensor, one at a time, so that only one unpacked weight is in memory.

    Quantised matrices come as codes if there are kernels for them; else as bfloat16 where that holds them exactly, and
    as float32 otherwise.

    Raises TensorMismatchError that lists all missing, unexpected, misshapen and mistyped tensors. `ignored`
    says which unused tensors are known and harmless.
    """
    check_weights(checkpoint, sources, ignored=ignored)
    for source, following in zip(sources, [*sources[1:], None], strict=True):
        if source.read:
            source.take(_read(checkpoint, source))
            if following is None or following.name != source.name:
                checkpoint.release(source.name)  # or a large checkpoint's pages would crowd out what was made of them


def _read(checkpoint: TensorSource, source: Source) -> torch.Tensor | CodedWeight:
    """The tensor, or the wanted part of it: of a stack of experts only one is expanded."""
    stored = checkpoint.quantized(source.name)
    if stored is None:
        tensor = checkpoint.tensor(source.name)
        tensor = tensor if source.select is None else tensor[source.select]
    else:
        part = stored if source.select is None else stored.part(source.select)
        codes = part.codes() if source.matrix else None
        if codes is not None:
            return codes if source.rows is None else codes.map_rows(source.rows)
        tensor = part.dequantize(part.lossless_dtype)
    if source.rows is not None:
        tensor = source.rows(tensor)
    return tensor if source.adapt is None else source.adapt(tensor)


def check_weights(
    checkpoint: TensorSource, sources: list[Source], *, ignored: Callable[[str], bool] = lambda name: False
) -> None:
    """What `load_weights` asks of names, shapes and types; no tensor is read. Raises as it does."""
    infos = checkpoint.tensors
    missing, misshapen, mistyped = [], [], []
    for source in {s.name: s for s in sources}.values():
        info = infos.get(source.name)
        if info is None:
            missing.append(source.name)
            continue
        if info.shape != source.shape:
            misshapen.append(f"{source.name}: is {info.shape}, must be {source.shape}")
        dtype = info.dtype
        if dtype.startswith(_UNREADABLE_PREFIXES) and not dtype.startswith("IQ"):
            mistyped.append(f"{source.name}: is {dtype}, must be floating point or quantised with scales")
        elif dtype == "F64" and len(info.shape) > 1:  # there are no products with it
            mistyped.append(f"{source.name}: is F64, must be F32, BF16, F16 or quantised with scales")
    used = {s.name for s in sources}
    unexpected = sorted(name for name in infos if name not in used and not ignored(name))
    if missing or misshapen or mistyped or unexpected:
        raise TensorMismatchError(
            str(checkpoint.path), missing=missing, unexpected=unexpected, misshapen=misshapen, mistyped=mistyped
        )
