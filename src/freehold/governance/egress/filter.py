"""Our own seccomp filter: every system call that could open a way out is refused, in the kernel, for all threads.

The rules name what is refused; the rest passes, so that libraries keep working. It is no list of known attacks, but of
the calls by which a process gets a new way to speak: a socket that is no pair of its own, an address given to one, a
ring that makes calls by itself, another process's memory, descriptors or namespaces, the kernel's own facilities. Calls
newer than `LAST_KNOWN` are refused as unknown (ENOSYS), calls in another calling convention (x32, 32 bits) at all.

A filter sees numbers, never what a pointer leads to. Therefore the destination of sendmsg(2) is out of its sight, and
the rules leave no socket for which it would count: of its own accord a sealed process gets no datagram socket, and a
stream socket takes an address only with MSG_FASTOPEN, which is a number. Of socket options it sees the name alone, so
those are listed that may be used.
"""

from __future__ import annotations

import ctypes
import hashlib
import struct
from dataclasses import dataclass

from freehold.core.errors import GovernanceError
from freehold.governance.egress.syscalls import LAST_KNOWN, Machine, machine, prctl, syscall

# linux/seccomp.h
ALLOW = 0x7FFF0000
NOTIFY = 0x7FC00000
ERRNO = 0x00050000
EPERM = 1
ENOSYS = 38
_SET_MODE_FILTER = 1
_TSYNC = 1
_NEW_LISTENER = 1 << 3
_TSYNC_ESRCH = 1 << 4

_PR_SET_NO_NEW_PRIVS = 38
_PR_SET_SECCOMP = 22

# linux/bpf_common.h: the few instructions that are needed.
_LOAD = 0x20  # the word at k of struct seccomp_data
_EQUAL = 0x15
_ABOVE = 0x25
_AT_LEAST = 0x35
_ANY_BIT = 0x45
_AND = 0x54
_JUMP = 0x05
_RETURN = 0x06

_NUMBER_AT, _ARCH_AT = 0, 4

_AF_UNIX = 1
_SOCK_STREAM = 1
_SOCK_TYPE_MASK = 0xF
MSG_FASTOPEN = 0x20000000
# CLONE_NEW* of mount, cgroup, UTS, IPC, user, PID and network namespaces.
_NEW_NAMESPACES = 0x00020000 | 0x02000000 | 0x04000000 | 0x08000000 | 0x10000000 | 0x20000000 | 0x40000000
_TIOCSTI, _TIOCLINUX = 0x5412, 0x541C
_IOPRIO_WHO_PROCESS = 1
_X32_BIT = 0x40000000

REFUSED: dict[str, str] = {
    "socket": "a new socket, of any family",
    "connect": "an address for a socket; AF_UNSPEC makes a listener free for another",
    "bind": "a place of its own to listen at or send from",
    "io_uring_setup": "a ring makes the other calls where no filter looks",
    "io_uring_enter": "",
    "io_uring_register": "",
    "ptrace": "another process acts in its place",
    "process_vm_readv": "",
    "process_vm_writev": "",
    "pidfd_getfd": "another process's sockets",
    "process_madvise": "another process's memory is moved about, which it can see",
    "process_mrelease": "",
    "kcmp": "",
    "setns": "back into a namespace that has a network",
    "unshare": "new namespaces, in which it would be root",
    "mount": "file systems over a network are the kernel's own connections",
    "umount2": "",
    "pivot_root": "",
    "chroot": "",
    "open_tree": "",
    "open_tree_attr": "",
    "move_mount": "",
    "fsopen": "",
    "fsconfig": "",
    "fsmount": "",
    "fspick": "",
    "mount_setattr": "",
    "bpf": "programs in the kernel",
    "perf_event_open": "",
    "kexec_load": "",
    "kexec_file_load": "",
    "init_module": "",
    "finit_module": "",
    "delete_module": "",
    "uselib": "",
    "add_key": "keys, which the kernel has a helper outside fetch, over DNS too",
    "request_key": "",
    "keyctl": "",
    "open_by_handle_at": "files outside of every directory that was named",
    "fanotify_init": "",
    "userfaultfd": "",
    "setxattr": "attributes can hold whole texts, on files that Landlock keeps from being written",
    "lsetxattr": "",
    "fsetxattr": "",
    "setxattrat": "",
    "removexattr": "",
    "lremovexattr": "",
    "fremovexattr": "",
    "removexattrat": "",
    "quotactl": "",
    "quotactl_fd": "",
    "acct": "the machine itself",
    "swapon": "",
    "swapoff": "",
    "reboot": "",
    "syslog": "",
    "iopl": "",
    "ioperm": "",
    "lookup_dcookie": "",
    "nfsservctl": "",
    "seccomp": "a filter of its own could hide attempts from the record",
}
"""Calls refused whatever their arguments, with the reason; an empty one repeats that above."""


