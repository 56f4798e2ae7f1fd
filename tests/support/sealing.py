"""Whether this machine can be sealed at all: in some containers, and on old kernels, it cannot."""

from __future__ import annotations

import subprocess
import sys
from functools import cache

import pytest

_CODE = """
from freehold.governance.egress.seal import SealError, seal
try:
    seal()
except SealError as error:
    print("; ".join(f"{name}: {why}" for name, why in error.missing.items()))
"""


@cache
def _reason() -> str:
    if sys.platform != "linux":
        return "seals are made of Linux's parts"
    done = subprocess.run([sys.executable, "-c", _CODE], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def need_a_seal() -> None:
    """Skip the test, naming the layers that the kernel cannot make. One that does not hold is no reason."""
    if reason := _reason():
        pytest.skip(f"this machine cannot lock {reason}")
