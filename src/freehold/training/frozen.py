"""A dense model that stays as it is: what its layers read, and how well it predicts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from freehold.core.axes import DEFAULT_BLOCK_TOKENS, ceil_div
from freehold.core.blocks import LayerLanes, Span, Spans
from freehold.core.errors import ArgumentError
from freehold.model.alone import kernels_alone
from freehold.model.base import BlockObserver, Model
from freehold.model.index_branch import IndexBranch
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

    def embedded(self, token_ids: Sequence[int]) -> Tensor:
        """The residual stream of a window before the first layer: (len(token_ids), hidden_size) float32."""
        return self.model.embedding.lookup(torch.tensor(token_ids))

    @property
    def seen_whole(self) -> int:
        """Of how many first tokens of a window a sparse layer leaves nothing out."""
        branches = [module.sizes for module in self.model.modules() if isinstance(module, IndexBranch)]
        return min((sizes.topk * sizes.block_tokens for sizes in branches), default=self.length)

    @staticmethod
    def stretch_of(position: int) -> int:
        """Where the stretch begins in which a position is computed."""
        return position // _CHUNK * _CHUNK

    def run_layers(self, h: Tensor, layers: range, first: int = 0) -> Tensor:
        """The residual stream of a window from before these layers to behind them; h stays as it is.

        first: h begins with the token at this position, where a stretch begins; K and V of earlier ones, of all these
        layers, are those of the last call. Behind the last layer it has the bits that the whole model would have: the
        layers before are not computed again.
        """
        self._check(first + len(h))
        done = torch.empty_like(h)
        with kernels_alone(self.model):
            for start in range(0, len(h), _CHUNK):
                part = h[start : start + _CHUNK].clone()
                spans = self._spans(first + start, len(part))
                done[start : start + len(part)] = self.model.run_layers(part, spans, self.lanes, layers=layers)
        return done

    def layer_inputs(self, token_ids: Sequence[int]) -> Iterator[Tensor]:
        """What the attention of each layer reads, one layer after the other: the normalised residual stream of the
        window, (len(token_ids), hidden_size) float32. What stands behind the last attention is not computed."""
        h = self.embedded(token_ids)
        for number, layer in enumerate(self.model.layers):
            if number:
                h = self.run_layers(h, range(number - 1, number))
            assert isinstance(layer, LlamaLayer)
            yield layer.attention_norm(h)

    def losses_behind(self, h: Tensor, token_ids: Sequence[int], first: int) -> Tensor:
        """`losses` from position `first` on, given the residual stream behind the last layer; h may lack tokens before
        that position."""
        missing = len(token_ids) - len(h)
        starts = range(first, len(token_ids), _CHUNK)
        return torch.cat(
            [_surprise(self.model.logits(h[i - missing : i - missing + _CHUNK]), token_ids, i) for i in starts]
        )


def _surprise(logits: Tensor, token_ids: Sequence[int], start: int) -> Tensor:
    """Nats of the tokens that follow positions `start` and on; the last position of all has none."""
    following = torch.tensor(token_ids[start + 1 : start + 1 + len(logits)], dtype=torch.int64)
    return -torch.log_softmax(logits, dim=-1)[: len(following)].gather(1, following[:, None])[:, 0]
