"""Filling a model from a checkpoint: every tensor is accounted for before the first one is read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from freehold.core.errors import TensorMismatchError
from freehold.loading.checkpoint import Checkpoint

_UNREADABLE_PREFIXES = ("F8_", "F4", "I", "U", "BOOL", "C")


@dataclass(frozen=True)
class Source:
    """Where a weight comes from: the tensor's name and shape on disk, and who takes it.

    adapt: changes the tensor first (a norm's 1 + w, a row order). `select` takes one part along the first axis
    (an expert out of a stack).
    """

    name: str
    shape: tuple[int, ...]
    take: Callable[[torch.Tensor], None]
    adapt: Callable[[torch.Tensor], torch.Tensor] | None = None
    select: int | None = None


def load_weights(
    checkpoint: Checkpoint, sources: list[Source], *, ignored: Callable[[str], bool] = lambda name: False
) -> None:
    """Hands every source its tensor, one at a time, so that only one unpacked weight is in memory.

    Raises TensorMismatchError that lists all missing, unexpected, misshapen and mistyped tensors. `ignored`
    says which unused tensors are known and harmless.
    """
    infos = checkpoint.tensors
    _check(str(checkpoint.path), infos, sources, ignored)
    last_name, last = "", torch.empty(0)
    for source in sources:
        if source.name != last_name:  # the experts of a stack follow each other
            last_name, last = source.name, checkpoint.tensor(source.name)
        tensor = last if source.select is None else last[source.select]
        source.take(tensor if source.adapt is None else source.adapt(tensor))


def _check(where: str, infos: Mapping[str, object], sources: list[Source], ignored: Callable[[str], bool]) -> None:
    missing, misshapen, mistyped = [], [], []
    for source in {s.name: s for s in sources}.values():
        info = infos.get(source.name)
        if info is None:
            missing.append(source.name)
            continue
        if tuple(info.shape) != source.shape:  # type: ignore[attr-defined]
            misshapen.append(f"{source.name}: is {tuple(info.shape)}, must be {source.shape}")  # type: ignore[attr-defined]
        dtype = info.dtype  # type: ignore[attr-defined]
        if dtype.startswith(_UNREADABLE_PREFIXES) and not dtype.startswith("IQ"):
            mistyped.append(f"{source.name}: is {dtype}, must be floating point or a GGUF quantisation")
    used = {s.name for s in sources}
    unexpected = sorted(name for name in infos if name not in used and not ignored(name))
    if missing or misshapen or mistyped or unexpected:
        raise TensorMismatchError(where, missing=missing, unexpected=unexpected, misshapen=misshapen, mistyped=mistyped)
