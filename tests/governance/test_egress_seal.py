"""What a seal refuses, what it says, and what its recorder writes down; each in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest

from freehold.governance.egress.mounts import remote_mounts
from freehold.governance.egress.recorder import read_attempts
from freehold.governance.egress.seal import SealError, seal
from support.sealing import need_a_seal

START = """
import json, os, socket, sys
from pathlib import Path
from freehold.core.errors import GovernanceError
from freehold.governance.egress import landlock, namespaces, recorder, seal as module
from freehold.governance.egress.seal import seal
from freehold.governance.egress.recorder import write_to_stderr, write_json_to_stderr
listener = socket.create_server(("127.0.0.1", 0))
base = Path(sys.argv[1])
def tell(value): print(json.dumps(value), flush=True)
"""


@pytest.fixture(scope="module", autouse=True)
def _sealable() -> None:
    need_a_seal()


def fresh(code: str, base: Path) -> subprocess.CompletedProcess[str]:
    """Run code in a fresh interpreter, as a sealed server would start."""
    text = START + textwrap.dedent(code)
    done = subprocess.run([sys.executable, "-c", text, str(base)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done


def told(code: str, base: Path) -> Any:
    return json.loads(fresh(code, base).stdout)


def refusal(code: str, base: Path) -> str:
    body = textwrap.indent(textwrap.dedent(code), "    ")
    return str(
        told(f"try:\n{body}\nexcept GovernanceError as error:\n    tell(str(error))\nelse:\n    tell('sealed')", base)
    )


def test_a_process_with_threads_is_refused() -> None:
    with pytest.raises(SealError, match="more than one thread"):
        threaded()


def threaded() -> None:
    import threading

    end = threading.Event()
    thread = threading.Thread(target=end.wait)
    thread.start()
    try:
        seal()
    finally:
        end.set()
        thread.join()


@pytest.mark.parametrize(
    ("opened", "said"),
    [
        ("client = socket.create_connection(listener.getsockname())", "is a socket"),
        ("pair = socket.socketpair()", "is a socket"),
        ("udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)", "is a socket"),
        ("other = os.open('/proc/self/ns/net', os.O_RDONLY)", "a way back out"),
        ("other = os.pidfd_open(os.getppid())", "a way past the seal"),
    ],
)
def test_what_leads_elsewhere_must_not_be_open(opened: str, said: str, tmp_path: Path) -> None:
    assert said in refusal(f"{opened}\nseal([listener])", tmp_path)


def test_a_child_from_before_is_refused(tmp_path: Path) -> None:
    code = """
    import subprocess
    child = subprocess.Popen(["sleep", "30"])
    try: seal([listener])
    except GovernanceError as error: first = str(error)
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    seal([listener])
    tell([first, "sealed"])
    """
    first, second = told(code, tmp_path)
    assert "has started another one" in first
    assert second == "sealed"  # it has ended


MOUNTS = """
from freehold.governance.egress.mounts import Mount
module.remote_mounts = lambda: [Mount('/far', 'nfs4'), Mount('/other', 'fuse.sshfs')]
"""


def test_file_systems_of_others_are_refused_until_named(tmp_path: Path) -> None:
    said = refusal(f"{MOUNTS}\nseal([listener], mounts=['/far'])", tmp_path)
    assert "at /other a file system of kind fuse.sshfs is mounted" in said
    assert "/far" not in said
    assert said.endswith("--seal-with-mount /other")
    state = told(f"{MOUNTS}\ntell(seal([listener], mounts=['/far', '/other']).state())", tmp_path)
    assert [text.split()[1] for text in state["open_files"] if "mounted" in text] == ["/far", "/other"]


def test_mounts_are_read_as_the_kernel_writes_them(tmp_path: Path) -> None:
    lines = (
        "22 1 8:1 / / rw shared:1 - ext4 /dev/sda1 rw",
        "23 22 0:30 / /mnt/with\\040space rw - nfs4 host:/x rw",
        "24 22 0:31 / /run/user/0/gvfs rw shared:3 master:2 - fuse.gvfsd-fuse gvfsd-fuse rw",
        "25 22 0:32 / /proc/sys/fs/binfmt_misc rw - autofs systemd-1 rw",
        "26 22 0:33 / /net rw - autofs auto.net rw",
        "27 22 0:34 / /new rw - something /dev/x rw",
        "28 22 0:35 / /tmp rw - tmpfs tmpfs rw",
    )
    (tmp_path / "mountinfo").write_text("\n".join(lines) + "\n")
    found = [(mount.path, mount.kind) for mount in remote_mounts(tmp_path / "mountinfo")]
    assert found == [
        ("/mnt/with space", "nfs4"),
        ("/net", "autofs"),
        ("/new", "something"),
        ("/run/user/0/gvfs", "fuse.gvfsd-fuse"),
    ]


def test_a_listener_must_listen(tmp_path: Path) -> None:
    assert "does not listen" in refusal("seal([listener, socket.socket()])", tmp_path)


def test_attempts_are_recorded_where_the_process_cannot_write(tmp_path: Path) -> None:
    assert "may write; choose another" in refusal("seal([listener], writable=[base], record=base / 'r')", tmp_path)


NO_NAMESPACE = """
def fails(): raise OSError(1, "namespaces are switched off")
module.enter_empty_namespaces = fails
"""


def test_a_missing_layer_is_named_with_the_way_out(tmp_path: Path) -> None:
    said = refusal(f"{NO_NAMESPACE}\nlandlock.abi = lambda: 5\nseal([listener])", tmp_path)
    assert "namespace ([Errno 1] namespaces are switched off)" in said
    assert "landlock (The kernel's Landlock has ABI 5; 6 is needed" in said
    assert said.endswith("--seal-without namespace --seal-without landlock")


def test_only_the_named_layer_may_be_missing(tmp_path: Path) -> None:
    code = f"{NO_NAMESPACE}\nlandlock.abi = lambda: 5\nseal([listener], tolerated=['namespace'])"
    assert refusal(code, tmp_path).endswith("say so by name: --seal-without landlock")
    code = f"{NO_NAMESPACE}\nstands = seal([listener], tolerated=['namespace'])\ntell(stands.state())"
    state = told(code, tmp_path)
    assert list(state["missing"]) == ["namespace"]
    assert sorted(state["layers"]) == ["capabilities", "filter", "landlock", "record"]


def test_the_filter_may_never_be_missing(tmp_path: Path) -> None:
    code = """
    def fails(*_, **__): raise OSError(22, "no seccomp")
    module.install = fails
    seal([listener], tolerated=['filter', 'record'])
    """
    assert refusal(code, tmp_path).endswith("Nothing was served.")


def test_a_filter_that_lets_something_through_fails_the_self_test(tmp_path: Path) -> None:
    code = """
    from freehold.governance.egress import filter as rules
    del rules.REFUSED['io_uring_setup']
    seal([listener])
    """
    assert "The seal does not hold: io_uring_setup:" in refusal(code, tmp_path)


@pytest.mark.parametrize("rule", ["prlimit64", "setpriority", "sched_setaffinity", "ioprio_set"])
def test_a_filter_that_reaches_other_processes_fails_it_too(rule: str, tmp_path: Path) -> None:
    code = f"""
    from freehold.governance.egress import filter as rules
    del rules.CONDITIONAL[{rule!r}]
    seal([listener])
    """
    assert f"{rule} of another process:" in refusal(code, tmp_path)


def test_and_one_that_lets_groups_be_joined(tmp_path: Path) -> None:
    code = """
    from freehold.governance.egress import filter as rules
    rules.OPTIONS['setsockopt'][0] = (46,)
    seal([listener])
    """
    assert "MCAST_JOIN_SOURCE_GROUP:" in refusal(code, tmp_path)


@pytest.mark.parametrize(
    "made",
    [
        "socket.create_server(('::1', 0), family=socket.AF_INET6)",
        "socket.create_server(('::', 0), family=socket.AF_INET6, dualstack_ipv6=True)",
        "socket.socket(socket.AF_UNIX); door.bind(str(base / 'door')); door.listen()",
    ],
)
def test_listeners_of_other_families_are_sealed_as_well(made: str, tmp_path: Path) -> None:
    assert refusal(f"door = {made}\nseal([listener, door], record=base / 'r')", tmp_path) == "sealed"


@pytest.mark.parametrize("name", ["b'\\xff\\xfe'", "b'a\\nb'"])
def test_a_program_s_name_stops_no_record(name: str, tmp_path: Path) -> None:
    code = f"""
    import ctypes
    stands = seal([listener], record=base / 'r', log=write_to_stderr)
    ctypes.CDLL(None).prctl(15, {name}, 0, 0, 0)
    for _ in range(2):
        try: socket.socket()
        except OSError: pass
    tell([stands.state()['refused'], stands.state()['recorder_alive']])
    """
    done = fresh(code, tmp_path)
    assert json.loads(done.stdout) == [2, True]
    assert len(read_attempts(tmp_path / "r")) == 2
    assert len(done.stderr.splitlines()) == 2


def test_a_recorder_that_has_died_is_told(tmp_path: Path) -> None:
    code = """
    stands = seal([listener], record=base / 'r', layers=['filter', 'record'])
    os.kill(stands.recorder.pid, 9)
    os.waitid(os.P_PID, stands.recorder.pid, os.WEXITED | os.WNOWAIT)
    tell(stands.state()['recorder_alive'])
    """
    assert told(code, tmp_path) is False


def test_where_somebody_else_records_it_is_said(tmp_path: Path) -> None:
    code = """
    from freehold.governance.egress.filter import forbid_new_privileges, install, watch_filter
    forbid_new_privileges()
    def busy(program, *, listener, real=module.install):
        if listener: raise OSError(16, "busy")
        return real(program, listener=False)
    module.install = busy
    seal([listener])
    """
    assert "record (something else records this process already)" in refusal(code, tmp_path)


def test_threads_and_programs_that_start_later_are_sealed(tmp_path: Path) -> None:
    code = """
    import subprocess, threading
    seal([listener], record=base / 'r')
    said = []
    def thread():
        try: socket.socket()
        except OSError as error: said.append(error.errno)
    one = threading.Thread(target=thread); one.start(); one.join()
    child = "import socket\\ntry: socket.socket()\\nexcept OSError as error: print(error.errno)"
    said.append(int(subprocess.run([sys.executable, '-c', child], capture_output=True, text=True).stdout))
    tell(said)
    """
    assert told(code, tmp_path) == [1, 1]


def test_attempts_are_written_down_with_their_address(tmp_path: Path) -> None:
    code = """
    stands = seal([listener], record=base / 'r', log=write_to_stderr)
    import ctypes, struct
    libc = ctypes.CDLL(None)
    address = struct.pack('=H', 2) + struct.pack('!H4s8x', 443, bytes([192, 0, 2, 7]))
    libc.connect(listener.fileno(), address, 16)
    loopback = struct.pack('=H', 10) + struct.pack('!HI', 53, 0) + bytes(15) + bytes([1]) + bytes(4)
    libc.sendto(listener.fileno(), b'x', 1, 0, loopback, 28)
    socket.socketpair()
    tell(stands.state()['refused'])
    """
    done = fresh(code, tmp_path)
    assert json.loads(done.stdout) == 2
    attempts = read_attempts(tmp_path / "r")
    assert [(found["call"], found["address"]) for found in attempts] == [
        ("connect", "AF_INET 192.0.2.7:443"),
        ("sendto", "AF_INET6 [::1]:53"),
    ]
    assert attempts[0]["program"].startswith("python")
    assert "seal: refused connect to AF_INET 192.0.2.7:443 by python" in done.stderr
    assert len(read_attempts(tmp_path / "r", rehearsed=True)) > 15  # the self-test's own


def test_the_record_survives_the_process_that_is_recorded(tmp_path: Path) -> None:
    """Neither signals, limits and priority nor its file are in reach; without the recorder calls are refused anyway."""
    code = """
    import resource
    stands = seal([listener], record=base / 'r')
    said = []
    for attempt in (
        lambda: os.kill(stands.recorder.pid, 9),
        lambda: resource.prlimit(stands.recorder.pid, resource.RLIMIT_FSIZE, (0, 0)),
        lambda: os.setpriority(os.PRIO_PROCESS, stands.recorder.pid, 19),
        lambda: os.sched_setaffinity(stands.recorder.pid, {0}),
        lambda: resource.setrlimit(resource.RLIMIT_NOFILE, resource.getrlimit(resource.RLIMIT_NOFILE)),
        lambda: (base / 'r').unlink(),
        lambda: os.truncate(base / 'r', 0),
        lambda: open(f'/proc/{stands.recorder.pid}/mem', 'wb'),
        lambda: socket.socket(),
    ):
        try: attempt()
        except OSError as error: said.append(error.errno)
        else: said.append(0)
    tell(said)
    """
    assert told(code, tmp_path) == [1, 1, 1, 1, 0, 13, 13, 13, 1]
    calls = [found["call"] for found in read_attempts(tmp_path / "r")]
    assert calls == ["prlimit64", "setpriority", "sched_setaffinity", "socket"]


def test_without_its_recorder_a_process_stays_sealed(tmp_path: Path) -> None:
    code = """
    stands = seal([listener], record=base / 'r', layers=['filter', 'record'])
    os.kill(stands.recorder.pid, 9)
    os.waitpid(stands.recorder.pid, 0)
    try: socket.socket()
    except OSError as error: tell(error.errno)
    """
    assert told(code, tmp_path) == 38  # ENOSYS


def test_a_recorder_ends_with_the_last_process_of_its_seal(tmp_path: Path) -> None:
    pid = told("stands = seal([listener], record=base / 'r')\ntell(stands.recorder.pid)", tmp_path)
    end = time.monotonic() + 5
    while time.monotonic() < end and Path(f"/proc/{pid}/comm").exists():
        time.sleep(0.02)
    assert not Path(f"/proc/{pid}/comm").exists()


def test_files_are_written_in_named_directories_only(tmp_path: Path) -> None:
    code = """
    (base / 'mine').mkdir()
    seal([listener], writable=[base / 'mine'])
    (base / 'mine' / 'deep').mkdir()
    (base / 'mine' / 'deep' / 'file').write_text('x')
    said = []
    for path in (base / 'other', Path('/dev/shm/freehold-test'), Path('/proc/self/coredump_filter')):
        try: path.write_text('x')
        except OSError as error: said.append(error.errno)
    open('/dev/null', 'w').write('x')
    tell(said)
    """
    assert told(code, tmp_path) == [13, 13, 13]


def test_a_record_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    assert "cannot be recorded in" in refusal("seal([listener], record=base / 'no' / 'r')", tmp_path)


def test_a_log_in_json_gets_json(tmp_path: Path) -> None:
    code = """
    seal([listener], record=base / 'r', log=write_json_to_stderr)
    try: socket.socket()
    except OSError: pass
    """
    line = json.loads(fresh(code, tmp_path).stderr)
    assert line["level"] == "warning"
    assert "refused socket to AF_INET" in line["message"]
