"""The filter refuses what it is said to refuse, for every argument, on both processors; and the table of numbers is
the kernel's."""

from __future__ import annotations

import re
import socket
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from freehold.core.errors import GovernanceError
from freehold.governance.egress import syscalls
from freehold.governance.egress.filter import (
    ALLOW,
    CONDITIONAL,
    ERRNO,
    NOTIFY,
    OPTIONS,
    REFUSED,
    Filter,
    lock_filter,
    watch_filter,
)
from freehold.governance.egress.syscalls import MACHINES, Machine, machine
from support.filter_machine import run_filter

MACHINE_LIST = list(MACHINES.values())
LOCKS = {name: lock_filter(kind) for name, kind in MACHINES.items()}
ENOSYS = ERRNO | 38
WORD = st.integers(0, 2**64 - 1)
ARGUMENTS = st.lists(WORD, min_size=6, max_size=6)
HIGH = st.integers(0, 2**32 - 1).map(lambda half: half << 32)

HEADERS = {
    "x86_64": ("/usr/include/x86_64-linux-gnu/asm/unistd_64.h", r"#define __NR_(\w+) (\d+)"),
    "aarch64": ("/usr/include/asm-generic/unistd.h", r"#define __NR(?:3264)?_(\w+) (\d+)"),
}


def verdict(lock: Filter, call: str | int, *arguments: int) -> int:
    number = lock.machine.number(call) if isinstance(call, str) else call
    assert number is not None
    return run_filter(lock.code, number, lock.machine.audit_arch, arguments)


def allowed_arguments(call: str, flags: int, high: int) -> list[int]:
    """Arguments of a conditional call that a server needs. high: garbage above the 32 bits that the kernel takes."""
    return {
        "socketpair": [socket.AF_UNIX | high, socket.SOCK_STREAM | 0o2000000 | high, 0, flags],
        "sendto": [5, flags, 100, 0x4000 | high, 0, 0],
        "sendmsg": [5, flags, 0x4040 | high],
        "sendmmsg": [5, flags, 2, 0x4000 | high],
        "clone": [0x003D0F00, flags, flags],
        "ioctl": [5, 0x5401 | high, flags],
        "prctl": [38 | high, flags],
        "prlimit64": [high, flags, flags, flags],
        "setpriority": [high, high, flags],
        "sched_setparam": [high, flags],
        "sched_setscheduler": [high, flags, flags],
        "sched_setattr": [high, flags, flags],
        "sched_setaffinity": [high, flags, flags],
        "ioprio_set": [1 | high, high, flags],
        "migrate_pages": [high, flags, flags, flags],
        "move_pages": [high, flags, flags, flags],
    }[call]


@pytest.mark.parametrize("name", sorted(HEADERS))
def test_numbers_are_the_kernel_s(name: str) -> None:
    place, pattern = HEADERS[name]
    if not Path(place).exists():
        pytest.skip(f"there is no {place}")
    known = dict(re.findall(pattern, Path(place).read_text()))
    kind = MACHINES[name]
    ours = {call: kind.number(call) for call in syscalls._NUMBERS}
    wrong = {call: number for call, number in ours.items() if call in known and number != int(known[call])}
    assert wrong == {}
    assert len([call for call in ours if call in known]) > 50


@pytest.mark.parametrize("kind", MACHINE_LIST, ids=lambda kind: kind.name)
@pytest.mark.parametrize("call", sorted(REFUSED))
@settings(max_examples=15)  # for each of a hundred calls
@given(arguments=ARGUMENTS)
def test_refused_whatever_the_arguments(kind: Machine, call: str, arguments: list[int]) -> None:
    if kind.number(call) is not None:
        assert verdict(LOCKS[kind.name], call, *arguments) == NOTIFY


@pytest.mark.parametrize("kind", MACHINE_LIST, ids=lambda kind: kind.name)
@given(number=st.integers(0, 2**32 - 1), arch=st.integers(0, 2**32 - 1), arguments=ARGUMENTS)
def test_other_calling_conventions_are_refused(kind: Machine, number: int, arch: int, arguments: list[int]) -> None:
    if arch != kind.audit_arch:
        assert run_filter(LOCKS[kind.name].code, number, arch, arguments) == NOTIFY


@given(number=st.integers(0x40000000, 2**32 - 1), arguments=ARGUMENTS)
def test_x32_is_refused(number: int, arguments: list[int]) -> None:
    assert verdict(LOCKS["x86_64"], number, *arguments) == NOTIFY


