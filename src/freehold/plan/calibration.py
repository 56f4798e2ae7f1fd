"""What this machine can do, measured once and kept under FREEHOLD_HOME: memory, products and disk."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from freehold import kernels
from freehold.bench.floors import measure_floors
from freehold.bench.machine import this_machine
from freehold.core.errors import CorruptFileError, FreeholdError
from freehold.loading.home import freehold_home
from freehold.loading.json_object import read_json_object
from freehold.plan.disk import measure_disk

FORMAT = 1
_BUSY = 0.5


@dataclass(frozen=True, slots=True)
class Identity:
    """Which machine was measured, as far as rates depend on it: processor, cores that the process may use, instruction
    set, GiB of memory, version of Freehold, and a digest of the installation's own id."""

    cpu: str
    cores: int
    isa: str
    memory_gib: int
    freehold: str
    installation: str


@dataclass(frozen=True, slots=True)
class Calibration:
    """read: bytes a second from memory. float32, bfloat16: floating-point operations a second, with `threads` threads.
    disk_read, disk_write: bytes a second of FREEHOLD_HOME's disk; disk_direct: past the page cache. date: UTC.
    load: runnable tasks over the last minute when it began; None where the system does not say."""

    identity: Identity
    date: str
    threads: int
    read: float
    float32: float
    bfloat16: float
    disk_read: float
    disk_write: float
    disk_direct: bool
    load: float | None = None

    @property
    def warnings(self) -> tuple[str, ...]:
        """What makes its rates doubtful."""
        found = []
        if self.load is not None and self.load > _BUSY:
            found.append(f"the load average was {self.load:.1f} when it was calibrated: other work lowered its rates")
        if not self.disk_direct:
            found.append("the disk could not be read past the page cache: its rate may be that of memory")
        return tuple(found)

    def as_json(self) -> dict[str, Any]:
        """The fields by name."""
        return asdict(self)


def calibration_file() -> Path:
    """Where the last calibration is kept."""
    return freehold_home() / "calibration.json"


def this_identity() -> Identity:
    """Of the machine that this is. Raises KernelError if the compiled kernels are missing."""
    machine = this_machine()
    try:
        number = Path("/etc/machine-id").read_bytes().strip()
    except OSError:
        number = b""
    return Identity(
        cpu=machine.cpu,
        cores=machine.cores,
        isa=machine.isa,
        memory_gib=round(machine.memory_nbytes / 2**30),
        freehold=machine.versions["freehold"],
        installation=hashlib.sha256(b"freehold calibration\0" + number).hexdigest()[:16],
    )


def calibrate(*, quick: bool = False) -> Calibration:
    """Measures memory, products and the disk of FREEHOLD_HOME: about 20 seconds, and 2 GB of free disk.

    quick: a second or two; caches may flatter what is measured. Raises FreeholdError if the disk cannot be measured.
    """
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    floors = measure_floors(kernels.threads(), quick=quick)
    disk = measure_disk(freehold_home(), nbytes=(64 if quick else 1024) * 2**20, seconds=1.0 if quick else 8.0)
    return Calibration(
        identity=this_identity(),
        date=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        threads=floors.threads,
        read=floors.read.per_second,
        float32=floors.float32.per_second,
        bfloat16=floors.bfloat16.per_second,
        disk_read=disk.read,
        disk_write=disk.write,
        disk_direct=disk.direct,
        load=load,
    )


def save_calibration(calibration: Calibration) -> Path:
    """Keeps it in the place of the last one, whole or not at all. Raises FreeholdError if the disk refuses."""
    path = calibration_file()
    text = json.dumps({"format": FORMAT, **calibration.as_json()}, indent=2) + "\n"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(prefix=".calibration-", dir=path.parent)
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                file.write(text)
            os.replace(name, path)
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name)
    except OSError as error:
        raise FreeholdError(
            f"{path}: cannot be written: {error.strerror}; set FREEHOLD_HOME to another disk"
        ) from error
    return path


def load_calibration() -> tuple[Calibration | None, str]:
    """The calibration of this machine; or None, and why there is none.

    Raises CorruptFileError if there is one that cannot be understood.
    """
    path = calibration_file()
    if not path.exists():
        return None, "this machine was not calibrated yet"
    try:
        values = read_json_object(path)
    except CorruptFileError as error:
        raise CorruptFileError(f"{error}; measure again with --calibrate") from error
    try:
        if values.pop("format") != FORMAT:
            raise ValueError("it has another format")
        found = Calibration(**{**values, "identity": Identity(**values["identity"])})
        if not all(0 < rate < 1e18 for rate in (found.read, found.float32, found.bfloat16, found.disk_read)):
            raise ValueError("a rate is not a positive number")
    except (KeyError, TypeError, ValueError) as error:
        raise CorruptFileError(f"{path}: is no calibration ({error}); measure again with --calibrate") from error
    here = this_identity()
    other = [name for name in Identity.__slots__ if getattr(found.identity, name) != getattr(here, name)]
    if other:
        changes = ", ".join(f"{name} {getattr(found.identity, name)}, here {getattr(here, name)}" for name in other)
        return None, f"the calibration in {path} is of another machine or version ({changes})"
    return found, f"calibrated {found.date}"
