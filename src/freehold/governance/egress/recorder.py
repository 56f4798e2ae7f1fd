"""The process outside of the seal: the kernel asks it about each refused call, it says no and writes the attempt down.

A filter alone refuses silently. With SECCOMP_RET_USER_NOTIF the kernel holds the calling thread, tells a listener which
call was made with which arguments, and gives the caller the listener's answer. The recorder is forked before the seal
stands, by root and ordinary users alike, and so keeps its rights; the sealed process hands it the listener and holds no
copy. It answers EPERM, always. If it dies, the kernel itself answers ENOSYS: refused too, only not written down.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import mmap
import os
import select
import signal
import socket
import struct
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, NoReturn

from freehold.core.errors import GovernanceError
from freehold.governance.egress.syscalls import Machine, machine, prctl, syscall

_RECEIVE, _SEND = 0xC0502100, 0xC0182101
_NOTIFICATION_BYTES = 80
_CONTINUE = 1
_EPERM = 1
_PR_SET_DUMPABLE = 4
_PR_SET_PTRACER = 0x59616D61

# A program that tries in a loop fills no disk: later attempts are only counted.
_MAX_LINES = 100_000
_LIVE = b"L"

_ADDRESS_OF = {"connect": (1, 2), "sendto": (4, 5), "bind": (1, 2)}  # call: arguments that hold address and length
_FAMILIES = {int(family): family.name for family in socket.AddressFamily}


@dataclass(frozen=True, slots=True)
class Attempt:
    """One refused call. address: where to, as far as it could be read. rehearsed: made by the self-test."""

    time: str
    pid: int
    program: str
    call: str
    arguments: tuple[int, ...]
    address: str | None
    rehearsed: bool

    @property
    def sentence(self) -> str:
        """For a log."""
        to = f" to {self.address}" if self.address else ""
        text = f"seal: refused {self.call}{to} by {self.program} (process {self.pid})"
        # Programs choose their names and addresses; what they choose must stay within its line.
        return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)

    def line(self) -> str:
        """For a file, with an end of line."""
        names = ("time", "pid", "program", "call", "arguments", "address", "rehearsed")
        return json.dumps({name: getattr(self, name) for name in names}) + "\n"


def read_attempts(path: Path, *, rehearsed: bool = False) -> list[dict[str, Any]]:
    """The attempts in a recorder's file; those of the self-test only if asked for."""
    lines = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    return [line for line in lines if rehearsed or not line["rehearsed"]]


class Recorder:
    """The sealed process's side: it starts the recorder, gives it the listener, and reads how much was refused."""

    def __init__(self, record: Path | None, log: Callable[[str], None] | None, *, watch: bool = False) -> None:
        """record: a file to append to. log: called in the recorder with a sentence for each attempt; it must need
        no lock and no socket. watch: let the calls through after they are written down, for an audit.

        Raises GovernanceError where the file cannot be written.
        """
        try:
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
            file = None if record is None else os.open(record, flags, 0o600)
        except OSError as error:
            raise GovernanceError(f"Attempts cannot be recorded in {record}: {error.strerror}.") from error
        self._watch = watch
        self._count = mmap.mmap(-1, 8)
        self._near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if self.pid == 0:
            self._near.close()
            _Recording(far, file, log, self._count, watch=watch).run()
        far.close()
        if file is not None:
            os.close(file)
        with contextlib.suppress(OSError):  # only Yama knows this: the recorder may look at addresses
            prctl(_PR_SET_PTRACER, self.pid)

    def hand_over(self, listener: int) -> None:
        """Give the recorder the kernel's listener and close it here. Raises GovernanceError where it has died."""
        try:
            if self._watch:
                # sendmsg, which carries descriptors, is told to the recorder, which cannot hear it yet.
                self._near.sendall(struct.pack("=i", listener))
            else:
                socket.send_fds(self._near, [b"F"], [listener])
            if self._near.recv(1) != b"F":
                raise GovernanceError("The process that records attempts has died.")
            os.close(listener)
        except OSError as error:
            raise GovernanceError(f"The process that records attempts cannot be reached: {error}.") from error

    def go_live(self) -> None:
        """From here on attempts are real, not the self-test's. There is no way back."""
        self._near.sendall(_LIVE)
        if self._near.recv(1) != _LIVE:
            raise GovernanceError("The process that records attempts has died.")
        self._near.close()

    def dismiss(self) -> None:
        """Without a listener the recorder ends by itself."""
        self._near.close()

    @property
    def num_refused(self) -> int:
        """Attempts since `go_live`. A sealed process could write another number here; its file it cannot."""
        return int(struct.unpack("=Q", self._count[:8])[0])

    @property
    def alive(self) -> bool:
        """Whether attempts are still written down. Of a child that has ended nothing is taken away."""
        try:
            return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None
        except ChildProcessError:  # somebody has waited for it
            return False


