"""Which file a tensor's memory belongs to."""

from __future__ import annotations

from pathlib import Path

import torch


def mapped_file(tensor: torch.Tensor) -> Path | None:
    """The file whose mapping holds the tensor's first element; None if its memory is nobody's file."""
    address = tensor.data_ptr()
    for line in Path("/proc/self/maps").read_text().splitlines():
        fields = line.split(maxsplit=5)
        first, last = (int(bound, 16) for bound in fields[0].split("-"))
        if first <= address < last:
            return Path(fields[5]) if len(fields) == 6 and fields[5].startswith("/") else None
    return None
