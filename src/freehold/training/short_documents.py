"""Dense attention and the index branch's loss for many short documents of one length at once.

What `freehold.attention` computes for one document after another, where the calls would cost more than the work: a step
over documents of 32 tokens takes a fourth of the time. Shapes: (documents, tokens, heads, dim).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

MOST_TOKENS = 256
"""Documents beyond this are long: one at a time costs no more, and needs less memory."""


def attend_together(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Causal attention inside of each document, like `dense_attention`: like q."""
    group = q.shape[2] // k.shape[2]
    keys, values = (x.transpose(1, 2).repeat_interleave(group, dim=1) for x in (k, v))
    return F.scaled_dot_product_attention(q.transpose(1, 2), keys, values, is_causal=True).transpose(1, 2)


def index_kl_together(q: Tensor, k: Tensor, index_q: Tensor, index_k: Tensor) -> Tensor:
    """KL(teacher || student) over every causal key, the mean over documents, queries and groups, like
    `index_kl_loss`. index_k (documents, tokens, index_dim). Teaches index_q and index_k alone."""
    count, tokens, _, dim = q.shape
    future = torch.ones(tokens, tokens, dtype=torch.bool).triu(1)
    with torch.no_grad():
        grouped = q.view(count, tokens, k.shape[2], -1, dim)
        teacher = torch.einsum("bnhgd,bthd->bhgnt", grouped, k) * dim**-0.5
        probability = teacher.masked_fill_(future, -torch.inf).softmax(dim=-1).mean(dim=2)
    student = torch.einsum("bnhd,btd->bhnt", index_q, index_k) * index_q.shape[3] ** -0.5
    likely = student.masked_fill(future, -torch.inf).log_softmax(dim=-1)
    terms: Tensor = torch.xlogy(probability, probability) - probability * likely.masked_fill(probability == 0, 0.0)
    return terms.sum() / (count * tokens * index_q.shape[2])
