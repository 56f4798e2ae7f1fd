"""The instruction sets that this processor runs."""

from __future__ import annotations

from freehold import kernels
from freehold.core.errors import KernelError


def supported() -> list[str]:
    """Their names, the best one last; it is in use afterwards."""
    found = []
    for name in kernels.library.ISAS:
        try:
            kernels.use_isa(name)
            found.append(name)
        except KernelError:
            pass
    return found
