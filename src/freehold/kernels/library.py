"""The compiled library: finding it, choosing an instruction set, and the thread count."""

from __future__ import annotations

import importlib
import os
import re
from numbers import Integral
from pathlib import Path
from typing import Any

import torch

from freehold.core.errors import ArgumentError, KernelError

_library: Any
_reason = ""
try:
    _library = importlib.import_module("freehold._native")
except ImportError as error:
    _library = None
    _reason = str(error)

ISAS = ("portable", "avx2", "avx512", "avx512bf16")

STORAGE = {torch.float32: 0, torch.bfloat16: 1}
"""The stored element types, and their numbers in the native interface."""

MOST_BLOCK_TOKENS = 1 << 16
"""Tokens of the largest block that the kernels take."""

MOST_TOPK = 1 << 20
"""Blocks of the largest choice that the kernels take."""

MOST_THREADS = 4096
"""More are a mistake: no machine has as many processors."""

_threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)


def native() -> Any:
    """The compiled module.

    Raises KernelError if it is missing or if FREEHOLD_ISA asks for what this processor lacks.
    """
    if _library is None:
        raise KernelError(
            f"the compiled kernels could not be loaded ({_reason}); "
            "install the package where there is a C++ compiler: pip install ."
        )
    return _library


def isa() -> str:
    """The instruction set in use: "portable", "avx2", "avx512" or "avx512bf16" (VNNI and BF16 besides)."""
    return str(native().isa())


def runnable_isas() -> tuple[str, ...]:
    """The instruction sets that this processor can run, the plainest first. Not for use while kernels run."""
    before = isa()
    try:
        return tuple(name for name in ISAS if native().use_isa(name))
    finally:
        native().use_isa(before)


def compiler() -> str | None:
    """What the library was compiled with, as its file says; None where it does not say."""
    found = re.search(rb"GCC: \([^)\0]*\) [\w.]+|clang version [\w.]+", Path(native().__file__).read_bytes())
    return found.group().decode() if found else None


def use_isa(name: str) -> None:
    """Switches to another instruction set, for tests and measurements.

    Raises ArgumentError for an unknown name, KernelError if this processor cannot run it.
    """
    if name not in ISAS:
        raise ArgumentError(f"instruction set {name!r} is unknown; known are {', '.join(ISAS)}")
    if not native().use_isa(name):
        raise KernelError(f"this processor cannot run {name!r}; it runs {isa()!r} now")


def threads() -> int:
    """How many threads a kernel uses unless told otherwise."""
    return _threads


def set_threads(count: int) -> None:
    """Sets how many threads kernels use, if the system grants as many. Results do not depend on it."""
    global _threads
    if not isinstance(count, int) or not 1 <= count <= MOST_THREADS:
        raise ArgumentError(f"threads is {count!r}; it must be a whole number from 1 to {MOST_THREADS}")
    _threads = count


def check_whole(name: str, value: Any, least: int, most: int) -> int:
    """The value, if it is a whole number within the bounds. Raises ArgumentError otherwise."""
    if type(value) is int and least <= value <= most:
        return value
    if isinstance(value, bool) or not isinstance(value, Integral) or not least <= int(value) <= most:
        raise ArgumentError(f"{name} is {value!r}; it must be a whole number from {least} to {most}")
    return int(value)


def three_axes(name: str, tensor: torch.Tensor) -> tuple[int, int, int]:
    """The tensor's shape. Raises ArgumentError if it has another number of axes."""
    if tensor.dim() != 3:
        raise ArgumentError(f"{name} has shape {tuple(tensor.shape)}; it must have 3 axes")
    first, second, third = tensor.shape
    return first, second, third


def check(name: str, tensor: torch.Tensor, dtype: torch.dtype, *shape: int | None) -> int:
    """The tensor's address, if it has the type, shape (None: any size) and a plain contiguous CPU layout."""
    actual = tensor.shape
    fits = len(actual) == len(shape)
    for wanted, size in zip(shape, actual):  # noqa: B905 - lengths are compared above; this is on the hot path
        if wanted is not None and wanted != size:
            fits = False
    if fits and tensor.dtype is dtype and tensor.is_contiguous() and tensor.is_cpu:
        return tensor.data_ptr()
    if tensor.dtype is not dtype:
        raise ArgumentError(f"{name} has type {tensor.dtype}; the kernel takes {dtype}")
    if not fits:
        sizes = ", ".join("*" if s is None else str(s) for s in shape)
        raise ArgumentError(f"{name} has shape {tuple(actual)}; the kernel takes ({sizes})")
    if not tensor.is_contiguous():
        raise ArgumentError(f"{name} is not contiguous; call .contiguous() first")
    raise ArgumentError(f"{name} is on {tensor.device}; the native kernels run on the CPU")


if os.environ.get("FREEHOLD_ISA") and _library is not None:
    use_isa(os.environ["FREEHOLD_ISA"])
