"""The seal: all layers in their order, tried from inside, or a refusal that names what this kernel cannot lock."""

from __future__ import annotations

import errno
import os
import resource
import socket
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal

from freehold.core.errors import GovernanceError
from freehold.governance.egress import landlock, self_test
from freehold.governance.egress.descriptors import check_open_files
from freehold.governance.egress.filter import Filter, forbid_new_privileges, install, lock_filter
from freehold.governance.egress.mounts import remote_mounts
from freehold.governance.egress.namespaces import (
    drop_capabilities,
    enter_empty_namespaces,
    network_namespace,
    process_status,
)
from freehold.governance.egress.recorder import Recorder

Layer = Literal["namespace", "capabilities", "landlock", "filter", "record"]
LAYERS: tuple[Layer, ...] = ("namespace", "capabilities", "landlock", "filter", "record")
OPTIONAL_LAYERS: tuple[Layer, ...] = ("namespace", "landlock", "record")
"""Those that may be left out by name. Without the filter, or with capabilities, there is no seal."""

NOT_COVERED = (
    "answers: what is sent on accepted connections leaves by design, and a model can put anything into an answer",
    "the kernel: a fault in it, or whoever is root outside of the seal, undoes every layer",
    "what ran before: start-up hooks of Python (sitecustomize, .pth files of installed packages) run ahead of the "
    "seal; a child of theirs that still runs is refused, one that has cut itself loose is not seen",
    "terminals, pipes and files that were open before, and a Unix socket as standard output: where they lead is not "
    "followed; /health names them. Lines that wait in a pipe, the recorder's too, can be read back from it",
    "file systems of other programs and machines (FUSE, NFS and the like): each path that is looked up there is told "
    "to them; they are refused unless named, and then /health names them. What lies below an overlay is not seen",
    "files: what is written into the writable directories can be read, and carried on, by other programs of this user; "
    "modes and times of this user's other files can be changed; what this user may read, its keys too, can be read",
    "signs to other programs of this machine: locks on files that can be read (flock), and the process's own title, "
    "arguments, limits and priority, which /proc shows",
    "the record's end: on a full disk, and after 100,000 lines, attempts are refused and counted, not written down",
    "swap: the kernel may write memory there; encrypt it or switch it off",
    "core dumps: switched off by a limit of one byte, which a handler of the kernel's own may overlook",
    "side channels: time, load and power can be observed from outside",
    "the machine below the kernel: management controllers (BMC), firmware, devices with their own network",
    "graphics processors and RDMA: their devices are closed, and nothing was tried with them",
)
"""What nothing here proves, in the words that stand beside every proof."""


class SealError(GovernanceError):
    """The process could not be sealed. missing: the layers that failed, with the reason of each."""

    def __init__(self, message: str, missing: dict[str, str] | None = None) -> None:
        self.missing = missing or {}
        super().__init__(message)


@dataclass(slots=True)
class Seal:
    """A seal that stands. layers: in effect, with what each is; missing: those that are not, and why.

    open_files: what was open or mounted before and leads elsewhere, in words. faults of the self-test there are none:
    it raises.
    """

    since: str
    layers: dict[Layer, str]
    missing: dict[str, str]
    open_files: list[str]
    filter: Filter | None
    recorder: Recorder | None = field(default=None, repr=False)

    def state(self) -> dict[str, Any]:
        """For whoever asks the running process: layers, what was open before, the filter's digest, how much was
        refused, and whether the recorder still lives."""
        return {
            "since": self.since,
            "layers": dict(self.layers),
            "missing": dict(self.missing),
            "open_files": list(self.open_files),
            "filter_sha256": None if self.filter is None else self.filter.sha256,
            "refused": None if self.recorder is None else self.recorder.num_refused,
            "recorder_alive": None if self.recorder is None else self.recorder.alive,
        }

    @property
    def sentence(self) -> str:
        """For a log."""
        without = f"; without {', '.join(self.missing)}" if self.missing else ""
        return f"sealed: {', '.join(self.layers)}{without}"


def seal(
    listeners: Sequence[socket.socket] = (),
    *,
    writable: Sequence[Path] = (),
    record: Path | None = None,
    log: Callable[[str], None] | None = None,
    layers: Collection[Layer] = LAYERS,
    tolerated: Collection[str] = (),
    mounts: Collection[str] | None = (),
) -> Seal:
    """Seal this process for good, before it loads anything that it need not trust.

    listeners: sockets that listen; clients are accepted there afterwards, and nothing else is left to speak through.
    writable: directories in which files may be written; they must exist. record: a file outside of these, to which
    attempts are appended. log: see `Recorder`. layers: those that are tried. tolerated: of these, those that may fail.
    mounts: where file systems of other programs or machines may be mounted; None: anywhere.

    Raises SealError, naming every layer that failed and how to go on without it, and GovernanceError for what the
    process must not hold open, for a second thread, a child, and a mount that was not named. The process is then
    locked in part, and should end.
    """
    if int(process_status()["Threads"]) != 1:
        raise SealError("The process has more than one thread already; it must be sealed before it loads anything.")
    _refuse_children()
    others = _other_mounts(mounts)
    open_files = check_open_files([listener.fileno() for listener in listeners])
    writable = [path.resolve() for path in writable]
    if "landlock" in layers and record is not None and any(record.resolve().is_relative_to(path) for path in writable):
        raise SealError(f"Attempts would be recorded in {record}, which the sealed process may write; choose another.")
    # Of 1 byte: it stops files and, other than 0, handlers too.
    resource.setrlimit(resource.RLIMIT_CORE, (1, 1))
    building = _Building(layers)
    if "record" in layers and "filter" in layers:
        building.recorder = Recorder(record, log)
    before = network_namespace()
    forbid_new_privileges()
    building.stand("namespace", _enter)
    building.stand("capabilities", _give_up)
    building.stand("landlock", lambda: _restrict(writable))
    building.stand("filter", building.lock)
    building.refuse_missing(tolerated)
    building.check(before, listeners)
    if building.recorder is not None:
        building.recorder.go_live()
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    return Seal(now, building.done, building.missing, [*open_files, *others], building.filter, building.recorder)


