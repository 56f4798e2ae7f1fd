"""Files that are whole or not there, whenever the process ends."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from freehold.core.errors import CorruptFileError, FreeholdError

_TYPES = {torch.float64: "F64", torch.int64: "I64", torch.float32: "F32", torch.bfloat16: "BF16"}
"""Those of states, weights and losses, as safetensors calls them."""


def beside(path: Path) -> Path:
    """Where a file is written before it gets its name."""
    return path.with_name(f"{path.name}.new")


def save_whole(
    tensors: Mapping[str, Tensor], path: Path, *, metadata: Mapping[str, str] | None = None, first: Path | None = None
) -> None:
    """Writes safetensors to `first`, left out: `beside` the path, then gives them its name.

    Raises FreeholdError if they cannot be written, for example to a full disk.
    """
    first = beside(path) if first is None else first
    # safetensors' own `save_file` writes to a file with a name that nobody knows, which a killed process leaves behind,
    # and that only its owner may read.
    order = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    try:
        with first.open("wb") as file:
            file.write(_header(tensors, order, metadata))
            for name in order:
                file.write(tensors[name].detach().contiguous().flatten().view(torch.uint8).numpy().data)
    except OSError as error:
        first.unlink(missing_ok=True)
        raise FreeholdError(
            f"{path}: cannot be written ({error.strerror or error}); make room, and give the same command again"
        ) from None
    os.replace(first, path)


def _header(tensors: Mapping[str, Tensor], order: Sequence[str], metadata: Mapping[str, str] | None) -> bytes:
    """What stands before the bytes of the tensors. order: in which they follow; wide types first, so that each begins
    at a multiple of its numbers' size."""
    entries: dict[str, Any] = {} if metadata is None else {"__metadata__": dict(metadata)}
    begin = 0
    for name in order:
        tensor = tensors[name]
        entries[name] = {
            "dtype": _TYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [begin, begin + tensor.nbytes],
        }
        begin += tensor.nbytes
    header = json.dumps(entries, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header


def write_whole(text: str, path: Path) -> None:
    """The same for a text."""
    first = beside(path)
    try:
        first.write_text(text, encoding="utf-8")
    except OSError:
        first.unlink(missing_ok=True)
        raise
    os.replace(first, path)


def load_state(path: Path) -> dict[str, Tensor]:
    """What `save_whole` wrote. Raises CorruptFileError if it is damaged."""
    try:
        return load_file(path)
    except SafetensorError as error:
        raise damaged(path, str(error)) from None


def damaged(path: Path, why: str) -> CorruptFileError:
    """Of a state that is kept to go on from."""
    return CorruptFileError(f"{path}: is damaged ({why}); remove it, and the command does again what it held")
