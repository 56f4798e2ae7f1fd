"""What a frozen model's layers read of some windows, kept on the disk, so that each window is computed once."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from freehold.core.errors import ArgumentError
from freehold.training.corpus import Window
from freehold.training.frozen import FrozenModel


class Captured:
    """x of every layer, window and token, bfloat16, in one file. An interrupted capture goes on where it was."""

    def __init__(self, path: Path, num_layers: int, num_windows: int, length: int, hidden_size: int) -> None:
        """path: of the file; beside it, PATH.json says how many windows are in it."""
        self.shape = num_layers, num_windows, length, hidden_size
        self._state = path.with_name(f"{path.name}.json")
        path.parent.mkdir(parents=True, exist_ok=True)
        count = num_layers * num_windows * length * hidden_size
        self._all = torch.from_file(str(path), shared=True, size=count, dtype=torch.bfloat16).view(self.shape)

    @property
    def done(self) -> int:
        """Windows that are whole."""
        if not self._state.exists():
            return 0
        state = json.loads(self._state.read_text(encoding="utf-8"))
        if tuple(state["shape"]) != self.shape:
            raise ArgumentError(
                f"{self._state}: holds a capture of shape {tuple(state['shape'])}, and {self.shape} is wanted; name "
                "another directory, or remove this one"
            )
        return int(state["windows"])

    def fill(self, model: FrozenModel, windows: Sequence[Window], progress: Callable[[int, int], None]) -> None:
        """Captures what is missing. progress(done, total) after each window."""
        for number in range(self.done, len(windows)):
            self._window(model, windows[number], number)
            # The mapping is shared, so what was written outlives this process whatever ends it.
            _replace(self._state, json.dumps({"shape": self.shape, "windows": number + 1}))
            progress(number + 1, len(windows))

    def _window(self, model: FrozenModel, window: Window, number: int) -> None:
        def take(layer: int, start: int, x: Tensor) -> None:
            self._all[layer, number, start : start + x.shape[0]] = x.bfloat16()

        model.layer_inputs(window.token_ids, take)

    def inputs(self, layer: int, window: int) -> Tensor:
        """x (length, hidden_size) float32 of a layer and window."""
        return self._all[layer, window].float()


def _replace(path: Path, text: str) -> None:
    beside = path.with_name(f"{path.name}.new")
    beside.write_text(text, encoding="utf-8")
    os.replace(beside, path)
