"""Where attention should look: a loss for tokens of which it is known."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

NO_SOURCE = -1


def looking_loss(q: Tensor, k: Tensor, sources: Tensor, documents: Sequence[tuple[int, int]]) -> Tensor:
    """-log of the probability that attention has at the source of a token, the mean over tokens that have one, in nats;
    0 if none has. A scalar.

    q (tokens, num_q_heads, dim), k (tokens, num_kv_heads, dim); sources int64 (tokens,): where a token should look, not
    after it and in the same document, or NO_SOURCE. The probability is the mean over heads, so that one head is enough,
    over every key that the token sees, whichever blocks are chosen. Memory grows with the tokens that have a source
    times all tokens.
    """
    places = (sources != NO_SOURCE).nonzero().flatten()
    if not len(places):
        return q.new_zeros(())
    begins = torch.cat([torch.full((end - begin,), begin) for begin, end in documents])
    keys = torch.arange(len(k))
    hidden = (keys > places[:, None]) | (keys < begins[places][:, None])
    grouped = q[places].view(len(places), k.shape[1], -1, q.shape[2])
    scores = torch.einsum("phgd,thd->phgt", grouped, k) * q.shape[2] ** -0.5
    likely = scores.masked_fill(hidden[:, None, None], -torch.inf).log_softmax(dim=-1).flatten(1, 2)
    there = likely.gather(2, sources[places][:, None, None].expand(-1, q.shape[1], 1))[..., 0]
    loss: Tensor = math.log(q.shape[1]) - there.logsumexp(dim=1).mean()
    return loss