@pytest.mark.parametrize("kind", MACHINE_LIST, ids=lambda kind: kind.name)
@given(number=st.integers(470, 0x3FFFFFFF), arguments=ARGUMENTS)
def test_calls_of_later_kernels_are_unknown(kind: Machine, number: int, arguments: list[int]) -> None:
    assert verdict(LOCKS[kind.name], number, *arguments) == ENOSYS


@pytest.mark.parametrize("kind", MACHINE_LIST, ids=lambda kind: kind.name)
def test_clone3_is_unknown_since_its_flags_cannot_be_seen(kind: Machine) -> None:
    assert verdict(LOCKS[kind.name], "clone3", 1, 2) == ENOSYS


@pytest.mark.parametrize("kind", MACHINE_LIST, ids=lambda kind: kind.name)
@given(family=st.integers(0, 2**32 - 1), kind_of=st.integers(0, 2**32 - 1), high=HIGH)
def test_only_pairs_of_unix_streams(kind: Machine, family: int, kind_of: int, high: int) -> None:
    wanted = family == socket.AF_UNIX and kind_of & 0xF == socket.SOCK_STREAM
    got = verdict(LOCKS[kind.name], "socketpair", family | high, kind_of | high)
    assert got == (ALLOW if wanted else NOTIFY)


@pytest.mark.parametrize("kind", MACHINE_LIST, ids=lambda kind: kind.name)
@given(address=st.integers(1, 2**64 - 1), others=ARGUMENTS)
def test_no_address_is_given_to_sendto(kind: Machine, address: int, others: list[int]) -> None:
    assert verdict(LOCKS[kind.name], "sendto", *others[:4], address, others[5]) == NOTIFY


@pytest.mark.parametrize("kind", MACHINE_LIST, ids=lambda kind: kind.name)
@pytest.mark.parametrize(("call", "place"), [("sendto", 3), ("sendmsg", 2), ("sendmmsg", 3)])
@given(flags=WORD)
def test_fast_open_is_refused(kind: Machine, call: str, place: int, flags: int) -> None:
    arguments = [0] * 6
    arguments[place] = flags | 0x20000000
    assert verdict(LOCKS[kind.name], call, *arguments) == NOTIFY


@pytest.mark.parametrize("kind", MACHINE_LIST, ids=lambda kind: kind.name)
@pytest.mark.parametrize("bit", [0x00020000, 0x02000000, 0x04000000, 0x08000000, 0x10000000, 0x20000000, 0x40000000])
@given(flags=WORD)
def test_new_namespaces_are_refused(kind: Machine, bit: int, flags: int) -> None:
    assert verdict(LOCKS[kind.name], "clone", flags | bit) == NOTIFY


@pytest.mark.parametrize("kind", MACHINE_LIST, ids=lambda kind: kind.name)
@pytest.mark.parametrize(("call", "place", "value"), [("ioctl", 1, 0x5412), ("ioctl", 1, 0x541C), ("prctl", 0, 22)])
@given(high=HIGH)
def test_garbage_above_a_value_hides_nothing(kind: Machine, call: str, place: int, value: int, high: int) -> None:
    arguments = [0] * 6
    arguments[place] = value | high
    assert verdict(LOCKS[kind.name], call, *arguments) == NOTIFY


@pytest.mark.parametrize("kind", MACHINE_LIST, ids=lambda kind: kind.name)
@pytest.mark.parametrize("call", sorted(CONDITIONAL))
@settings(max_examples=30)
@given(flags=st.integers(0, 2**64 - 1), high=HIGH)
def test_what_a_server_needs_passes(kind: Machine, call: str, flags: int, high: int) -> None:
    assert verdict(LOCKS[kind.name], call, *allowed_arguments(call, flags, high)) == ALLOW


@given(number=st.integers(0, 469), arguments=ARGUMENTS)
def test_every_other_call_passes(number: int, arguments: list[int]) -> None:
    kind = MACHINES["x86_64"]
    special = {kind.number(call) for call in (*REFUSED, *CONDITIONAL, *OPTIONS, "clone3")}
    if number not in special:
        assert verdict(LOCKS["x86_64"], number, *arguments) == ALLOW


# Written out once more: what a connection to a client may be told.
SETTABLE = {(1, 7), (1, 8), (1, 9), (1, 13), (1, 20), (1, 21), (6, 1), (6, 3), (6, 4), (6, 5), (6, 6), (6, 12), (6, 18)}


