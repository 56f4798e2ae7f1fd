"""Kernels of the dense parts of a model: matrix products and norms."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from freehold import kernels
from freehold.bench.case import Case, Turns, copies_for

_NORM_EPS = 1e-5


@dataclass(frozen=True, slots=True)
class LinearShape:
    """A product that a model computes: x (rows, in_features) @ weight (out_features, in_features).T."""

    name: str
    out_features: int
    in_features: int


LINEARS = (
    LinearShape("SmolLM2 gate", 1536, 576),
    LinearShape("SmolLM2 down", 576, 1536),
    LinearShape("SmolLM2 head", 49152, 576),
    LinearShape("4096 square", 4096, 4096),
)
_NORM_WIDTHS = (576, 4096)


def dense_cases(*, rows: int, cold_nbytes: int, quick: bool) -> Iterator[Case]:
    """Each product for one row and for `rows`, and the norm. A case's tensors live until the next one is asked for."""
    for shape in LINEARS[:2] if quick else LINEARS:
        for dtype in (torch.float32, torch.bfloat16):
            yield _linear(shape, 1, dtype, cold_nbytes)
            # Nothing asks for the head of a whole chunk: only the last row's logits are wanted.
            if not shape.name.endswith("head"):
                yield _linear(shape, rows, dtype, 0)
    for width in _NORM_WIDTHS:
        yield _rms_norm(rows, width, cold_nbytes)


def _linear(shape: LinearShape, rows: int, dtype: torch.dtype, cold_nbytes: int) -> Case:
    generator = torch.Generator().manual_seed(1)
    n, k = shape.out_features, shape.in_features
    weight_nbytes = n * k * dtype.itemsize
    copies = copies_for(weight_nbytes, cold_nbytes)
    x = torch.randn(rows, k, generator=generator)
    weight = (torch.randn(n, k, generator=generator) / k**0.5).to(dtype)
    plain = [weight.clone() for _ in range(copies)]
    packed = [kernels.pack_weight(weight) for _ in range(copies)]
    x_cast, ours, theirs = x.to(dtype), Turns(copies), Turns(copies)
    return Case(
        name=f"linear, {shape.name}",
        shape=f"{rows} x {k} -> {n}",
        dtype="float32" if dtype == torch.float32 else "bfloat16 weights",
        flops=2.0 * rows * n * k,
        nbytes=weight_nbytes if rows == 1 else 0.0,
        ours=lambda: kernels.linear(x, packed[ours()]),
        rivals={
            "F.linear" if dtype == torch.float32 else "F.linear, bfloat16": lambda: F.linear(x_cast, plain[theirs()])
        },
        peak=dtype,
        tolerance=1e-4 if dtype == torch.float32 else 3e-2,
    )


def _rms_norm(rows: int, width: int, cold_nbytes: int) -> Case:
    generator = torch.Generator().manual_seed(2)
    weight = torch.randn(width, generator=generator)
    copies = copies_for(rows * width * 4, cold_nbytes)
    values = torch.randn(rows, width, generator=generator)
    x, ours, theirs = [values.clone() for _ in range(copies)], Turns(copies), Turns(copies)
    return Case(
        name="rms_norm",
        shape=f"{rows} x {width}",
        dtype="float32",
        flops=4.0 * rows * width,
        nbytes=rows * width * 4.0,
        ours=lambda: kernels.rms_norm(x[ours()], weight, _NORM_EPS),
        rivals={"F.rms_norm": lambda: F.rms_norm(x[theirs()], (width,), weight, _NORM_EPS)},
    )
