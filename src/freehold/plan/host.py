"""The machine as the operating system describes it: processors, memory, limits and large pages."""

from __future__ import annotations

import os
import re
import resource
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

_UNLIMITED = 2**60  # version 1 of control groups says "no limit" with a number of about 2**63


@dataclass(frozen=True, slots=True)
class Host:
    """None is what the system does not say.

    processors: of the machine; allowed: those this process may run on; quota: processors' worth of time that a control
    group grants. memory: bytes of RAM; limit: what a control group allows of it; available: what can be had without
    swapping; cached: bytes of files kept in RAM; swap: bytes of swap space, swapped: those in use.
    large_pages: "always", "madvise" or "never". overcommit: vm.overcommit_memory. open_files: most open files, the soft
    limit.
    """

    processors: int
    allowed: int
    quota: float | None
    memory: int
    limit: int | None
    available: int | None
    cached: int | None
    swap: int
    swapped: int
    large_pages: str | None
    overcommit: int | None
    open_files: int

    @property
    def usable_memory(self) -> int:
        """Bytes of RAM that this process may ever have."""
        return self.memory if self.limit is None else min(self.memory, self.limit)

    @property
    def usable_processors(self) -> float:
        """Processors' worth of time that this process may use."""
        return self.allowed if self.quota is None else min(float(self.allowed), self.quota)


def this_host(proc: Path = Path("/proc"), sys: Path = Path("/sys")) -> Host:
    """Reads what the system says now."""
    meminfo = _meminfo(proc / "meminfo")
    count = os.cpu_count() or 1
    swap = meminfo.get("SwapTotal", 0)
    pages = re.search(r"\[(\w+)\]", _text(sys / "kernel/mm/transparent_hugepage/enabled") or "")
    overcommit = _text(proc / "sys/vm/overcommit_memory")
    groups = list(_control_groups(proc / "self/cgroup", sys / "fs/cgroup"))
    limits = [limit for group in groups if (limit := _memory_limit(group)) is not None]
    quotas = [quota for group in groups if (quota := _cpu_quota(group)) is not None]
    return Host(
        processors=count,
        allowed=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else count,
        quota=min(quotas, default=None),
        memory=meminfo.get("MemTotal") or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        limit=min(limits, default=None),
        available=meminfo.get("MemAvailable"),
        cached=meminfo.get("Cached"),
        swap=swap,
        swapped=swap - meminfo.get("SwapFree", swap),
        large_pages=pages.group(1) if pages else None,
        overcommit=int(overcommit) if overcommit and overcommit.strip().isdigit() else None,
        open_files=resource.getrlimit(resource.RLIMIT_NOFILE)[0],
    )


def filesystem_of(path: Path, mountinfo: Path = Path("/proc/self/mountinfo")) -> str | None:
    """The type of the file system that holds `path`, such as "ext4"; None if the system does not say."""
    place, found, longest = os.path.realpath(path), None, -1
    for line in (_text(mountinfo) or "").splitlines():
        before, _, after = line.partition(" - ")
        fields = before.split()
        if len(fields) < 5 or not after:
            continue
        mount = re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal.group(1), 8)), fields[4])
        inside = place == mount or place.startswith(mount.rstrip("/") + "/")
        if inside and len(mount) >= longest:  # what is mounted later hides what was there
            found, longest = after.split()[0], len(mount)
    return found


def _meminfo(path: Path) -> dict[str, int]:
    found = re.findall(r"^(\w+):\s+(\d+) kB$", _text(path) or "", re.M)
    return {name: int(kib) * 1024 for name, kib in found}


def _control_groups(listing: Path, root: Path) -> Iterator[Path]:
    """The directories of the process's groups and of all groups around them, as far as they are visible."""
    for line in (_text(listing) or "").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, group = rest.partition(":")
        tops = [root] if not controllers else [root / name for name in (controllers, *controllers.split(","))]
        place = PurePosixPath(group)
        for top in tops:
            for parent in (place, *place.parents):
                directory = top / str(parent).lstrip("/")
                if directory.is_dir():
                    yield directory


def _memory_limit(group: Path) -> int | None:
    for name in ("memory.max", "memory.limit_in_bytes"):
        text = (_text(group / name) or "").strip()
        if text.isdigit() and int(text) < _UNLIMITED:
            return int(text)
    return None


def _cpu_quota(group: Path) -> float | None:
    quota, _, period = (_text(group / "cpu.max") or "").strip().partition(" ")
    if not period:
        quota = (_text(group / "cpu.cfs_quota_us") or "").strip()
        period = (_text(group / "cpu.cfs_period_us") or "").strip()
    return int(quota) / int(period) if quota.isdigit() and period.isdigit() and int(period) else None


def _text(path: Path) -> str | None:
    try:
        return path.read_text("utf-8", errors="replace")
    except OSError:
        return None
