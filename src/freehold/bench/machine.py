"""Facts about the machine, which every result carries."""

from __future__ import annotations

import os
import platform
import re
import resource
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from freehold import __version__

_PACKAGES = ("torch", "numpy", "llama-cpp-python")


@dataclass(frozen=True, slots=True)
class Machine:
    """cores: those this process may use, not those of the machine. memory_nbytes: physical memory.

    isa: the instruction set that the kernels chose. load_average: runnable tasks over the last minute, when the
    run began; None where the system does not say. versions: package -> version, absent ones left out.
    """

    cpu: str
    cores: int
    isa: str
    memory_nbytes: int
    load_average: float | None
    system: str
    python: str
    versions: dict[str, str]

    def as_json(self) -> dict[str, Any]:
        """The fields by name."""
        return asdict(self)

    def lines(self) -> Sequence[str]:
        """The facts for the head of a table."""
        versions = ", ".join(f"{name} {number}" for name, number in self.versions.items())
        return (
            f"{self.cpu}, {self.cores} cores allowed, kernels {self.isa}, {self.memory_nbytes / 2**30:.0f} GiB, "
            f"{self.system}",
            f"Python {self.python}, {versions}",
        )

    def warnings(self) -> Sequence[str]:
        """What makes this run's figures doubtful."""
        if self.load_average is None or self.load_average <= 0.5:
            return ()
        return (
            f"The load average was {self.load_average:.1f} at the start: other work may have disturbed the figures.",
        )


def this_machine() -> Machine:
    """Looks at the machine and the installation. Raises KernelError if the compiled kernels are missing."""
    from freehold import kernels

    return Machine(
        cpu=cpu_name(),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1),
        isa=kernels.isa(),
        memory_nbytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        load_average=os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        python=platform.python_version(),
        versions={"freehold": __version__, **_installed()},
    )


def cpu_name(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """The processor's name, with family and model where Linux gives them: some names say little by themselves."""
    try:
        text = cpuinfo.read_text()
    except OSError:
        return platform.processor() or platform.machine()
    facts: dict[str, str] = dict(re.findall(r"^(model name|cpu family|model)\s*:\s*(.+)$", text, re.M))
    if "model name" not in facts:
        return platform.processor() or platform.machine()
    if "cpu family" not in facts or "model" not in facts:
        return facts["model name"]
    return f"{facts['model name']} (family {facts['cpu family']}, model {facts['model']})"


def peak_memory() -> int:
    """Bytes of the largest resident set that this process has had: VmHWM on Linux, ru_maxrss elsewhere."""
    field = _status("VmHWM")
    if field is not None:
        return field
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # macOS counts bytes, others KiB


def resident_memory() -> int:
    """Bytes of this process's resident set now; where the system does not say, its peak so far."""
    field = _status("VmRSS")
    return peak_memory() if field is None else field


def _status(field: str) -> int | None:
    try:
        text = Path("/proc/self/status").read_text()
    except OSError:
        return None
    found = re.search(rf"^{field}:\s+(\d+) kB$", text, re.M)
    return int(found.group(1)) * 1024 if found else None


def _installed() -> dict[str, str]:
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
