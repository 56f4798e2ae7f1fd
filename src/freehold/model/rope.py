"""Rotary position embedding: the inverse frequencies of the variants that checkpoints use."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from freehold.core.errors import ConfigError

_KEYS = {
    "default": set(),
    "linear": {"factor"},
    "llama3": {"factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"},
    "yarn": {
        "factor",
        "beta_fast",
        "beta_slow",
        "attention_factor",
        "mscale",
        "mscale_all_dim",
        "truncate",
        "original_max_position_embeddings",
    },
}


@dataclass(frozen=True)
class Rope:
    """inv_freq (rotary_dim / 2,) float32: angle of channel pair i at position p is p * inv_freq[i].
    `scale` multiplies cos and sin (YaRN's attention factor)."""

    inv_freq: torch.Tensor
    scale: float


def make_rope(rotary_dim: int, theta: float, scaling: Mapping[str, Any] | None, max_position: int) -> Rope:
    """Builds the frequencies for `scaling`, the checkpoint's rope_scaling (None: plain).

    Raises ConfigError for a variant or a key that is not known: it would change the mathematics.
    """
    scaling = dict(scaling or {})
    kind = scaling.pop("rope_type", scaling.pop("type", "default"))
    scaling.pop("type", None)
    scaling.pop("rope_theta", None)
    scaling.pop("partial_rotary_factor", None)
    if kind not in _KEYS:
        raise ConfigError(f"rope type {kind!r} is not supported; supported are {', '.join(_KEYS)}")
    unknown = set(scaling) - _KEYS[kind]
    if unknown:
        raise ConfigError(f"rope type {kind!r} has unknown keys {sorted(unknown)}; known are {sorted(_KEYS[kind])}")
    exponent = torch.arange(0, rotary_dim, 2, dtype=torch.float32) / rotary_dim
    plain = 1.0 / theta**exponent
    if kind == "linear":
        return Rope(plain / _number(kind, scaling, "factor"), 1.0)
    if kind == "llama3":
        return Rope(_llama3(plain, scaling), 1.0)
    if kind == "yarn":
        return _yarn(plain, rotary_dim, theta, scaling, max_position)
    return Rope(plain, 1.0)


def _number(kind: str, scaling: Mapping[str, Any], key: str) -> float:
    value = scaling.get(key)
    if not isinstance(value, (int, float)) or isinstance(value, bool) or value <= 0:
        raise ConfigError(f"rope type {kind!r} needs {key} as a positive number, not {value!r}")
    return float(value)


def _llama3(plain: torch.Tensor, scaling: Mapping[str, Any]) -> torch.Tensor:
    """Long wavelengths are stretched by the factor, short ones kept, those between blended."""
    factor, low, high, original = (
        _number("llama3", scaling, key)
        for key in ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
    )
    wavelength = 2 * math.pi / plain
    blend = (original / wavelength - low) / (high - low)
    blended = (1 - blend) * plain / factor + blend * plain
    stretched = torch.where(wavelength > original / low, plain / factor, plain)
    between = (wavelength <= original / low) & (wavelength >= original / high)
    return torch.where(between, blended, stretched)


def _yarn(plain: torch.Tensor, dim: int, theta: float, scaling: Mapping[str, Any], max_position: int) -> Rope:
    """YaRN (arXiv 2309.00071): frequencies are interpolated, kept, or mixed along a ramp between two rotations."""
    factor = _number("yarn", scaling, "factor")
    original = float(scaling.get("original_max_position_embeddings") or max_position)

    def dimension_of(rotations: float) -> float:
        return dim * math.log(original / (rotations * 2 * math.pi)) / (2 * math.log(theta))

    low = dimension_of(float(scaling.get("beta_fast") or 32))
    high = dimension_of(float(scaling.get("beta_slow") or 1))
    if scaling.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    ramp = ((torch.arange(dim // 2, dtype=torch.float32) - low) / max(high - low, 0.001)).clamp(0, 1)
    inv_freq = plain / factor * ramp + plain * (1 - ramp)

    def magnitude(mscale: float) -> float:
        return 0.1 * mscale * math.log(factor) + 1.0 if factor > 1 else 1.0

    scale = scaling.get("attention_factor")
    if scale is None:
        mscale, all_dim = scaling.get("mscale"), scaling.get("mscale_all_dim")
        scale = magnitude(mscale) / magnitude(all_dim) if mscale and all_dim else magnitude(1.0)
    return Rope(inv_freq, float(scale))