@dataclass(frozen=True, slots=True)
class Condition:
    """Look at the low 32 bits of one argument: the kernel takes no more of those that are named here.

    mask: bits that count. equals: refuse where the masked value is this (`unless`: where it is not). None: refuse where
    any bit is set. high: look at the upper 32 bits as well; only for pointers, which may have them alone.
    """

    argument: int
    mask: int = 0xFFFFFFFF
    equals: int | None = None
    unless: bool = False
    high: bool = False


_SOL_SOCKET, _IPPROTO_TCP, _IPPROTO_IPV6 = 1, 6, 41
_SETTABLE: dict[int, tuple[int, ...]] = {
    _SOL_SOCKET: (7, 8, 9, 13, 20, 21),  # buffers, KEEPALIVE, LINGER, RCVTIMEO, SNDTIMEO
    _IPPROTO_TCP: (1, 3, 4, 5, 6, 12, 18),  # NODELAY, CORK, KEEPIDLE, KEEPINTVL, KEEPCNT, QUICKACK, USER_TIMEOUT
}
"""Options, by level, of what a connection to a client needs. All others stay shut: some make the kernel itself send
(a multicast group that is joined is reported to the network), others change the way that answers take."""

_READABLE: dict[int, tuple[int, ...]] = {
    # TYPE, ERROR, PEERCRED, ACCEPTCONN, PROTOCOL, DOMAIN
    _SOL_SOCKET: (*_SETTABLE[_SOL_SOCKET], 3, 4, 17, 30, 38, 39),
    _IPPROTO_TCP: (*_SETTABLE[_IPPROTO_TCP], 2, 11),  # MAXSEG, INFO
    _IPPROTO_IPV6: (26,),  # V6ONLY
}

OPTIONS: dict[str, dict[int, tuple[int, ...]]] = {"setsockopt": _SETTABLE, "getsockopt": _READABLE}
"""Calls whose second and third argument must be a pair that stands here."""

CONDITIONAL: dict[str, tuple[Condition, ...]] = {
    # Only connected pairs of streams: a datagram socket of the family can be sent to any name in the file system.
    "socketpair": (
        Condition(0, equals=_AF_UNIX, unless=True),
        Condition(1, mask=_SOCK_TYPE_MASK, equals=_SOCK_STREAM, unless=True),
    ),
    "sendto": (Condition(4, high=True), Condition(3, mask=MSG_FASTOPEN)),
    "sendmsg": (Condition(2, mask=MSG_FASTOPEN),),
    "sendmmsg": (Condition(3, mask=MSG_FASTOPEN),),
    "clone": (Condition(0, mask=_NEW_NAMESPACES),),
    # Typing into the terminal that started it, and the console's own ways of doing so.
    "ioctl": (Condition(1, equals=_TIOCSTI), Condition(1, equals=_TIOCLINUX)),
    "prctl": (Condition(0, equals=_PR_SET_SECCOMP),),
    # Another process's limits, priority, processors or memory nodes: it, and everybody else, can read them.
    # Number 0 is the calling thread; its own number is refused as well, since a filter cannot know it.
    "prlimit64": (Condition(0),),
    "setpriority": (Condition(0), Condition(1)),
    "sched_setparam": (Condition(0),),
    "sched_setscheduler": (Condition(0),),
    "sched_setattr": (Condition(0),),
    "sched_setaffinity": (Condition(0),),
    "ioprio_set": (Condition(0, equals=_IOPRIO_WHO_PROCESS, unless=True), Condition(1)),
    "migrate_pages": (Condition(0),),
    "move_pages": (Condition(0),),
}
"""Calls refused where any of the conditions holds. clone3 hides its flags behind a pointer: it is refused as unknown,
and libraries then take clone."""

WATCHED: dict[str, tuple[Condition, ...] | None] = {
    "connect": None,
    "sendto": (Condition(4, high=True),),
    "sendmsg": None,
    "sendmmsg": None,
    "io_uring_setup": None,
}
"""For an audit of what a program tries to reach, in a namespace without a network: told, then let through."""

_UNKNOWN = ("clone3",)


@dataclass(frozen=True, slots=True)
class Filter:
    """A program for the kernel. code: its instructions, 8 bytes each."""

    machine: Machine
    code: bytes

    @property
    def sha256(self) -> str:
        """Of the instructions: what the kernel runs, no more and no less."""
        return hashlib.sha256(self.code).hexdigest()


class _Program:
    """Instructions with named targets ahead of them."""

    def __init__(self) -> None:
        self._lines: list[tuple[int, int, str, str]] = []  # code, k, target if true, target if false; "": the next
        self._labels: dict[str, int] = {}

    def put(self, code: int, k: int, yes: str = "", no: str = "") -> None:
        self._lines.append((code, k, yes, no))

    def label(self, name: str) -> None:
        self._labels[name] = len(self._lines)

    def code(self) -> bytes:
        """Classic BPF: struct sock_filter for each. A conditional jump reaches 255 instructions, which is checked."""
        packed = []
        for place, (code, k, yes, no) in enumerate(self._lines):
            jumps = [self._labels[name] - place - 1 if name else 0 for name in (yes, no)]
            if code == _JUMP:
                packed.append(struct.pack("=HBBI", code, 0, 0, jumps[0]))
                continue
            if max(jumps) > 255 or min(jumps) < 0:
                raise GovernanceError("The egress filter is too long for its jumps.")
            packed.append(struct.pack("=HBBI", code, *jumps, k))
        return b"".join(packed)


