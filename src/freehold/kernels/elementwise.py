"""Norms, rotary embedding, gates and the router: the small kernels between the large ones."""

from __future__ import annotations

import torch

from freehold.core.errors import ArgumentError
from freehold.kernels.library import check, native, threads


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """x (..., dim) float32, weight (dim,) float32 -> x * rsqrt(mean(x^2) + eps) * weight, over the last axis."""
    dim = x.shape[-1]
    y = torch.empty_like(x)
    native().rms_norm(
        check("x", x, torch.float32, *x.shape),
        x.numel() // dim,
        dim,
        check("weight", weight, torch.float32, dim),
        eps,
        y.data_ptr(),
        threads(),
    )
    return y


def rope_table(positions: torch.Tensor, inv_freq: torch.Tensor, scale: float) -> tuple[torch.Tensor, torch.Tensor]:
    """positions (rows,) int64, inv_freq (half,) float32 -> cos, sin (rows, half) float32, times scale."""
    rows, half = positions.shape[0], inv_freq.shape[0]
    cos, sin = torch.empty(rows, half), torch.empty(rows, half)
    native().rope_table(
        check("positions", positions, torch.int64, None),
        rows,
        check("inv_freq", inv_freq, torch.float32, None),
        half,
        scale,
        cos.data_ptr(),
        sin.data_ptr(),
    )
    return cos, sin


def rope_(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Turns x (rows, heads, head_dim) float32 in place: channel i with channel i + half, for cos, sin (rows, half).

    Channels from 2 * half on stay as they are (partial rotary embedding).
    """
    rows, heads, head_dim = x.shape
    half = cos.shape[1]
    if 2 * half > head_dim:
        raise ArgumentError(f"cos has {half} frequencies; head_dim {head_dim} takes at most {head_dim // 2}")
    native().rope(
        check("x", x, torch.float32, None, None, None),
        rows,
        heads,
        head_dim,
        half,
        check("cos", cos, torch.float32, rows, None),
        check("sin", sin, torch.float32, rows, half),
    )
    return x


def route_sigmoid(logits: torch.Tensor, bias: torch.Tensor, topk: int) -> tuple[torch.Tensor, torch.Tensor]:
    """logits (rows, experts), bias (experts,) float32 -> ids (rows, topk) int32 ascending, weights (rows, topk).

    The experts with the largest sigmoid(logit) + bias are chosen, ties to the lower id; weights are their
    sigmoids without the bias, divided by their sum.
    """
    rows, experts = logits.shape
    if not 1 <= topk <= experts:
        raise ArgumentError(f"topk is {topk}; it must be between 1 and the number of experts, {experts}")
    ids, weights = torch.empty(rows, topk, dtype=torch.int32), torch.empty(rows, topk)
    native().route_sigmoid(
        check("logits", logits, torch.float32, None, None),
        rows,
        experts,
        check("bias", bias, torch.float32, experts),
        topk,
        ids.data_ptr(),
        weights.data_ptr(),
    )
    return ids, weights
