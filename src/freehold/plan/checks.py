"""What `freehold doctor` thinks of facts: each check is a function of what was read or measured, and nothing else."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from freehold.plan.disk import DiskSpeed
from freehold.plan.finding import Finding, finding
from freehold.plan.host import Host

_NETWORK = ("nfs", "nfs4", "cifs", "smb3", "9p", "ceph", "glusterfs", "fuse.sshfs", "fuse.glusterfs")
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
_LEAST_OPEN_FILES = 1024
_LITTLE_MEMORY = 2**30
_LITTLE_DISK = 2 * 10**9
_SLOW_DISK = 200e6


def check_isa(isa: str, runnable: Sequence[str], asked: str | None, compiler: str | None) -> Finding:
    """isa: in use; runnable: what the processor can, the best last; asked: FREEHOLD_ISA."""
    built = f"; compiled by {compiler}" if compiler else ""
    if asked:
        slower = isa != runnable[-1]
        return finding(
            "kernels",
            f"{isa}, because FREEHOLD_ISA asks for it{built}",
            warning=f"unset FREEHOLD_ISA: this processor also runs {runnable[-1]}" if slower else "",
        )
    return finding("kernels", f"{isa}, the best of what this processor runs ({', '.join(runnable)}){built}")


def check_threads(host: Host, threads: int, torch_threads: int, environment: Mapping[str, str]) -> Finding:
    """threads: of the kernels; torch_threads: of torch's own products."""
    fact = f"{threads} in the kernels, {torch_threads} in torch; {host.allowed} of {host.processors} processors allowed"
    if host.quota is not None:
        fact += f", time for {host.quota:g} by the control group"
    usable = max(1, math.floor(host.usable_processors))
    variables = [f"{name}={environment[name]}" for name in _THREAD_VARIABLES if environment.get(name)]
    if variables:
        fact += f"; {', '.join(variables)}"
    way_out = ""
    if threads > usable:
        way_out = f"more threads than processors' time make each other wait: start with --threads {usable}"
    elif torch_threads > usable:
        way_out = f"torch uses more threads than there are processors: set OMP_NUM_THREADS={usable}, or unset it"
    return finding("threads", fact, warning=way_out)


def check_memory(host: Host, bandwidth: float | None) -> list[Finding]:
    """bandwidth: bytes a second; None: not measured."""
    fact = f"{host.usable_memory / 1e9:.1f} GB"
    if host.limit is not None and host.limit < host.memory:
        fact += f" (the control group's limit; the machine has {host.memory / 1e9:.1f} GB)"
    if host.available is not None:
        fact += f", {host.available / 1e9:.1f} GB available"
    if bandwidth is not None:
        fact += f", read at {bandwidth / 1e9:.1f} GB/s"
    little = host.available is not None and min(host.available, host.usable_memory) < _LITTLE_MEMORY
    found = [finding("memory", fact, warning="end other programs, or use a smaller model or cache" if little else "")]
    if host.cached is not None:
        found.append(finding("page cache", f"{host.cached / 1e9:.1f} GB of files in memory, given back when needed"))
    if host.large_pages is not None:
        never = "as root: echo madvise > /sys/kernel/mm/transparent_hugepage/enabled; scans get about a fifth faster"
        found.append(finding("large pages", host.large_pages, warning=never if host.large_pages == "never" else ""))
    if host.overcommit == 2:
        strict = "as root: sysctl vm.overcommit_memory=0; otherwise files larger than memory may not be mapped"
        found.append(finding("overcommit", "strict (vm.overcommit_memory is 2)", warning=strict))
    return found


def check_swap(host: Host) -> Finding:
    """A model that is swapped out answers a hundred times slower."""
    if not host.swap:
        return finding("swap", "none")
    fact = f"{host.swap / 1e9:.1f} GB, {host.swapped / 1e9:.1f} GB in use"
    busy = host.swapped > host.swap // 20
    way_out = "give the engine less memory (--cache-tokens, --ram-budget), or as root: swapoff -a"
    return finding("swap", fact, warning=way_out if busy else "")


def check_open_files(host: Host) -> Finding:
    """A server needs one for each connection, and the block store one for each of its files."""
    few = 0 <= host.open_files < _LEAST_OPEN_FILES
    fact = "unlimited" if host.open_files < 0 else f"{host.open_files:,}"
    return finding("open files", fact, warning=f"ulimit -n {4 * _LEAST_OPEN_FILES}" if few else "")


def check_load(load: float | None, host: Host) -> Finding | None:
    """load: runnable tasks over the last minute; None: the system does not say, and there is nothing to find."""
    if load is None:
        return None
    busy = load > host.usable_processors / 2
    way_out = "other programs use the processors; rates that are measured now are too low"
    return finding("load", f"{load:.1f} runnable tasks", warning=way_out if busy else "")


def check_disk(home: str, kind: str | None, free: int, speed: DiskSpeed) -> list[Finding]:
    """kind: of the file system. free: bytes."""
    fact = (
        f"{home}{f' on {kind}' if kind else ''}: {free / 1e9:.1f} GB free, reads {speed.read / 1e6:,.0f} MB/s and "
        f"writes {speed.write / 1e6:,.0f} MB/s"
    )
    way_out = ""
    if kind in _NETWORK:
        way_out = "set FREEHOLD_HOME to a disk of this machine: stored blocks are read while tokens are computed"
    elif kind in ("tmpfs", "ramfs"):
        way_out = "set FREEHOLD_HOME to a disk: what lies in memory does not outlive the machine's next start"
    elif free < _LITTLE_DISK:
        way_out = "free some space (freehold cache prune), or set FREEHOLD_HOME to another disk"
    elif speed.read < _SLOW_DISK:
        way_out = "set FREEHOLD_HOME to a faster disk: sessions that were stored come back slowly from this one"
    found = [finding("disk", fact, warning=way_out)]
    if speed.direct:
        found.append(finding("direct reads", "the file system reads past the page cache (O_DIRECT)"))
    else:
        none = "put FREEHOLD_HOME on ext4, xfs or btrfs: here measured rates of the disk may be those of memory"
        found.append(finding("direct reads", "the file system has none (O_DIRECT)", warning=none))
    return found
