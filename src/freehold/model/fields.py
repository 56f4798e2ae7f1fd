"""Reading a configuration strictly: every key is used, known to be harmless, or refused."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from freehold.core.errors import ConfigError
from freehold.core.typed import is_kind, kind_name
from freehold.loading.quoting import quoted

T = TypeVar("T")

HARMLESS = frozenset(
    """
    _name_or_path architectures auto_map bos_token_id eos_token_id pad_token_id decoder_start_token_id sep_token_id
    torch_dtype dtype transformers_version use_cache initializer_range initializer_factor model_type
    transformers.js_config is_llama_config keys_to_ignore_at_inference output_attentions output_hidden_states
    return_dict chunk_size_feed_forward is_encoder_decoder is_decoder add_cross_attention id2label label2id
    problem_type tokenizer_class base_model_tp_plan base_model_pp_plan unsloth_version unsloth_fixed
    task_specific_params quantization_config
    """.split()
)
"""Keys that say nothing about a forward pass of inference. quantization_config is read, strictly, with the tensors."""


MOST = 2**31 - 1
"""Largest size. What is built before a model's tensors are compared with its sizes has lower bounds:"""
MOST_LAYERS = 1024
MOST_EXPERTS = 2**16
"""In all layers together; M3 has 7,296."""
MOST_CHANNELS = 2**16
"""Of a head."""


class Fields:
    """A configuration mapping that remembers which keys were read. `where` names it in errors."""

    def __init__(self, values: Mapping[str, Any], where: str) -> None:
        self.values = values
        self.where = where
        self._read: set[str] = set()

    def get(self, key: str, kind: type[T], default: T | None = None) -> T:
        """The value of `key`; a missing or null key gives the default, or ConfigError without one."""
        value = self.maybe(key, kind)
        if value is None:
            value = default
        if value is None:
            raise ConfigError(f"{self.where}: {key!r} is missing; the model cannot be built without it")
        return value

    def maybe(self, key: str, kind: type[T]) -> T | None:
        """The value of `key`, a finite number if it is one; None if it is missing or null."""
        value = self.optional(key)
        if kind is int and isinstance(value, float) and value.is_integer():
            value = int(value)
        if value is None:
            return None
        try:
            if is_kind(value, kind) and (kind is not float or math.isfinite(value)):
                return kind(value)  # type: ignore[call-arg]
        except OverflowError:  # a whole number that is too large for a float
            pass
        raise ConfigError(f"{self.where}: {key!r} is {quoted(value)}; it must be {kind_name(kind)}")

    def positive(self, key: str, default: int | None = None, *, most: int = MOST) -> int:
        """An integer from 1 to `most`."""
        value = self.get(key, int, default)
        if not 1 <= value <= most:
            bound = "at least 1" if value < 1 else f"at most {most}"
            raise ConfigError(f"{self.where}: {key!r} is {quoted(value)}; it must be {bound}")
        return value

    def object(self, key: str) -> Fields:
        """The fields of the object `key`; none if it is missing or null."""
        return Fields(self.get(key, dict, {}), f"{self.where}: {key}")

    def optional(self, key: str) -> Any:
        """The raw value of `key`, or None."""
        self._read.add(key)
        return self.values.get(key)

    def require(self, key: str, allowed: Iterable[Any]) -> None:
        """Refuses any value but the allowed ones; a missing or null key passes."""
        self._read.add(key)
        value = self.values.get(key)
        allowed = list(allowed)
        known = ", ".join(map(repr, allowed)) or "only null"
        if value is not None and value not in allowed:
            raise ConfigError(
                f"{self.where}: {key!r} is {quoted(value)}, which changes the mathematics and is not supported; "
                f"supported: {known}"
            )

    def flags(self, key: str, length: int) -> tuple[bool, ...] | None:
        """A list of 0/1 with one entry for each layer, or None if the key is missing."""
        value = self.optional(key)
        if value is None:
            return None
        if not isinstance(value, list) or len(value) != length or any(v not in (0, 1) for v in value):
            raise ConfigError(
                f"{self.where}: {key!r} must list {length} zeros and ones, one for each layer; it is {quoted(value)}"
            )
        return tuple(bool(v) for v in value)

    def done(self, ignored: Iterable[str] = ()) -> None:
        """Refuses every key that was neither read nor is known to be harmless."""
        unknown = sorted(set(self.values) - self._read - HARMLESS - set(ignored))
        if unknown:
            raise ConfigError(
                f"{self.where}: unknown keys {unknown}; they may change the mathematics, so they are refused. "
                "Remove them from the configuration if they do not."
            )