@pytest.mark.parametrize("kind", MACHINE_LIST, ids=lambda kind: kind.name)
@given(level=st.integers(0, 300), option=st.integers(0, 100), high=HIGH)
def test_only_named_socket_options_are_set(kind: Machine, level: int, option: int, high: int) -> None:
    got = verdict(LOCKS[kind.name], "setsockopt", 5, level | high, option | high, 1, 4)
    assert got == (ALLOW if (level, option) in SETTABLE else NOTIFY)


@pytest.mark.parametrize("kind", MACHINE_LIST, ids=lambda kind: kind.name)
@pytest.mark.parametrize("level", [0, 1, 6, 41, 132, 263])
def test_each_socket_option_of_a_level(kind: Machine, level: int) -> None:
    lock = LOCKS[kind.name]
    allowed = {(level, option) for option in range(200) if verdict(lock, "setsockopt", 5, level, option) == ALLOW}
    assert allowed == {pair for pair in SETTABLE if pair[0] == level}
    readable = {option for option in range(200) if verdict(lock, "getsockopt", 5, level, option) == ALLOW}
    assert readable == set(OPTIONS["getsockopt"].get(level, ()))


OF_OTHERS = [
    *(
        (call, 0)
        for call in ("prlimit64", "sched_setparam", "sched_setscheduler", "sched_setattr", "sched_setaffinity")
    ),
    *((call, 0) for call in ("migrate_pages", "move_pages")),
    ("setpriority", 1),
    ("ioprio_set", 1),
]


@pytest.mark.parametrize("kind", MACHINE_LIST, ids=lambda kind: kind.name)
@pytest.mark.parametrize(("call", "place"), OF_OTHERS)
@settings(max_examples=15)
@given(pid=st.integers(1, 2**32 - 1), high=HIGH)
def test_other_processes_are_not_changed(kind: Machine, call: str, place: int, pid: int, high: int) -> None:
    arguments = [0] * 6
    if call == "ioprio_set":
        arguments[0] = 1
    arguments[place] = pid | high
    assert verdict(LOCKS[kind.name], call, *arguments) == NOTIFY


@pytest.mark.parametrize("kind", MACHINE_LIST, ids=lambda kind: kind.name)
@pytest.mark.parametrize(
    ("call", "which"), [("setpriority", 1), ("setpriority", 2), ("ioprio_set", 2), ("ioprio_set", 3)]
)
def test_nor_their_groups_and_users(kind: Machine, call: str, which: int) -> None:
    """Number 0 then means this process's group or user, which has other processes too."""
    assert verdict(LOCKS[kind.name], call, which, 0, 19) == NOTIFY


def test_without_a_recorder_the_kernel_itself_refuses() -> None:
    assert verdict(lock_filter(recorded=False), "connect", 3, 0, 0) == ERRNO | 1


def test_a_watch_refuses_nothing() -> None:
    watch = watch_filter(MACHINES["x86_64"])
    assert verdict(watch, "connect", 3, 1, 16) == NOTIFY
    assert verdict(watch, "sendto", 3, 1, 16, 0, 0) == ALLOW
    assert verdict(watch, "socket", 2, 1, 0) == ALLOW
    assert verdict(watch, 9999) == ALLOW


def test_other_processors_are_refused_by_name() -> None:
    with pytest.raises(GovernanceError, match="aarch64 and x86_64, this processor is riscv64"):
        machine("riscv64")


def test_the_digest_is_of_what_the_kernel_runs() -> None:
    assert len({lock.sha256 for lock in (*LOCKS.values(), lock_filter(MACHINES["x86_64"], recorded=False))}) == 3
    assert lock_filter(MACHINES["x86_64"]).sha256 == LOCKS["x86_64"].sha256


def test_no_rule_was_lost() -> None:
    """Written out once more, so that a rule that disappears is missed."""
    needed = (
        "socket connect bind io_uring_setup io_uring_enter io_uring_register ptrace process_vm_readv process_vm_writev "
        "pidfd_getfd setns unshare mount umount2 pivot_root chroot open_tree open_tree_attr move_mount fsopen fsconfig "
        "fsmount fspick mount_setattr bpf perf_event_open kexec_load kexec_file_load init_module finit_module "
        "add_key request_key keyctl open_by_handle_at userfaultfd setxattr lsetxattr fsetxattr setxattrat seccomp "
        "process_madvise process_mrelease"
    ).split()
    assert set(needed) - set(REFUSED) == set()