def _refuse_children() -> None:
    """Raises SealError where this process has started another that still runs: it would stay outside."""
    while True:
        try:
            ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG)
        except ChildProcessError:
            return
        if ended is None:
            raise SealError(
                "The process has started another one, which would stay outside of the seal; a start-up hook of Python "
                "(sitecustomize, a .pth file) may have. Seal before anything is started."
            )


def _other_mounts(allowed: Collection[str] | None) -> list[str]:
    """Mounts that lead elsewhere, in words. Raises SealError for those that are not allowed."""
    found = remote_mounts()
    refused = [mount for mount in found if allowed is not None and mount.path not in allowed]
    if refused:
        options = " ".join(f"--seal-with-mount {mount.path}" for mount in refused)
        reasons = "; ".join(mount.sentence for mount in refused)
        raise SealError(f"To read is to send: {reasons}. Unmount it, or say by name that it may stay: {options}")
    return [mount.sentence for mount in found]


class _Building:
    """A seal while it is made: what stands, and what failed."""

    def __init__(self, layers: Collection[Layer]) -> None:
        self._layers = layers
        self.done: dict[Layer, str] = {}
        self.missing: dict[str, str] = {}
        self.filter: Filter | None = None
        self.recorder: Recorder | None = None

    def stand(self, layer: Layer, make: Callable[[], str]) -> None:
        """Make one layer; what the kernel says against it is kept."""
        if layer not in self._layers:
            return
        try:
            self.done[layer] = make()
        except (OSError, landlock.LandlockError) as error:
            self.missing[layer] = str(error)

    def lock(self) -> str:
        """The filter, recorded if it can be."""
        if self.recorder is not None:
            recorded = lock_filter()
            try:
                listener = install(recorded, listener=True)
                assert listener is not None
                self.recorder.hand_over(listener)
                self.filter = recorded
                self.done["record"] = f"attempts are told to process {self.recorder.pid}"
                return f"seccomp on {recorded.machine.name}, {len(recorded.code) // 8} instructions"
            except OSError as error:
                why = "something else records this process already" if error.errno == errno.EBUSY else str(error)
                self.missing["record"] = why
                self.recorder.dismiss()
                self.recorder = None
        self.filter = lock_filter(recorded=False)
        install(self.filter, listener=False)
        return f"seccomp on {self.filter.machine.name}, {len(self.filter.code) // 8} instructions"

    def refuse_missing(self, tolerated: Collection[str]) -> None:
        """Raises SealError where a layer is missing that nobody said may be."""
        refused = {
            name: why for name, why in self.missing.items() if name not in tolerated or name not in OPTIONAL_LAYERS
        }
        if not refused:
            return
        reasons = "; ".join(f"{name} ({why})" for name, why in refused.items())
        optional = " ".join(f"--seal-without {name}" for name in refused if name in OPTIONAL_LAYERS)
        way_out = f" To go on without, say so by name: {optional}" if optional else ""
        raise SealError(f"This machine cannot lock: {reasons}. Nothing was served.{way_out}", self.missing)

    def check(self, before: str, listeners: Sequence[socket.socket]) -> None:
        """The self-test of each layer that stands. Raises SealError."""
        faults = []
        if "capabilities" in self.done:
            faults += self_test.capability_faults()
        if "filter" in self.done:
            faults += self_test.filter_faults(listeners)
        if "namespace" in self.done:
            faults += self_test.namespace_faults(before)
        if "landlock" in self.done:
            faults += self_test.landlock_faults([] if self.recorder is None else [self.recorder.pid])
        if faults:
            raise SealError(f"The seal does not hold: {'; '.join(faults)}. Nothing was served.")


def _enter() -> str:
    by_user = enter_empty_namespaces()
    return "empty network namespace, own IPC" + (", inside of a user namespace" if by_user else "")


def _give_up() -> str:
    drop_capabilities()
    return "none are left"


def _restrict(writable: Sequence[Path]) -> str:
    landlock.restrict(writable)
    handled = "; ".join(f"{part}: {', '.join(names)}" for part, names in landlock.HANDLED.items())
    return f"ABI {landlock.abi()} ({handled})"
