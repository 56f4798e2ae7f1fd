"""A dense model that stays as it is: what its layers read, and how well it predicts."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from freehold.core.axes import DEFAULT_BLOCK_TOKENS, ceil_div
from freehold.core.blocks import LayerLanes, Span, Spans
from freehold.core.errors import ArgumentError
from freehold.model.base import BlockObserver, Model
from freehold.model.llama import Llama, LlamaLayer

_CHUNK = 512


class WindowReader:
    """Runs a model over whole windows of up to `length` tokens, through the kernels; it holds K and V of one window."""

    def __init__(self, model: Model, length: int) -> None:
        self._model, self.length = model, length
        self.block_tokens = model.block_tokens or DEFAULT_BLOCK_TOKENS
        self._slots = range(ceil_div(length, self.block_tokens))
        self.lanes = [
            LayerLanes.allocate(spec, len(self._slots), self.block_tokens, torch.float32) for spec in model.lane_specs
        ]

    def losses(self, token_ids: Sequence[int], observer: BlockObserver | None = None) -> Tensor:
        """Negative log-likelihood in nats of each token after the first: (len(token_ids) - 1,) float32."""
        found = []
        for start in range(0, len(token_ids), _CHUNK):
            rows = torch.arange(min(_CHUNK, len(token_ids) - start))
            found.append(_surprise(self._step(token_ids, start, rows, observer), token_ids, start))
        return torch.cat(found)

    def _step(
        self, token_ids: Sequence[int], start: int, rows: Tensor, observer: BlockObserver | None = None
    ) -> Tensor:
        self._check(len(token_ids))
        part = torch.tensor(token_ids[start : start + _CHUNK])
        return self._model.forward(part, self._spans(start, len(part)), self.lanes, logit_rows=rows, observer=observer)

    def _check(self, tokens: int) -> None:
        if tokens > self.length:
            raise ArgumentError(f"the window has {tokens} tokens; there is room for {self.length}")

    def _spans(self, start: int, rows: int) -> Spans:
        return Spans.pack([Span(start, rows, self._slots)], self.block_tokens)


class FrozenModel(WindowReader):
    """The same for a Llama model, and what stands between its layers."""

    def __init__(self, model: Llama, length: int) -> None:
        super().__init__(model, length)
        self.model = model

    def layer_inputs(self, token_ids: Sequence[int], take: Callable[[int, int, Tensor], None]) -> None:
        """Calls take(layer, first position, x) for every layer and stretch of the window, x (rows, hidden_size) what
        the layer's attention reads: the normalised residual stream."""
        start = 0

        def watch(number: int) -> Callable[..., None]:
            def before(layer: LlamaLayer, inputs: tuple[Tensor, ...]) -> None:
                take(number, start, layer.attention_norm(inputs[0]))

            return before

        handles = [layer.register_forward_pre_hook(watch(i)) for i, layer in enumerate(self.model.layers)]
        try:
            for start in range(0, len(token_ids), _CHUNK):
                self._step(token_ids, start, torch.zeros(1, dtype=torch.int64))
        finally:
            for handle in handles:
                handle.remove()

    def embedded(self, token_ids: Sequence[int]) -> Tensor:
        """The residual stream of a window before the first layer: (len(token_ids), hidden_size) float32."""
        return self.model.embedding.lookup(torch.tensor(token_ids))

    def run_layers(self, h: Tensor, layers: range) -> Tensor:
        """The residual stream of a window from before these layers to behind them; h stays as it is.

        Behind the last one it has the bits that the whole model would have: the layers before are not computed again.
        """
        self._check(len(h))
        done = torch.empty_like(h)
        for start in range(0, len(h), _CHUNK):
            part = h[start : start + _CHUNK].clone()
            spans = self._spans(start, len(part))
            done[start : start + len(part)] = self.model.run_layers(part, spans, self.lanes, layers=layers)
        return done

    def losses_behind(self, h: Tensor, token_ids: Sequence[int], first: int) -> Tensor:
        """`losses` from position `first` on, given the residual stream behind the last layer."""
        starts = range(first, len(token_ids), _CHUNK)
        return torch.cat([_surprise(self.model.logits(h[i : i + _CHUNK]), token_ids, i) for i in starts])


def _surprise(logits: Tensor, token_ids: Sequence[int], start: int) -> Tensor:
    """Nats of the tokens that follow positions `start` and on; the last position of all has none."""
    following = torch.tensor(token_ids[start + 1 : start + 1 + len(logits)], dtype=torch.int64)
    return -torch.log_softmax(logits, dim=-1)[: len(following)].gather(1, following[:, None])[:, 0]
