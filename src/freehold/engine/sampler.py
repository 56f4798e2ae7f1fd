"""Choosing the next token from one row of logits."""

from __future__ import annotations

import secrets
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from freehold.core.sampling import SamplingParams

_HEAD = 2048
"""Tokens that are sorted first; only a flatter distribution needs the whole vocabulary in order."""


class Sampler:
    """The sampling state of one request. Each token uses one random number of the request's own generator, so
    the answer to a seed does not depend on other requests."""

    def __init__(self, params: SamplingParams) -> None:
        self.params = params
        seed = secrets.randbits(63) if params.seed is None else params.seed % 2**64
        self._random = np.random.Generator(np.random.PCG64(seed))

    def sample(
        self,
        logits: NDArray[np.float32],
        tokens: Sequence[int],
        prompt_len: int,
        allowed: NDArray[np.int64] | None = None,
    ) -> int:
        """The next token id. logits (vocab_size,) is not changed. Equal logits go to the lower id when greedy.

        tokens: the prompt's `prompt_len` tokens and all that were sampled since.
        allowed: the only ids to choose from, ascending and at least one; the others are as good as absent, so that
            top_k, top_p and min_p count among these. None: all.
        """
        p = self.params
        scores = self._adjusted(logits, tokens, prompt_len)
        if allowed is not None:
            scores = scores[allowed]
        place = int(scores.argmax()) if p.temperature == 0.0 else self._draw(scores)
        return place if allowed is None else int(allowed[place])

    def _draw(self, scores: NDArray[np.float32]) -> int:
        """The place of one of the scores, by the distribution that they and the request's fields make."""
        p = self.params
        places, probabilities = _distribution(scores.astype(np.float64) / p.temperature, p)
        cumulative = probabilities.cumsum()
        place = np.searchsorted(cumulative, self._random.random() * cumulative[-1], side="right")
        return int(places[min(int(place), len(places) - 1)])

    def _adjusted(self, logits: NDArray[np.float32], tokens: Sequence[int], prompt_len: int) -> NDArray[np.float32]:
        """Penalties and biases, in the order of the fields' definitions."""
        p = self.params
        plain = p.repetition_penalty == 1.0 and not p.presence_penalty and not p.frequency_penalty
        if plain and not p.logit_bias:
            return logits
        scores: NDArray[np.float32] = logits.copy()
        if p.repetition_penalty != 1.0:
            seen = np.unique(np.asarray(tokens, dtype=np.int64))
            values = scores[seen]
            scores[seen] = np.where(values > 0, values / p.repetition_penalty, values * p.repetition_penalty)
        if p.presence_penalty or p.frequency_penalty:
            seen, counts = np.unique(np.asarray(tokens[prompt_len:], dtype=np.int64), return_counts=True)
            scores[seen] -= (p.presence_penalty + p.frequency_penalty * counts).astype(np.float32)
        for token, bias in p.logit_bias.items():
            scores[token] += bias
        return scores


def _distribution(scores: NDArray[np.float64], p: SamplingParams) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Places (token ids) and their probabilities after top_k, then top_p, then min_p. Not renormalised."""
    weights = np.exp(scores - scores.max())
    if p.top_k is None and p.top_p == 1.0 and p.min_p == 0.0:
        return np.arange(len(scores)), weights
    order = descending(scores, p.top_k if p.top_k is not None else _HEAD)
    kept = weights[order]
    # top_p counts mass among what top_k left; without top_k that is the whole vocabulary.
    total = kept.sum() if p.top_k is not None else weights.sum()
    if p.top_k is None and p.top_p < 1.0 and kept.sum() < p.top_p * total:
        order = descending(scores, len(scores))
        kept = weights[order]
    if p.top_k is None and p.top_p == 1.0:
        order, kept = np.arange(len(scores)), weights
    if p.top_p < 1.0:
        count = int(np.searchsorted(kept.cumsum(), p.top_p * total)) + 1
        order, kept = order[:count], kept[:count]
    if p.min_p > 0.0:
        likely = kept >= p.min_p * weights.max()
        order, kept = order[likely], kept[likely]
    return order, kept


def descending(scores: NDArray[np.float64], count: int) -> NDArray[np.int64]:
    """Ids of the `count` best scores, best first, ties to the lower id."""
    if count < len(scores):
        threshold = np.partition(scores, len(scores) - count)[len(scores) - count]
        candidates = np.flatnonzero(scores >= threshold)
    else:
        candidates = np.arange(len(scores))
    return candidates[np.argsort(-scores[candidates], kind="stable")][:count]