class _Recording:
    """The recorder's own life; `run` does not return."""

    def __init__(
        self, far: socket.socket, file: int | None, log: Callable[[str], None] | None, count: mmap.mmap, *, watch: bool
    ) -> None:
        self._far, self._file, self._log, self._count, self._watch = far, file, log, count, watch
        self._live = False
        self._total = self._lines = 0
        self._machine = machine()

    def run(self) -> NoReturn:
        # Nothing may run that the program has prepared for its own end.
        try:
            self._settle()
            listener = self._take_listener()
            if listener is not None:
                self._listen(listener)
        except BaseException as error:  # whatever it is, it must not go on as the program that it was forked from
            with contextlib.suppress(OSError):
                os.write(2, f"seal: the recorder ended: {error!r}\n".encode())
        finally:
            os._exit(0)

    def _settle(self) -> None:
        """Leave the program's signals, files and name; be closed to processes of the same user."""
        os.setsid()
        for kind in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE):
            signal.signal(kind, signal.SIG_IGN)
        keep = {1, 2, self._far.fileno(), *(() if self._file is None else (self._file,))}
        for number in [int(name) for name in os.listdir("/proc/self/fd")]:
            if number not in keep:
                with contextlib.suppress(OSError):
                    os.close(number)
        # What waits for the program's output to end must not wait for this process.
        os.dup2(os.open(os.devnull, os.O_RDWR), 0)
        os.dup2(0, 1)
        prctl(_PR_SET_DUMPABLE, 0)

    def _take_listener(self) -> int | None:
        data, found, _, _ = socket.recv_fds(self._far, 4, 1)
        if not data:
            return None
        if self._watch:
            program = syscall("pidfd_open", os.getppid(), 0)
            found = [syscall("pidfd_getfd", program, struct.unpack("=i", data)[0], 0)]
            os.close(program)
        self._far.sendall(b"F")
        return found[0]

    def _listen(self, listener: int) -> None:
        poll = select.poll()
        poll.register(listener, select.POLLIN)
        poll.register(self._far, select.POLLIN)
        while True:
            for number, events in poll.poll():
                if number == self._far.fileno():
                    self._hear()
                    poll.unregister(number)
                elif events & select.POLLIN:
                    self._answer(listener)
                else:  # no process is left under the filter
                    return

    def _hear(self) -> None:
        if self._far.recv(1) == _LIVE:
            self._live = True
            self._far.sendall(_LIVE)

    def _answer(self, listener: int) -> None:
        notification = bytearray(_NOTIFICATION_BYTES)
        try:
            fcntl.ioctl(listener, _RECEIVE, notification)
        except (FileNotFoundError, InterruptedError):
            return  # the caller was killed meanwhile
        identity, pid, _, number, arch, _, *arguments = struct.unpack("=QIIiIQ6Q", notification)
        rehearsed = not self._live
        try:
            try:
                attempt = _attempt(self._machine, pid, number, arch, tuple(arguments), rehearsed=rehearsed)
            except Exception as error:  # what the caller made hard to read is written down without its particulars
                call = f"{self._machine.call(number)} ({type(error).__name__} while it was read)"
                attempt = Attempt(_now(), pid, "?", call, tuple(arguments), None, rehearsed)
            self._note(attempt)
        finally:
            answer = struct.pack("=QqiI", identity, 0, *((0, _CONTINUE) if self._watch else (-_EPERM, 0)))
            with contextlib.suppress(FileNotFoundError):
                fcntl.ioctl(listener, _SEND, answer)

    def _note(self, attempt: Attempt) -> None:
        if self._live:
            self._total += 1
            self._count[:8] = struct.pack("=Q", self._total)
        self._lines += 1
        if self._lines > _MAX_LINES:
            return
        # A full disk must not keep the answer back.
        with contextlib.suppress(OSError):
            if self._file is not None:
                os.write(self._file, attempt.line().encode())
            if self._log is not None and self._live:
                self._log(attempt.sentence)


