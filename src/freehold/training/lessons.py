"""What the branch of a layer is taught with: the layer's own queries and keys over captured windows."""

from __future__ import annotations

import torch
from torch import Tensor

from freehold.model.llama import Llama, LlamaAttention
from freehold.training.captured import Captured
from freehold.training.distil import Lesson
from freehold.training.index_init import Projections


class Lessons:
    """The lessons of one layer of a dense model."""

    def __init__(self, model: Llama, captured: Captured, layer: int) -> None:
        self._model, self._captured, self._layer = model, captured, layer
        attention = model.layers[layer].attention
        assert isinstance(attention, LlamaAttention)
        self._attention = attention
        positions = torch.arange(captured.shape[2])
        self._cos, self._sin = model.compute.rope_table(positions, model.rope.inv_freq, model.rope.scale)

    def of(self, window: int, positions: Tensor) -> Lesson:
        """The lesson of a window's queries at `positions`."""
        c, x = self._model.config, self._captured.inputs(self._layer, window)
        compute, attention = self._model.compute, self._attention
        (q,) = compute.linears(x[positions], [attention.q_proj])
        (k,) = compute.linears(x, [attention.k_proj])
        q = compute.rope(q.view(-1, c.num_q_heads, c.head_dim), self._cos[positions], self._sin[positions])
        k = compute.rope(k.view(-1, c.num_kv_heads, c.head_dim), self._cos, self._sin)
        return Lesson(x, positions, q, k, self._cos, self._sin)

    def attention(self) -> Projections:
        """The layer's own projections, as float32 matrices."""
        found = []
        for linear in (self._attention.q_proj, self._attention.k_proj):
            weight = linear.weight
            rows = weight if isinstance(weight, Tensor) else weight.rows(torch.arange(weight.out_features))
            found.append(rows.detach().float())
        return Projections(*found)

    def sample(self, rows: int) -> Tensor:
        """Up to so many rows of x, evenly from all windows."""
        _, windows, length, _ = self._captured.shape
        each = max(1, rows // windows)
        places = torch.linspace(0, length - 1, each).long()
        return torch.cat([self._captured.inputs(self._layer, w)[places] for w in range(windows)])[:rows]
