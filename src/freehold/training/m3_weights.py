"""The weights of a MiniMax-M3 in training: float32 tensors by their names in the release."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import torch
from torch import Tensor

from freehold.model.compute import ReferenceCompute
from freehold.model.minimax_m3 import MiniMaxM3
from freehold.model.minimax_m3_config import MiniMaxM3Config
from freehold.model.minimax_m3_names import sources

Weights = dict[str, Tensor]

_SPREAD = 0.02
"""Standard deviation of the matrices at first; those that write to the residual stream are smaller in deep models."""


def weight_shapes(config: MiniMaxM3Config) -> dict[str, tuple[int, ...]]:
    """Name -> shape of everything that a checkpoint of the release holds: what loading a model demands."""
    no_file: Any = cast(Any, SimpleNamespace(format="safetensors", tensors={}))
    wanted, _ = sources(MiniMaxM3(config, ReferenceCompute()), no_file)
    return {source.name: source.shape for source in wanted}


def first_weights(config: MiniMaxM3Config, seed: int) -> Weights:
    """Random matrices; norms are 1 (stored as offsets from it) and the routers' biases 0."""
    generator = torch.Generator().manual_seed(seed)
    inner = _SPREAD / (2 * config.num_layers) ** 0.5
    found = {}
    for name, shape in weight_shapes(config).items():
        if len(shape) == 1:
            found[name] = torch.zeros(shape)
            continue
        writes = name.endswith(("o_proj.weight", "down_proj.weight", "w2.weight"))
        found[name] = torch.randn(shape, generator=generator) * (inner if writes else _SPREAD)
    return found


def is_bias(name: str) -> bool:
    """Whether it is a router's correction bias: balancing sets it, no gradient does."""
    return name.endswith("e_score_correction_bias")


def is_index(name: str) -> bool:
    """Whether it belongs to an index branch: its own loss trains it, nothing else does."""
    return ".index_" in name
