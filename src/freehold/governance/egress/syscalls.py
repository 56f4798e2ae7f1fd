"""System calls by name: their numbers on x86_64 and aarch64, and a way to make those that Python lacks."""

from __future__ import annotations

import ctypes
import os
import platform
from dataclasses import dataclass

from freehold.core.errors import GovernanceError

# name: (x86_64, aarch64). None: the processor has no such call. From 424 on all processors share the numbers.
_NUMBERS: dict[str, tuple[int | None, int | None]] = {
    "acct": (163, 89),
    "add_key": (248, 217),
    "bind": (49, 200),
    "bpf": (321, 280),
    "chroot": (161, 51),
    "clone": (56, 220),
    "connect": (42, 203),
    "delete_module": (176, 106),
    "fanotify_init": (300, 262),
    "finit_module": (313, 273),
    "fremovexattr": (199, 16),
    "fsetxattr": (190, 7),
    "getsockopt": (55, 209),
    "init_module": (175, 105),
    "ioctl": (16, 29),
    "ioperm": (173, None),
    "iopl": (172, None),
    "ioprio_set": (251, 30),
    "kcmp": (312, 272),
    "kexec_file_load": (320, 294),
    "kexec_load": (246, 104),
    "keyctl": (250, 219),
    "lookup_dcookie": (212, 18),
    "lremovexattr": (198, 15),
    "lsetxattr": (189, 6),
    "migrate_pages": (256, 238),
    "mount": (165, 40),
    "move_pages": (279, 239),
    "nfsservctl": (180, 42),
    "open_by_handle_at": (304, 265),
    "perf_event_open": (298, 241),
    "pivot_root": (155, 41),
    "prctl": (157, 167),
    "prlimit64": (302, 261),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "ptrace": (101, 117),
    "quotactl": (179, 60),
    "reboot": (169, 142),
    "removexattr": (197, 14),
    "request_key": (249, 218),
    "sched_setaffinity": (203, 122),
    "sched_setattr": (314, 274),
    "sched_setparam": (142, 118),
    "sched_setscheduler": (144, 119),
    "seccomp": (317, 277),
    "sendmmsg": (307, 269),
    "sendmsg": (46, 211),
    "sendto": (44, 206),
    "setns": (308, 268),
    "setpriority": (141, 140),
    "setsockopt": (54, 208),
    "setxattr": (188, 5),
    "socket": (41, 198),
    "socketpair": (53, 199),
    "swapoff": (168, 225),
    "swapon": (167, 224),
    "syslog": (103, 116),
    "umount2": (166, 39),
    "unshare": (272, 97),
    "uselib": (134, None),
    "userfaultfd": (323, 282),
    "pidfd_send_signal": (424, 424),
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fspick": (433, 433),
    "pidfd_open": (434, 434),
    "clone3": (435, 435),
    "pidfd_getfd": (438, 438),
    "process_madvise": (440, 440),
    "mount_setattr": (442, 442),
    "quotactl_fd": (443, 443),
    "landlock_create_ruleset": (444, 444),
    "landlock_add_rule": (445, 445),
    "landlock_restrict_self": (446, 446),
    "process_mrelease": (448, 448),
    "setxattrat": (463, 463),
    "removexattrat": (466, 466),
    "open_tree_attr": (467, 467),
}

LAST_KNOWN = 469
"""file_setattr of Linux 6.17. What a later kernel adds, a filter of ours does not know, and refuses as unknown."""


@dataclass(frozen=True, slots=True)
class Machine:
    """A processor as seccomp sees it. audit_arch: how the kernel names its calling convention. column: of the table."""

    name: str
    audit_arch: int
    column: int

    def number(self, call: str) -> int | None:
        """The number of a system call; None where the processor has none of that name."""
        return _NUMBERS[call][self.column]

    def call(self, number: int) -> str:
        """The name of a system call of the table, otherwise its number as text."""
        return next((name for name, pair in _NUMBERS.items() if pair[self.column] == number), f"call {number}")


MACHINES = {
    "x86_64": Machine("x86_64", 0xC000003E, 0),
    "aarch64": Machine("aarch64", 0xC00000B7, 1),
}


def machine(name: str | None = None) -> Machine:
    """The processor of that name, or this one's. Raises GovernanceError for one that no filter was written for."""
    wanted = platform.machine() if name is None else name
    try:
        return MACHINES[wanted]
    except KeyError:
        known = " and ".join(sorted(MACHINES))
        raise GovernanceError(f"The egress filter is written for {known}, this processor is {wanted}.") from None


_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


def syscall(call: str | int, *arguments: int | ctypes.Array[ctypes.c_char] | ctypes.c_void_p | bytes | None) -> int:
    """Make a system call, by name or number. Integers go as 64 bits, buffers as their address.

    Raises OSError as the call fails; ENOSYS where the processor has none of that name.
    """
    number = machine().number(call) if isinstance(call, str) else call
    if number is None:
        raise OSError(38, f"{os.strerror(38)}: {call}")
    words = [ctypes.c_long(argument) if isinstance(argument, int) else argument for argument in arguments]
    result = int(_libc.syscall(ctypes.c_long(number), *words))
    if result == -1:
        error = ctypes.get_errno()
        raise OSError(error, f"{os.strerror(error)}: {call}")
    return result


def prctl(option: int, *values: int) -> int:
    """prctl(2) with up to four values. Raises OSError."""
    return syscall("prctl", option, *values, *(0,) * (4 - len(values)))
