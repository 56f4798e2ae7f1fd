"""What a frozen model's layers read of some windows, kept on the disk, so that each window is computed once."""

from __future__ import annotations

import json
import math
import os
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from freehold.core.durable import sync
from freehold.core.errors import ArgumentError
from freehold.training.corpus import Window
from freehold.training.frozen import FrozenModel
from freehold.training.whole_file import write_whole


class Captured:
    """x of every layer, window and token, bfloat16, in one file. An interrupted capture goes on where it was, or where
    the file no longer holds what was written."""

    def __init__(self, path: Path, num_layers: int, num_windows: int, length: int, hidden_size: int) -> None:
        """path: of the file; beside it, PATH.json says which windows are in it.

        Raises ArgumentError if there is no room for it, or a capture of another shape is there.
        """
        self.shape = num_layers, num_windows, length, hidden_size
        self._path, self._state = path, path.with_name(f"{path.name}.json")
        self._sums: list[int] = []
        path.parent.mkdir(parents=True, exist_ok=True)
        count = math.prod(self.shape)
        nbytes = count * torch.bfloat16.itemsize
        told = self._told() if path.is_file() and path.stat().st_size == nbytes else []
        if not told:
            self._state.unlink(missing_ok=True)
            _reserve(path, nbytes)
        self._all = torch.from_file(str(path), shared=True, size=count, dtype=torch.bfloat16).view(self.shape)
        for number, checksum in enumerate(told):
            if self._sum(number) != checksum:
                break
            self._sums.append(checksum)

    @property
    def done(self) -> int:
        """Windows that are whole."""
        return len(self._sums)

    def _told(self) -> list[int]:
        """What is said of the file: a checksum of each window that is whole."""
        try:
            state = json.loads(self._state.read_text(encoding="utf-8"))
            shape, sums = tuple(state["shape"]), [int(checksum) for checksum in state["crc32"]]
        except (FileNotFoundError, ValueError, KeyError, TypeError, OverflowError, RecursionError):
            return []  # nobody knows what is in it
        if shape != self.shape:
            raise ArgumentError(
                f"{self._state}: holds a capture of shape {shape}, and {self.shape} is wanted; name another "
                "directory, or remove this one"
            )
        return sums[: self.shape[1]]

    def _sum(self, window: int) -> int:
        found = 0
        for layer in range(self.shape[0]):
            found = zlib.crc32(self._all[layer, window].view(torch.uint8).numpy().data, found)
        return found

    def fill(self, model: FrozenModel, windows: Sequence[Window], progress: Callable[[int, int], None]) -> None:
        """Captures what is missing. progress(done, total) after each window."""
        for number in range(self.done, len(windows)):
            for layer, x in enumerate(model.layer_inputs(windows[number].token_ids)):
                self._all[layer, number] = x
            # The mapping is shared, so what was written outlives this process whatever ends it; and the machine, before
            # a file says so.
            sync(self._path)
            self._sums.append(self._sum(number))
            write_whole(json.dumps({"shape": self.shape, "crc32": self._sums}), self._state)
            progress(number + 1, len(windows))

    def inputs(self, layer: int, window: int) -> Tensor:
        """x (length, hidden_size) float32 of a layer and window."""
        return self._all[layer, window].float()


def _reserve(path: Path, nbytes: int) -> None:
    """Room for the whole file: a mapping that finds the disk full later ends the process without a word."""
    try:
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise ArgumentError(
            f"{path}: cannot be written ({error.strerror}); remove it, or name another directory as place of the work"
        ) from None
    try:
        os.ftruncate(file, 0)
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file, 0, nbytes)
    except OSError as error:
        path.unlink()
        raise ArgumentError(
            f"{path}: takes {nbytes} bytes, for which there is no room ({error.strerror}); make room, take fewer "
            "windows, or name another directory as place of the work"
        ) from None
    finally:
        os.close(file)