def _attempt(
    kind: Machine, pid: int, number: int, arch: int, arguments: tuple[int, ...], *, rehearsed: bool
) -> Attempt:
    call = kind.call(number) if arch == kind.audit_arch else f"call {number} of another convention ({arch:#x})"
    try:
        program = Path(f"/proc/{pid}/comm").read_bytes().removesuffix(b"\n").decode(errors="backslashreplace")
    except OSError:
        program = "?"
    address = None
    if call in _ADDRESS_OF:
        pointer, length = (arguments[place] for place in _ADDRESS_OF[call])
        address = _address(_read_memory(pid, pointer, min(length & 0xFFFFFFFF, 128)))
    elif call in ("sendmsg", "sendmmsg"):
        head = _read_memory(pid, arguments[1], 12)  # msg_name and msg_namelen come first
        if len(head) == 12:
            pointer, length = struct.unpack("=QI", head)
            address = _address(_read_memory(pid, pointer, min(length, 128))) if pointer else None
    elif call in ("socket", "socketpair"):
        address = _FAMILIES.get(arguments[0] & 0xFFFFFFFF, f"family {arguments[0]}")
    return Attempt(_now(), pid, program, call, arguments, address, rehearsed)


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds")


def _read_memory(pid: int, pointer: int, length: int) -> bytes:
    """Bytes of the caller, which waits meanwhile; fewer or none where they cannot be read."""
    try:
        with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
            memory.seek(pointer)
            return memory.read(length)
    except (OSError, OverflowError, ValueError):
        return b""


def _address(raw: bytes) -> str:
    """A socket address in words."""
    if len(raw) < 2:
        return "an address that cannot be read"
    (family,) = struct.unpack("=H", raw[:2])
    name = _FAMILIES.get(family, f"family {family}")
    if family == socket.AF_INET and len(raw) >= 8:
        return f"{name} {socket.inet_ntop(family, raw[4:8])}:{struct.unpack('!H', raw[2:4])[0]}"
    if family == socket.AF_INET6 and len(raw) >= 24:
        return f"{name} [{socket.inet_ntop(family, raw[8:24])}]:{struct.unpack('!H', raw[2:4])[0]}"
    if family == socket.AF_UNIX:
        path = raw[2:]
        text = "@" + path[1:].rstrip(b"\0").decode(errors="replace") if path[:1] == b"\0" else ""
        return f"{name} {text or path.split(bytes(1))[0].decode(errors='replace')}"
    return name


def write_to_stderr(sentence: str) -> None:
    """A log for `Recorder`: one line on standard error."""
    os.write(2, f"{sentence}\n".encode())


def write_json_to_stderr(sentence: str) -> None:
    """The same as a line of a JSON log."""
    now = datetime.now(timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    line = {"time": now, "level": "warning", "logger": "freehold.seal", "message": sentence}
    os.write(2, (json.dumps(line) + "\n").encode())
