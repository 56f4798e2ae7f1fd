"""The doctor: facts from the system's files, what each means, and that a healthy machine is called healthy."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from freehold import kernels
from freehold.cli.main import main
from freehold.core.errors import KernelError
from freehold.kernels import library
from freehold.plan import checks
from freehold.plan.disk import DiskSpeed
from freehold.plan.finding import Finding
from freehold.plan.host import Host, filesystem_of, this_host

GB = 10**9
HEALTHY = Host(
    processors=8,
    allowed=8,
    quota=None,
    memory=64 * GB,
    limit=None,
    available=50 * GB,
    cached=GB,
    swap=0,
    swapped=0,
    large_pages="madvise",
    overcommit=0,
    open_files=4096,
)
FAST = DiskSpeed(read=3e9, write=1e9, direct=True, nbytes=2**26)


def system(folder: Path, files: dict[str, str]) -> tuple[Path, Path]:
    """Fake /proc and /sys."""
    meminfo = "MemTotal: 1000 kB\nMemAvailable: 600 kB\nCached: 200 kB\nSwapTotal: 100 kB\nSwapFree: 40 kB\n"
    for name, text in {"proc/meminfo": meminfo, **files}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder / "proc", folder / "sys"


def test_memory_and_pages(tmp_path: Path) -> None:
    files = {
        "sys/kernel/mm/transparent_hugepage/enabled": "always madvise [never]\n",
        "proc/sys/vm/overcommit_memory": "2\n",
    }
    host = this_host(*system(tmp_path, files))
    assert (host.memory, host.available, host.cached) == (1000 * 1024, 600 * 1024, 200 * 1024)
    assert (host.swap, host.swapped) == (100 * 1024, 60 * 1024)
    assert (host.large_pages, host.overcommit, host.limit, host.quota) == ("never", 2, None, None)


@pytest.mark.parametrize(
    "files",
    [
        {
            "proc/self/cgroup": "0::/outer/inner\n",
            "sys/fs/cgroup/outer/memory.max": "512000\n",
            "sys/fs/cgroup/outer/inner/memory.max": "max\n",
            "sys/fs/cgroup/outer/cpu.max": "max 100000\n",
            "sys/fs/cgroup/outer/inner/cpu.max": "150000 100000\n",
        },
        {
            "proc/self/cgroup": "4:memory:/box\n1:cpu,cpuacct:/box\n",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
            "sys/fs/cgroup/memory/box/memory.limit_in_bytes": "512000\n",
            "sys/fs/cgroup/cpu,cpuacct/box/cpu.cfs_quota_us": "150000\n",
            "sys/fs/cgroup/cpu,cpuacct/box/cpu.cfs_period_us": "100000\n",
            "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "-1\n",
        },
    ],
    ids=["version 2", "version 1"],
)
def test_control_groups_limit_memory_and_time(tmp_path: Path, files: dict[str, str]) -> None:
    host = this_host(*system(tmp_path, files))
    assert (host.limit, host.quota) == (512000, 1.5)
    assert host.usable_memory == 512000
    assert replace(host, allowed=4).usable_processors == 1.5


def test_a_system_without_these_files_still_has_memory(tmp_path: Path) -> None:
    host = this_host(tmp_path / "no proc", tmp_path / "no sys")
    assert host.usable_memory > 2**28
    assert (host.limit, host.large_pages, host.available) == (None, None, None)


def test_file_system_of_the_deepest_mount(tmp_path: Path) -> None:
    place = tmp_path.resolve() / "data" / "a b"
    place.mkdir(parents=True)
    escaped = str(place).replace(" ", "\\040")
    (tmp_path / "mountinfo").write_text(
        "1 0 8:1 / / rw - ext4 /dev/a rw\n"
        f"2 1 0:5 / {tmp_path.resolve()}/data rw shared:1 - xfs /dev/b rw\n"
        f"3 2 0:6 / {escaped} rw - nfs4 server:/x rw\n"
        f"4 2 0:7 / {tmp_path.resolve()}/dat rw - tmpfs none rw\n"
    )
    mounts = tmp_path / "mountinfo"
    assert filesystem_of(place / "below", mounts) == "nfs4"
    assert filesystem_of(place.parent, mounts) == "xfs"
    assert filesystem_of(Path("/"), mounts) == "ext4"
    assert filesystem_of(place, tmp_path / "missing") is None


def all_checks(host: Host, speed: DiskSpeed = FAST, kind: str = "ext4", free: int = 100 * GB) -> list[Finding]:
    found = [
        checks.check_isa("avx2", ["portable", "avx2"], None, "GCC"),
        checks.check_threads(host, 8, 8, {}),
        *checks.check_memory(host, 50e9),
        checks.check_swap(host),
        checks.check_open_files(host),
        checks.check_load(0.1, host),
        *checks.check_disk("/home", kind, free, speed),
    ]
    return [one for one in found if one is not None]


def test_nothing_is_wrong_with_a_healthy_machine() -> None:
    assert [one for one in all_checks(HEALTHY) if one.level != "ok" or one.way_out] == []


@pytest.mark.parametrize(
    ("topic", "host"),
    [
        ("threads", replace(HEALTHY, quota=2.0)),
        ("memory", replace(HEALTHY, available=GB // 2)),
        ("memory", replace(HEALTHY, limit=GB // 2)),
        ("large pages", replace(HEALTHY, large_pages="never")),
        ("overcommit", replace(HEALTHY, overcommit=2)),
        ("swap", replace(HEALTHY, swap=10 * GB, swapped=GB)),
        ("open files", replace(HEALTHY, open_files=256)),
    ],
)
def test_each_fault_of_a_machine_has_a_way_out(topic: str, host: Host) -> None:
    (wrong,) = (one for one in all_checks(host) if one.level != "ok")
    assert wrong.topic == topic
    assert wrong.way_out


@pytest.mark.parametrize(
    ("topic", "changes"),
    [
        ("disk", {"kind": "nfs4"}),
        ("disk", {"kind": "tmpfs"}),
        ("disk", {"free": GB}),
        ("disk", {"speed": replace(FAST, read=50e6)}),
        ("direct reads", {"speed": replace(FAST, direct=False)}),
    ],
)
def test_each_fault_of_a_disk_has_a_way_out(topic: str, changes: dict[str, object]) -> None:
    (wrong,) = (one for one in all_checks(HEALTHY, **changes) if one.level != "ok")  # type: ignore[arg-type]
    assert wrong.topic == topic
    assert wrong.way_out


def test_threads_beyond_the_processors_are_seen_wherever_they_come_from() -> None:
    four = replace(HEALTHY, allowed=4)
    assert "--threads 4" in checks.check_threads(four, 8, 4, {}).way_out
    torch = checks.check_threads(four, 4, 8, {"OMP_NUM_THREADS": "8"})
    assert "OMP_NUM_THREADS=4" in torch.way_out
    assert "OMP_NUM_THREADS=8" in torch.fact
    assert "--threads 1" in checks.check_threads(replace(four, quota=0.5), 4, 4, {}).way_out


def test_other_work_is_said() -> None:
    found = checks.check_load(6.0, HEALTHY)
    assert found is not None
    assert found.level == "warning"
    assert checks.check_load(None, HEALTHY) is None


def test_why_an_instruction_set_is_used() -> None:
    assert "the best of what" in checks.check_isa("avx2", ["portable", "avx2"], None, None).fact
    asked = checks.check_isa("portable", ["portable", "avx2"], "portable", None)
    assert "FREEHOLD_ISA asks" in asked.fact
    assert "unset FREEHOLD_ISA: this processor also runs avx2" in asked.way_out
    assert checks.check_isa("avx2", ["portable", "avx2"], "avx2", None).level == "ok"


def test_trying_instruction_sets_leaves_the_one_in_use() -> None:
    before = kernels.isa()
    assert library.runnable_isas()[0] == "portable"
    assert before in library.runnable_isas()
    assert kernels.isa() == before


def test_the_library_says_its_compiler() -> None:
    said = library.compiler()
    assert said is not None
    assert any(character.isdigit() for character in said)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FREEHOLD_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("FREEHOLD_ISA", raising=False)
    return tmp_path / "home"


def test_command_on_this_machine(home: Path) -> None:
    done = CliRunner().invoke(main, ["doctor", "--json"])
    assert done.exit_code == 0, done.output
    said = json.loads(done.stdout)
    assert said["ok"] is True
    found = {one["topic"]: one for one in said["findings"]}
    topics = {"versions", "kernels", "auto", "threads", "memory", "swap", "open files", "disk", "default model"}
    assert topics <= found.keys()
    assert kernels.isa() in found["kernels"]["fact"]
    assert "freehold pull" in found["default model"]["way_out"]
    assert all(one["way_out"] for one in said["findings"] if one["level"] != "ok")
    assert list(home.iterdir()) == []


def test_a_home_that_cannot_be_written_is_an_error(home: Path) -> None:
    home.write_text("a file")
    done = CliRunner().invoke(main, ["doctor"])
    assert done.exit_code == 1
    assert "error: disk: set FREEHOLD_HOME" in done.stdout


def test_missing_kernels_are_an_error_with_a_way_out(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> object:
        raise KernelError("the compiled kernels could not be loaded")

    monkeypatch.setattr(library, "native", missing)
    done = CliRunner().invoke(main, ["doctor", "--json"])
    assert done.exit_code == 1
    errors = [one for one in json.loads(done.stdout)["findings"] if one["level"] == "error"]
    assert [(one["topic"], one["fact"]) for one in errors] == [("kernels", "the compiled kernels could not be loaded")]
    assert "C++ compiler" in errors[0]["way_out"]


def test_an_instruction_set_that_is_none_is_an_error_with_a_way_out(tmp_path: Path) -> None:
    environment = {**os.environ, "FREEHOLD_ISA": "abacus", "FREEHOLD_HOME": str(tmp_path)}
    code = "from freehold.cli.main import main; main(['doctor', '--json'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.returncode == 1, done.stderr
    errors = [one for one in json.loads(done.stdout)["findings"] if one["level"] == "error"]
    assert [(one["topic"], one["way_out"]) for one in errors] == [("kernels", "unset FREEHOLD_ISA (abacus)")]
