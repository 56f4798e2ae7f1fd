"""Writing an index branch beside the model it belongs to."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from freehold.model.index_branch import IndexSizes
from freehold.model.index_sidecar import index_config
from freehold.training.index_init import Projections
from freehold.training.whole_file import save_whole, write_whole


def write_sidecar(
    directory: Path,
    branches: Mapping[int, Projections],
    sizes: IndexSizes,
    base_digest: str,
    card: Mapping[str, Any],
) -> None:
    """Writes config.json and model.safetensors in bfloat16. card: what the branch was made with and how good it is; it
    stands in config.json under "card". That file comes first: a directory without it is nobody's."""
    directory.mkdir(parents=True, exist_ok=True)
    tensors = {}
    for layer, branch in sorted(branches.items()):
        tensors[f"layers.{layer}.q_proj.weight"] = branch.q.detach().bfloat16().contiguous()
        tensors[f"layers.{layer}.k_proj.weight"] = branch.k.detach().bfloat16().contiguous()
    hidden = next(iter(branches.values())).k.shape[1]
    config = {**index_config(sizes, hidden, sorted(branches), base_digest), "card": dict(card)}
    write_whole(json.dumps(config, indent=2) + "\n", directory / "config.json")
    save_whole(tensors, directory / "model.safetensors", metadata={"format": "pt"})


def rounded(branch: Projections) -> Projections:
    """The branch as it will be read again."""
    return Projections(branch.q.detach().to(torch.bfloat16).float(), branch.k.detach().to(torch.bfloat16).float())
