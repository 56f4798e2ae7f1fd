"""Files that are whole or not there, whenever the process ends."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from freehold.core.errors import CorruptFileError, FreeholdError

MOMENTS = ("exp_avg", "exp_avg_sq", "step")
"""What AdamW remembers of a weight: see `check_moments`."""
_CHECKSUM = "sha256"


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
    # Not safetensors' `save_file`: it begins under a name that nobody knows, which a killed process leaves behind, and
    # that only its owner may read.
    whole = {name: tensor.contiguous() for name, tensor in tensors.items()}
    _write(save(whole, metadata=None if metadata is None else dict(metadata)), path, first)


def write_whole(text: str, path: Path) -> None:
    """The same for a text."""
    _write(text.encode(), path, beside(path))


def _write(data: bytes, path: Path, first: Path) -> None:
    try:
        first.write_bytes(data)
        os.replace(first, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            first.unlink()
        raise FreeholdError(
            f"{path}: cannot be written ({error.strerror or error}); make room, or allow it, and give the same command "
            "again"
        ) from None


def save_state(tensors: Mapping[str, Tensor], path: Path, *, first: Path | None = None) -> None:
    """`save_whole` with a checksum."""
    save_whole(tensors, path, metadata={_CHECKSUM: _digest(tensors)}, first=first)


def load_state(path: Path) -> dict[str, Tensor]:
    """What `save_state` wrote. Raises CorruptFileError if it is damaged, FreeholdError if it cannot be read."""
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  it is no mapping
            told = (file.metadata() or {}).get(_CHECKSUM)
    except SafetensorError as error:
        raise damaged(path, str(error)) from None
    except OSError as error:
        raise FreeholdError(
            f"{path}: cannot be read ({error.strerror or error}); allow it, or remove it, and the command does again "
            "what it held"
        ) from None
    if told != _digest(tensors):
        raise damaged(path, "its checksum is another, or missing")
    return tensors


def _digest(tensors: Mapping[str, Tensor]) -> str:
    said = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        said.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        said.update(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return said.hexdigest()


def check_kept(path: Path, tensors: Mapping[str, Tensor], name: str, like: Tensor) -> None:
    """Raises CorruptFileError if a state has no tensor `name` that something like this could have been saved as."""
    found = tensors.get(name)
    if found is None or found.shape != like.shape or found.dtype != like.dtype:
        raise damaged(path, f"{name} is missing, or of another shape or type")
    if not bool(found.isfinite().all()):
        raise damaged(path, f"{name} has values that are no numbers")


def check_moments(path: Path, tensors: Mapping[str, Tensor], names: Sequence[str], like: Tensor, steps: int) -> None:
    """The same for what AdamW remembers of a weight, under these names, one for each of MOMENTS: running means of its
    gradients and of their squares, and that it took all `steps`."""
    mean, square, step = names
    check_kept(path, tensors, mean, like)
    check_kept(path, tensors, square, like)
    if bool((tensors[square] < 0).any()):
        raise damaged(path, f"{square} has a negative square")
    taken = tensors.get(step)
    if taken is None or taken.ndim or float(taken) != steps:
        raise damaged(path, f"{step} is missing, or is not the {steps} of all")


def damaged(path: Path, why: str) -> CorruptFileError:
    """Of a state that is kept to go on from."""
    return CorruptFileError(f"{path}: is damaged ({why}); remove it, and the command does again what it held")