def lock_filter(kind: Machine | None = None, *, recorded: bool = True) -> Filter:
    """The filter of a sealed process.

    recorded: refusals are decided by a process outside, which writes them down (and where it has died, the call fails
    with ENOSYS); otherwise they fail with EPERM.
    """
    rules: dict[str, tuple[Condition, ...] | None] = {
        **dict.fromkeys(REFUSED),
        **CONDITIONAL,
        **dict.fromkeys(OPTIONS, ()),
    }
    return _assemble(kind or machine(), rules, NOTIFY if recorded else ERRNO | EPERM, strict=True)


def watch_filter(kind: Machine | None = None) -> Filter:
    """The filter of a process whose attempts are only told: it refuses nothing by itself."""
    return _assemble(kind or machine(), WATCHED, NOTIFY, strict=False)


def _assemble(kind: Machine, rules: dict[str, tuple[Condition, ...] | None], refusal: int, *, strict: bool) -> Filter:
    program = _Program()
    program.put(_LOAD, _ARCH_AT)
    program.put(_EQUAL, kind.audit_arch, "", "refuse arch")
    program.put(_LOAD, _NUMBER_AT)
    if kind.name == "x86_64":
        program.put(_AT_LEAST, _X32_BIT, "refuse arch")
    if strict:
        program.put(_ABOVE, LAST_KNOWN, "unknown")
        for name in _UNKNOWN:
            program.put(_EQUAL, _number(kind, name), "unknown")
    conditional = []
    for name, conditions in rules.items():
        number = kind.number(name)
        if number is None:
            continue
        program.put(_EQUAL, number, "refuse early" if conditions is None else f"look at {name}")
        if conditions is not None:
            conditional.append((name, conditions))
    program.put(_JUMP, 0, "allow")
    program.label("refuse arch")
    program.label("refuse early")
    program.put(_RETURN, refusal)
    program.label("unknown")
    program.put(_RETURN, ERRNO | ENOSYS)
    for name, conditions in conditional:
        program.label(f"look at {name}")
        if name in OPTIONS:
            _put_options(program, name)
            continue
        for condition in conditions:
            _put_condition(program, condition)
        program.put(_JUMP, 0, "allow")
    program.label("refuse")
    program.put(_RETURN, refusal)
    program.label("allow")
    program.put(_RETURN, ALLOW)
    return Filter(kind, program.code())


def _put_condition(program: _Program, condition: Condition) -> None:
    # Both processors are little-endian: the low word of an argument comes first.
    low = 16 + 8 * condition.argument
    program.put(_LOAD, low)
    if condition.equals is None:
        program.put(_ANY_BIT, condition.mask, "refuse")
        if condition.high:
            program.put(_LOAD, low + 4)
            program.put(_ANY_BIT, 0xFFFFFFFF, "refuse")
        return
    if condition.mask != 0xFFFFFFFF:
        program.put(_AND, condition.mask)
    yes, no = ("", "refuse") if condition.unless else ("refuse", "")
    program.put(_EQUAL, condition.equals, yes, no)


def _put_options(program: _Program, name: str) -> None:
    """Allow the pairs of level and option that are listed for this call, refuse every other."""
    program.put(_LOAD, 16 + 8)
    for level in OPTIONS[name]:
        program.put(_EQUAL, level, f"{name} of level {level}")
    program.put(_JUMP, 0, "refuse")
    for level, options in OPTIONS[name].items():
        program.label(f"{name} of level {level}")
        program.put(_LOAD, 16 + 8 * 2)
        for option in options:
            program.put(_EQUAL, option, "allow")
        program.put(_JUMP, 0, "refuse")


def _number(kind: Machine, name: str) -> int:
    number = kind.number(name)
    assert number is not None, name
    return number


def forbid_new_privileges() -> None:
    """No program that this process runs from now on gains rights; needed for a filter by whoever is not root."""
    prctl(_PR_SET_NO_NEW_PRIVS, 1)


class _Code(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_void_p))


def install(program: Filter, *, listener: bool) -> int | None:
    """Put the filter on every thread of this process, for good. Returns the descriptor at which the kernel tells of
    refusals, if one is asked for: it must leave this process, or it could answer itself.

    Raises OSError as seccomp(2) does: EBUSY where something else listens to this process already.
    """
    buffer = ctypes.create_string_buffer(program.code, len(program.code))
    code = _Code(len(program.code) // 8, ctypes.addressof(buffer))
    flags = _TSYNC | (_NEW_LISTENER | _TSYNC_ESRCH if listener else 0)
    descriptor = syscall("seccomp", _SET_MODE_FILTER, flags, ctypes.c_void_p(ctypes.addressof(code)))
    return descriptor if listener else None
