"""Where the training of an index branch begins: projections made from the attention's own.

RoPE turns the channels (f, f + head_dim / 2) of a head together, as one complex number by a phase. Any complex factor
of a frequency commutes with that, so queries and keys may be rescaled and rotated frequency by frequency.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Init = Literal["svd", "mean", "random"]


@dataclass(frozen=True, slots=True)
class Projections:
    """Float32 matrices: q (heads * dim, hidden_size), k (dim for the index branch's one key, else heads * dim, ...)."""

    q: Tensor
    k: Tensor


def first_index(
    attention: Projections, x: Tensor, *, num_kv_heads: int, head_dim: int, init: Init, generator: torch.Generator
) -> Projections:
    """An index branch of num_kv_heads query heads and one key, all of width head_dim.

    attention: of the layer, num_q_heads and num_kv_heads of head_dim. x (rows, hidden_size): what the layer reads; a
    thousand rows are enough.

    "svd": for each frequency, the one key that stands best for those of all groups, weighed by how large the group's
    mean query is there: the leading eigenvector of their covariance. "mean": the means of queries and of keys.
    "random": normal, of the size that keeps scores about 1.
    """
    hidden = x.shape[1]
    if init == "random":
        q = torch.randn(num_kv_heads * head_dim, hidden, generator=generator) * hidden**-0.5
        return Projections(q, torch.randn(head_dim, hidden, generator=generator) * hidden**-0.5)
    queries = attention.q.view(num_kv_heads, -1, head_dim, hidden).mean(dim=1)  # of each group
    keys = attention.k.view(num_kv_heads, head_dim, hidden)
    if init == "mean":
        return Projections(queries.reshape(-1, hidden).clone(), keys.mean(dim=0))
    return _leading(_as_complex(queries), _as_complex(keys), x)


def _as_complex(rows: Tensor) -> Tensor:
    """(heads, dim, hidden) -> complex (heads, dim / 2, hidden)."""
    half = rows.shape[1] // 2
    return torch.complex(rows[:, :half], rows[:, half:])


def _as_real(rows: Tensor) -> Tensor:
    """(heads, dim / 2, hidden) complex -> (heads * dim, hidden)."""
    return torch.cat((rows.real, rows.imag), dim=1).flatten(0, 1).contiguous()


def _leading(queries: Tensor, keys: Tensor, x: Tensor) -> Projections:
    """For frequency f, with group g's mean query q_g, key k_g, w_g = rms(q_g) and v the leading eigenvector of the
    covariance of w_g k_g: key = sum_g conj(v_g) w_g k_g / s, query of g = q_g conj(v_g) s / w_g, s = rms over g of w_g.
    If the keys are multiples of one, scores are those of q_g and k_g exactly."""
    values = x.to(torch.complex64)
    q = torch.einsum("gfd,nd->fgn", queries, values)
    k = torch.einsum("gfd,nd->fgn", keys, values)
    weight = q.abs().pow(2).mean(dim=2).sqrt().clamp_min(1e-12)  # (frequencies, groups)
    weighted = k * weight[:, :, None]
    covariance = weighted @ weighted.mH / x.shape[0]
    leading = torch.linalg.eigh(covariance).eigenvectors[:, :, -1]  # (frequencies, groups); ascending order
    size = weight.pow(2).mean(dim=1).sqrt()
    to_key = leading.conj() * weight / size[:, None]
    to_query = leading.conj() * size[:, None] / weight
    key = torch.einsum("fg,gfd->fd", to_key, keys)[None]
    return Projections(_as_real(queries * to_query.T[:, :, None]), _as_real(key))
