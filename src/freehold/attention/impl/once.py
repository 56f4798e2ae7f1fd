"""Gradients that have no gradient of their own."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from freehold.core.errors import ArgumentError


class Once(torch.autograd.Function):
    """Gives gradients on, and refuses to differentiate them again.

    Not torch's `once_differentiable`: it says nothing where the gradient that comes in is a constant, as below a sum,
    and the second derivative then lacks this part without a word.
    """

    @staticmethod
    def forward(ctx: Any, what: str, count: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        """tensors: the gradients, `count` of them, then all that they depend on."""
        ctx.what = what
        return tuple(gradient.view_as(gradient) for gradient in tensors[:count])

    @staticmethod
    def backward(ctx: Any, *_gradients: Tensor) -> None:
        """Raises ArgumentError."""
        raise ArgumentError(f"{ctx.what}; leave create_graph out")
