"""Random index branches beside a dense checkpoint."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from freehold.loading.checkpoint import open_checkpoint
from freehold.model.index_branch import IndexSizes
from freehold.model.index_sidecar import index_config
from support.portable_random import portable_normal


def write_tiny_index(
    directory: Path, base: Path, sizes: IndexSizes, width: int, layers: list[int], **changes: Any
) -> Path:
    """Writes the sidecar of the checkpoint at `base`, whose hidden_size is `width`.

    changes: of its configuration; None takes a key away.
    """
    directory.mkdir(parents=True, exist_ok=True)
    with open_checkpoint(base) as checkpoint:
        config = {**index_config(sizes, width, layers, checkpoint.digest()), **changes}
    (directory / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not None}))
    rows = sizes.num_index_heads * sizes.index_dim
    shapes = {"q_proj": (rows, width), "k_proj": (sizes.index_dim, width)}
    tensors = {
        f"layers.{i}.{name}.weight": torch.from_numpy(portable_normal(shape, seed=i, name=name)) * width**-0.5
        for i in layers
        for name, shape in shapes.items()
    }
    save_file(tensors, directory / "model.safetensors")
    return directory
