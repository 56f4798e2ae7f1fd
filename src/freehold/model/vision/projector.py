"""From the tower's features to embeddings of the text model."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from freehold.model.compute import Compute
from freehold.model.layers import Linear
from freehold.model.vision.config import VisionConfig


class Projector(nn.Module):
    """Each patch to the text model's width, then the neighbouring patches of a token into one."""

    def __init__(self, config: VisionConfig, compute: Compute) -> None:
        super().__init__()
        self._merged = config.merge_size**2
        self.linear_1, self.linear_2 = Linear(compute), Linear(compute)
        self.merge_1, self.merge_2 = Linear(compute), Linear(compute)

    def forward(self, x: Tensor) -> Tensor:
        """x (patches, tower's hidden_size) -> (tokens, out_size)."""
        x = self.linear_2(F.gelu(self.linear_1(x)))
        x = x.view(x.shape[0] // self._merged, -1)
        return self.merge_2(F.gelu(self.merge_1(x)))  # type: ignore[no-any-return]
