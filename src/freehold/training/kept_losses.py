"""The losses of windows that were read before, so that what reads many goes on where it was interrupted."""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from threading import get_ident

import torch
from torch import Tensor

from freehold import __version__
from freehold.core.errors import FreeholdError
from freehold.core.nats import MOST_NATS
from freehold.training.corpus import Window
from freehold.training.whole_file import load_state, save_state


class KeptLosses:
    """A file for each window and way in a directory; None: nothing is kept.

    subject: digests of the model and its index branch. What another model or version of Freehold read is not taken.
    """

    def __init__(self, directory: Path | None, subject: str) -> None:
        self._directory, self._subject = directory, f"freehold losses 3\0{__version__}\0{subject}\0"
        if directory is not None:
            directory.mkdir(parents=True, exist_ok=True)

    def of(self, way: str, window: Window, read: Callable[[Sequence[int]], Tensor], *, first: int = 0) -> Tensor:
        """The window's losses from position `first` on, (tokens - 1 - first,) float32: those that are kept, or what
        `read` finds for its tokens."""
        if self._directory is None:
            return read(window.token_ids)
        said = hashlib.sha256(f"{self._subject}{way}\0".encode())
        said.update(struct.pack(f"<{len(window.token_ids)}q", *window.token_ids))
        path = self._directory / f"{said.hexdigest()[:32]}.safetensors"
        losses = _kept(path, len(window.token_ids) - 1 - first)
        if losses is None:
            losses = read(window.token_ids)
            # Two processes may keep their losses in one directory.
            begun = path.with_name(f"{path.stem}.{os.getpid()}-{get_ident()}.new")
            if float(losses.mean()) < MOST_NATS:  # else the model is damaged, and may be mended without another digest
                save_state({"losses": losses}, path, first=begun)
        return losses


def _kept(path: Path, count: int) -> Tensor | None:
    """So many losses, if the file is there, holds them and has the bits that were written."""
    try:
        losses = load_state(path).get("losses")
    except FreeholdError:  # not read yet, or half a file
        return None
    fits = losses is not None and losses.dtype == torch.float32 and losses.shape == (count,)
    return losses if fits else None
