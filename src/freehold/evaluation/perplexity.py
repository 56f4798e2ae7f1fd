"""How well a model predicts held-out text, by position, with several ways to choose blocks on the same windows."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from freehold.core.errors import ArgumentError, FreeholdError
from freehold.core.nats import MOST_NATS
from freehold.evaluation.answers import Endpoint
from freehold.evaluation.block_recall import GroupRecall, WatchedBlockAttention, check_recall, recalls_of
from freehold.evaluation.oracle import FirstAndRecentBlockAttention, OracleBlockAttention
from freehold.loading.checkpoint import Checkpoint
from freehold.model.base import Model
from freehold.model.compute import NativeCompute
from freehold.model.index_sidecar import IndexSidecar
from freehold.model.registry import is_trained_sparse, load_model
from freehold.training.corpus import Document, Window, windows_of
from freehold.training.frozen import WindowReader
from freehold.training.kept_losses import KeptLosses

Way = Literal["dense", "index", "first and recent", "oracle", "as served"]
WAYS: tuple[Way, ...] = ("dense", "index", "first and recent", "oracle")

Progress = Callable[[str, int, int], None]
"""Called with (what is done, so much, of so much)."""

_LEAST_TOKENS = 8
"""Of a window, so that every quarter of it has losses."""
_SEGMENT = 64
"""Losses of neighbours depend on each other: standard errors are those of means over so many tokens."""


@dataclass(frozen=True, slots=True)
class Reading:
    """losses: nats of each token after the first, (windows, window_tokens - 1)."""

    way: Way
    losses: Tensor

    def perplexity(self, begin: float = 0.0, end: float = 1.0) -> float:
        """Over a part of every window; 0.5 to 1 is its second half. Raises FreeholdError if no float holds it."""
        return self._power(float(self._part(self.losses, begin, end).double().mean()), math.exp)

    def change(self, dense: Reading, begin: float = 0.0, end: float = 1.0) -> tuple[float, float]:
        """Relative change of perplexity beside `dense`, token by token, and its standard error (0 for one segment)."""
        more = self._part(self.losses - dense.losses, begin, end).double()
        means = torch.stack([part.mean() for row in more for part in row.split(_SEGMENT)])
        error = float(means.std() / len(means) ** 0.5) if len(means) > 1 else 0.0
        return self._power(float(more.mean()), math.expm1), error

    def _power(self, nats: float, of: Callable[[float], float]) -> float:
        if not nats < MOST_NATS:  # a NaN too
            raise FreeholdError(f"{self.way}: a token costs {nats:.4g} nats, for which there is no perplexity")
        return of(nats)

    @staticmethod
    def _part(losses: Tensor, begin: float, end: float) -> Tensor:
        count = losses.shape[1] + 1
        return losses[:, max(0, round(begin * count) - 1) : round(end * count) - 1]

    def as_json(self, dense: Reading) -> dict[str, Any]:
        """Perplexities of the whole, of the second half and of quarters, and changes beside `dense`."""
        parts = {"all": (0.0, 1.0), "second_half": (0.5, 1.0)}
        parts |= {f"quarter_{i + 1}": (i / 4, i / 4 + 0.25) for i in range(4)}
        found: dict[str, Any] = {"way": self.way}
        for name, part in parts.items():
            change, error = self.change(dense, *part)
            found[name] = {"perplexity": self.perplexity(*part), "change": change, "standard_error": error}
        return found


def read(
    checkpoint: Checkpoint,
    index: IndexSidecar | None,
    windows: Sequence[Window],
    ways: Sequence[Way],
    progress: Progress,
    *,
    work: Path | None = None,
) -> list[Reading]:
    """Reads all windows in each of the ways; "dense" is always the first.

    A model that was trained sparse has its own branch; its sparse layers then run densely for "dense".
    work: a directory where the losses of each window are kept, and taken from if they are there already.
    Raises ArgumentError for ways that need an index.
    """
    if not is_sparse(checkpoint, index) and set(ways) != {"dense"}:
        raise ArgumentError(f"ways are {', '.join(ways)}; without an index there is only dense")
    others = [way for way in ways if way != "dense"]
    wanted: list[Way] = ["dense", *others]
    return [_read(checkpoint, index, windows, way, progress, work) for way in wanted]


def _read(
    checkpoint: Checkpoint,
    index: IndexSidecar | None,
    windows: Sequence[Window],
    way: Way,
    progress: Progress,
    work: Path | None,
) -> Reading:
    branch = "" if index is None or way == "dense" else index.checkpoint.digest()
    kept = KeptLosses(work, f"{checkpoint.digest()} {branch}")
    reader = cache(lambda: _reader(_model(checkpoint, index, way), windows))
    losses = []
    for number, window in enumerate(windows, 1):
        losses.append(kept.of(way, window, lambda token_ids: reader().losses(token_ids)))
        progress(way, number, len(windows))
    return Reading(way, torch.stack(losses))


def read_endpoint(
    endpoint: Endpoint, documents: Sequence[Document], length: int, count: int, seed: int, progress: Progress
) -> Reading:
    """Perplexity as a server has it, in its own tokens: windows of four times `length` characters, for which every
    window gives as many losses as the shortest one has tokens. Raises FreeholdError if it does not score prompts."""
    windows = windows_of(documents, lambda text: [ord(c) for c in text], 4 * length, count, seed=seed)
    losses = []
    for number, window in enumerate(windows, 1):
        losses.append(torch.tensor(endpoint.losses("".join(map(chr, window.token_ids)))))
        progress("as served", number, len(windows))
    shortest = min(len(row) for row in losses)
    if shortest < _LEAST_TOKENS - 1:
        raise FreeholdError(
            f"{endpoint.url} gave {shortest} losses for {4 * length} characters; a window needs {_LEAST_TOKENS - 1}"
        )
    return Reading("as served", torch.stack([row[:shortest] for row in losses]))


def recall(
    checkpoint: Checkpoint,
    index: IndexSidecar | None,
    windows: Sequence[Window],
    progress: Progress,
) -> list[GroupRecall]:
    """How well each sparse layer and group chooses, on these windows. Raises ArgumentError if nothing is sparse."""
    check_sparse(checkpoint, index)
    check_recall(len(windows[0].token_ids))
    compute, watched = NativeCompute(), WatchedBlockAttention()
    compute.attention = watched
    reader = _reader(load_model(checkpoint, compute, index=index), windows)
    return recalls_of(watched, reader, windows, lambda done: progress("recall", done, len(windows)))


def check_sparse(checkpoint: Checkpoint, index: IndexSidecar | None) -> None:
    """Raises ArgumentError if nothing chooses blocks, of which there could be a recall."""
    if not is_sparse(checkpoint, index):
        raise ArgumentError(f"{checkpoint.path} has no sparse layer; without an index branch there is no recall")


def is_sparse(checkpoint: Checkpoint, index: IndexSidecar | None) -> bool:
    """Whether there are blocks to choose: by a branch, or because the model was trained so."""
    return index is not None or is_trained_sparse(checkpoint)


def _reader(model: Model, windows: Sequence[Window]) -> WindowReader:
    length = len(windows[0].token_ids)
    if length > model.context_length:
        raise ArgumentError(
            f"window_tokens is {length}; the model's context has {model.context_length}, and beyond it predictions say "
            "nothing; give shorter windows"
        )
    return WindowReader(model, length)


def _model(checkpoint: Checkpoint, index: IndexSidecar | None, way: Way) -> Model:
    compute = NativeCompute()
    if way == "dense":
        return load_model(checkpoint, compute, allow_dense=True)
    if way != "index":
        compute.attention = OracleBlockAttention() if way == "oracle" else FirstAndRecentBlockAttention()
    return load_model(checkpoint, compute, index=index)
