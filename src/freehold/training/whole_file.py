"""Tensors in a file that is whole or not there, whenever the process ends."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor


def save_whole(tensors: Mapping[str, Tensor], path: Path, *, metadata: Mapping[str, str] | None = None) -> None:
    """Writes safetensors beside `path`, then gives them its name."""
    beside = path.with_name(f"{path.name}.new")
    save_file(dict(tensors), beside, metadata=None if metadata is None else dict(metadata))
    os.replace(beside, path)
