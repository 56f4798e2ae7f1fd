"""Rotary position embedding: the inverse frequencies of the variants that checkpoints use."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from freehold.core.errors import ConfigError
from freehold.core.typed import is_kind
from freehold.loading.quoting import quoted

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
    if not isinstance(kind, str) or kind not in _KEYS:
        raise ConfigError(f"rope type {quoted(kind)} is not supported; supported are {', '.join(_KEYS)}")
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


def _number(kind: str, scaling: Mapping[str, Any], key: str, default: float | None = None) -> float:
    value: Any = scaling.get(key)
    value = default if value is None else value
    if not is_kind(value, float) or not 0 < value < 1e12:
        raise ConfigError(f"rope type {kind!r} needs {key} as a positive number, not {quoted(value)}")
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
    original = _number("yarn", scaling, "original_max_position_embeddings", max_position)
    if theta <= 1:
        raise ConfigError(f"rope type 'yarn' needs rope_theta above 1, not {theta}")

    def dimension_of(rotations: float) -> float:
        return dim * math.log(original / (rotations * 2 * math.pi)) / (2 * math.log(theta))

    low = dimension_of(_number("yarn", scaling, "beta_fast", 32))
    high = dimension_of(_number("yarn", scaling, "beta_slow", 1))
    truncate = scaling.get("truncate")
    if truncate not in (None, True, False):
        raise ConfigError(f"rope type 'yarn' has truncate {quoted(truncate)}; it must be true or false")
    if truncate is not False:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    ramp = ((torch.arange(dim // 2, dtype=torch.float32) - low) / max(high - low, 0.001)).clamp(0, 1)
    inv_freq = plain / factor * ramp + plain * (1 - ramp)

    def magnitude(mscale: float) -> float:
        return 0.1 * mscale * math.log(factor) + 1.0 if factor > 1 else 1.0

    if scaling.get("attention_factor") is not None:
        return Rope(inv_freq, _number("yarn", scaling, "attention_factor"))
    if scaling.get("mscale") and scaling.get("mscale_all_dim"):
        above, below = (_number("yarn", scaling, key) for key in ("mscale", "mscale_all_dim"))
        return Rope(inv_freq, magnitude(above) / magnitude(below))
    return Rope(inv_freq, magnitude(1.0))
