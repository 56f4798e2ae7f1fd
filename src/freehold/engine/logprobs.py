"""From logits to log-probabilities."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from freehold.core.logprobs import TokenLogprobs
from freehold.engine.sampler import descending


def token_logprobs(logits: NDArray[np.float32], token: int, num_top: int) -> TokenLogprobs:
    """How likely `token` and the `num_top` likeliest are by one row of logits (vocab_size,), all finite.

    One row at a time: in float64 a chunk's logits would take twice the memory once more.
    """
    scores = torch.log_softmax(torch.from_numpy(logits).double(), dim=0).numpy()
    best = descending(scores, num_top) if num_top else ()
    return TokenLogprobs(float(scores[token]), tuple((int(i), float(scores[i])) for i in best))
