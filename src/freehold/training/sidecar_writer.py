"""Writing an index branch beside the model it belongs to."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from freehold.model.index_branch import IndexSizes
from freehold.model.index_sidecar import index_config
from freehold.training.index_init import Projections


def write_sidecar(
    directory: Path,
    branches: Mapping[int, Projections],
    sizes: IndexSizes,
    base_digest: str,
    card: Mapping[str, Any],
) -> None:
    """Writes config.json and model.safetensors in bfloat16. card: what the branch was made with and how good it is; it
    stands in config.json under "card"."""
    directory.mkdir(parents=True, exist_ok=True)
    tensors = {}
    for layer, branch in sorted(branches.items()):
        tensors[f"layers.{layer}.q_proj.weight"] = branch.q.detach().bfloat16().contiguous()
        tensors[f"layers.{layer}.k_proj.weight"] = branch.k.detach().bfloat16().contiguous()
    hidden = next(iter(branches.values())).k.shape[1]
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    config = {**index_config(sizes, hidden, sorted(branches), base_digest), "card": dict(card)}
    (directory / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def rounded(branch: Projections) -> Projections:
    """The branch as it will be read again."""
    return Projections(branch.q.detach().to(torch.bfloat16).float(), branch.k.detach().to(torch.bfloat16).float())
