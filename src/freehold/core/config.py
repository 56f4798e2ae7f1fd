"""How an engine is set up. The command line and the `LLM` class read their defaults from here."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Literal

from freehold.core.axes import DEFAULT_BLOCK_TOKENS
from freehold.core.errors import ConfigError
from freehold.core.typed import is_kind, kind_name

_MOST_THREADS = max(1, os.cpu_count() or 1)
_OPTIONAL = frozenset(
    {
        "context_length",
        "cache_tokens",
        "timeout_seconds",
        "threads",
        "store_dir",
        "store_bytes",
        "ram_budget",
        "mmproj",
        "expert_budget",
    }
)
_KINDS: dict[str, type] = {
    "context_length": int,
    "cache_tokens": int,
    "kv_dtype": str,
    "activations": str,
    "prefill_chunk": int,
    "max_running": int,
    "max_waiting": int,
    "max_prompt_tokens": int,
    "timeout_seconds": float,
    "threads": int,
    "impl": str,
    "allow_dense": bool,
    "default_block_tokens": int,
    "store_dir": str,
    "store_bytes": int,
    "ram_budget": int,
    "mmproj": str,
    "index": str,
    "expert_budget": int,
}

KvDtype = Literal["float32", "bfloat16"]
Activations = Literal["float32", "int8"]
Impl = Literal["auto", "native", "reference"]


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """Settings of one engine; unknown names are refused by the dataclass itself.

    context_length: most tokens of one request, prompt and answer; None: what the model's configuration says.
    cache_tokens: tokens of K, V and index-K kept in RAM, rounded up to whole blocks; None: room for two full
        contexts, as far as a quarter of the machine's memory allows.
    kv_dtype: how K, V and index keys are stored.
    activations: "int8" rounds what goes into products with weights that are codes of 4 or 8 bits to codes of 8 bits,
        with a scale for each 32 inputs, and multiplies integers: about twice as fast. "float32" rounds nothing.
    prefill_chunk: most prompt tokens computed in one step. While answers are being written it is fewer: as many as
        take no longer than the answers' own part of the step.
    max_running: most requests computed together; others wait.
    max_waiting: most requests in the queue; more are refused.
    max_prompt_tokens: most prompt tokens of all requests together, running and waiting; more are refused, except to
        a lone request.
    timeout_seconds: most seconds from a request's arrival to its end; None: any time.
    threads: kernel threads; None: all cores this process may use.
    impl: "native" (C++), "reference" (torch, slow, the oracle); "auto" picks native.
    store_dir: directory of the block store, where computed blocks outlive the process; None: no store.
    store_bytes: most bytes of the store; None: half of what is free on its disk, or taken by the store itself, when the
        engine starts.
    ram_budget: most bytes of RAM for K and V of sparse layers; the rest is read from the store when attention
        chooses it. None: all of cache_tokens.
    expert_budget: most bytes of RAM for routed experts; they are written to a file of their own once, and read from it
        when a token needs them. None: all of them.
    mmproj: a GGUF file with the vision part of a model in GGUF, as llama.cpp keeps it; None: what the model's own files
        hold.
    index: directory with an index branch for a model that was trained dense, as `freehold convert` makes it: its layers
        then read only chosen blocks. "auto": the branch that comes with Freehold for these weights, if there is one;
        "none": they read everything.
    allow_dense: run a model trained with sparse attention densely. Its answers are then not the model's own.
    """

    context_length: int | None = None
    cache_tokens: int | None = None
    kv_dtype: KvDtype = "float32"
    activations: Activations = "float32"
    prefill_chunk: int = 512
    max_running: int = 16
    max_waiting: int = 1024
    max_prompt_tokens: int = 4_000_000
    timeout_seconds: float | None = None
    threads: int | None = None
    impl: Impl = "auto"
    allow_dense: bool = False
    default_block_tokens: int = DEFAULT_BLOCK_TOKENS
    store_dir: str | None = None
    store_bytes: int | None = None
    ram_budget: int | None = None
    mmproj: str | None = None
    index: str = "auto"
    expert_budget: int | None = None

    def __post_init__(self) -> None:
        for name, kind in _KINDS.items():
            value = getattr(self, name)
            if not (value is None and name in _OPTIONAL) and not is_kind(value, kind):
                raise ConfigError(f"{name} is {value!r}; it must be {kind_name(kind)}")
        if self.threads is not None and self.threads > _MOST_THREADS:
            raise ConfigError(f"threads is {self.threads}; this machine has {_MOST_THREADS} processors")
        for name in (
            "context_length",
            "cache_tokens",
            "prefill_chunk",
            "max_running",
            "max_waiting",
            "max_prompt_tokens",
            "threads",
            "default_block_tokens",
            "store_bytes",
            "ram_budget",
            "expert_budget",
        ):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name} is {value}; it must be at least 1")
        if self.timeout_seconds is not None and not self.timeout_seconds > 0:
            raise ConfigError(f"timeout_seconds is {self.timeout_seconds}; it must be above 0, or left out")
        if self.kv_dtype not in ("float32", "bfloat16"):
            raise ConfigError(f"kv_dtype is {self.kv_dtype!r}; it must be 'float32' or 'bfloat16'")
        if self.activations not in ("float32", "int8"):
            raise ConfigError(f"activations is {self.activations!r}; it must be 'float32' or 'int8'")
        if self.activations == "int8" and self.impl == "reference":
            raise ConfigError("impl is 'reference', which rounds no activations; leave activations out")
        if self.ram_budget is not None and self.store_dir is None:
            raise ConfigError(f"ram_budget is {self.ram_budget} without a store_dir; blocks beyond it need a place")
        if self.store_dir is not None and not self.store_dir.strip():
            raise ConfigError(f"store_dir is {self.store_dir!r}; name a directory, or leave it out")
        if self.store_dir is not None and self.impl == "reference":
            raise ConfigError("impl is 'reference', which keeps no block store; leave store_dir out")
        if self.impl not in ("auto", "native", "reference"):
            raise ConfigError(f"impl is {self.impl!r}; it must be 'auto', 'native' or 'reference'")
