"""`scripts/serve` on machines that lack something, and on one that lacks nothing; nothing is installed."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from packaging.specifiers import SpecifierSet

from support.repository import ROOT

POSIX_TOOLS = (
    "bash",
    "env",
    "dirname",
    "cat",
    "find",
    "sort",
    "cksum",
    "tr",
    "awk",
    "df",
    "rm",
    "mkdir",
    "timeout",
)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


class Machine:
    """A copy of the scripts and of a little source, and a PATH with POSIX tools only."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "freehold"
        self.bin = folder / "bin"
        self.venv = self.root / ".venv"
        shutil.copytree(ROOT / "scripts", self.root / "scripts")
        for name in ("native/kernel.cpp", "src/freehold/module.py"):
            (self.root / name).parent.mkdir(parents=True)
            (self.root / name).write_text("one\n")
        for name in ("pyproject.toml", "CMakeLists.txt"):
            (self.root / name).write_text("one\n")
        self.bin.mkdir()
        for tool in POSIX_TOOLS:
            found = shutil.which(tool)
            assert found, f"{tool} is not on this machine"
            (self.bin / tool).symlink_to(found)

    def program(self, path: Path, script: str) -> None:
        """Put a small shell program somewhere."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"#!{self.bin}/bash\n{script}\n")
        path.chmod(0o755)

    def install_fakes(self) -> None:
        """A compiler, and a Python that says that it installs packages instead of doing it."""
        self.program(self.bin / "c++", "exit 0")
        pip = 'case "$*" in *venv*) exit 0 ;; *"pip install"*) echo "pip: $*" >&2 ;; esac'
        self.program(self.bin / "python3", pip)
        self.program(self.venv / "bin" / "python", pip)
        self.program(self.venv / "bin" / "freehold", 'echo "freehold $*"')

    def serve(self, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run scripts/serve with nothing but this machine's PATH and the given variables."""
        return subprocess.run(
            [str(self.root / "scripts" / "serve"), *arguments],
            capture_output=True,
            text=True,
            env={"PATH": str(self.bin), **variables},
        )


def test_without_python(machine: Machine) -> None:
    machine.program(machine.bin / "c++", "exit 0")
    done = machine.serve()
    assert done.returncode == 1
    assert done.stderr.startswith("error: no Python >= 3.10 found.")


def test_with_an_old_python_only(machine: Machine) -> None:
    machine.program(machine.bin / "c++", "exit 0")
    machine.program(machine.bin / "python3", "exit 1  # as sys.version_info < (3, 10) would")
    assert "no Python >= 3.10 found" in machine.serve().stderr


def test_without_the_venv_module(machine: Machine) -> None:
    machine.program(machine.bin / "c++", "exit 0")
    machine.program(machine.bin / "python3", 'case "$*" in *ensurepip*) exit 1 ;; esac')
    done = machine.serve()
    assert done.returncode == 1
    assert "has no working venv module" in done.stderr


def test_without_a_compiler(machine: Machine) -> None:
    machine.install_fakes()
    (machine.bin / "c++").unlink()
    done = machine.serve()
    assert done.returncode == 1
    assert done.stderr.startswith("error: no C++ compiler found")


def test_without_disk_space(machine: Machine) -> None:
    machine.install_fakes()
    (machine.bin / "df").unlink()
    machine.program(machine.bin / "df", 'printf "head\\ndisk 9 9 1048576 9%% /\\n"')
    done = machine.serve()
    assert done.returncode == 1
    assert "1024 MiB are free" in done.stderr
    assert "needs 4096 MiB" in done.stderr


def test_without_network(machine: Machine) -> None:
    machine.install_fakes()
    machine.program(machine.venv / "bin" / "python", 'case "$*" in *"pip install"*) exit 1 ;; esac')
    done = machine.serve()
    assert done.returncode == 1
    assert "pip could not install" in done.stderr
    assert "Later starts need neither." in done.stderr
    assert not (machine.venv / "freehold.stamp").exists()


def test_first_start_installs_and_the_second_does_not(machine: Machine) -> None:
    machine.install_fakes()
    first = machine.serve("--port", "9000")
    assert first.returncode == 0, first.stderr
    assert "pip: -m pip install" in first.stderr
    assert first.stdout == "freehold serve --port 9000\n"
    second = machine.serve("smollm2-135m", "--host", "::1")
    assert (second.stdout, second.stderr) == ("freehold serve smollm2-135m --host ::1\n", "")


def test_torch_comes_first_and_from_the_index_named(machine: Machine) -> None:
    machine.install_fakes()
    done = machine.serve(FREEHOLD_TORCH_INDEX="https://index.example/cpu")
    installs = [line for line in done.stderr.splitlines() if line.startswith("pip:")]
    assert installs[0].endswith("--index-url https://index.example/cpu torch==2.13.0")
    assert installs[1].endswith(str(machine.root))
    assert "--index-url" not in installs[1]


@pytest.mark.parametrize("name", ["native/kernel.cpp", "src/freehold/module.py", "pyproject.toml", "CMakeLists.txt"])
def test_changed_sources_are_installed_again(machine: Machine, name: str) -> None:
    machine.install_fakes()
    machine.serve()
    (machine.root / name).write_text("two\n")
    assert "pip: -m pip install" in machine.serve().stderr


def test_compiled_python_files_do_not_count_as_changes(machine: Machine) -> None:
    machine.install_fakes()
    machine.serve()
    cached = machine.root / "src" / "freehold" / "__pycache__" / "module.pyc"
    cached.parent.mkdir()
    cached.write_text("bytes")
    assert machine.serve().stderr == ""


def test_the_environment_of_the_tests_serves_changed_sources(machine: Machine) -> None:
    """Its install is editable: changes of src/ count at once, those of native/ need a build."""
    machine.install_fakes()
    common = f'source "{machine.root}/scripts/_common.sh"'
    subprocess.run(
        ["bash", "-c", f"{common}; install_to_test"],
        check=True,
        capture_output=True,
        env={"PATH": str(machine.bin)},
    )
    (machine.root / "src" / "freehold" / "module.py").write_text("two\n")
    assert machine.serve().stderr == ""
    (machine.root / "native" / "kernel.cpp").write_text("two\n")
    assert "pip: -m pip install" in machine.serve().stderr


def install_rivals(machine: Machine, pip: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run the shell function where a rival is missing; `pip` is what the fake pip does."""
    python = f'case "$*" in -) echo "rival>=1" ;; *"pip install"*) {pip} ;; esac'
    machine.program(machine.venv / "bin" / "python", python)
    code = f'set -euo pipefail; source "{machine.root}/scripts/_common.sh"; install_rivals; echo went on'
    return subprocess.run(
        ["bash", "-c", code], capture_output=True, text=True, env={"PATH": str(machine.bin), **variables}
    )


@pytest.mark.parametrize("pip", ["exit 1", "while :; do :; done"], ids=["fails", "takes too long"])
def test_rival_that_cannot_be_installed_is_left_out(machine: Machine, pip: str) -> None:
    done = install_rivals(machine, pip, FREEHOLD_RIVALS_SECONDS="1")
    assert done.stdout == "went on\n"
    assert "Going on without rival>=1: it could not be installed within 1 s" in done.stderr


def test_rivals_are_installed_unless_left_out(machine: Machine) -> None:
    pip = 'echo "pip: $*" >&2'
    assert "pip: -m pip install" in install_rivals(machine, pip).stderr
    left_out = install_rivals(machine, pip, FREEHOLD_TEST_RIVALS="0")
    assert "pip" not in left_out.stderr
    assert "FREEHOLD_TEST_RIVALS=0" in left_out.stderr


def test_pinned_torch_satisfies_the_project() -> None:
    pinned = re.search(r"torch==([\d.]+)", (ROOT / "scripts" / "_common.sh").read_text("utf-8"))
    wanted = re.search(r'"torch([<>=][^"]+)"', (ROOT / "pyproject.toml").read_text("utf-8"))
    assert pinned
    assert wanted
    assert pinned.group(1) in SpecifierSet(wanted.group(1))


def check_aarch64(machine: Machine, *arguments: str) -> subprocess.CompletedProcess[str]:
    script = str(machine.root / "scripts" / "check-aarch64")
    return subprocess.run([script, *arguments], capture_output=True, text=True, env={"PATH": str(machine.bin)})


def test_check_for_aarch64_names_the_tools_that_are_missing(machine: Machine) -> None:
    done = check_aarch64(machine)
    assert done.returncode == 3  # scripts/prove goes on
    assert "missing here: aarch64-linux-gnu-g++ qemu-aarch64." in done.stderr
    machine.program(machine.bin / "aarch64-linux-gnu-g++", "exit 0")
    assert "missing here: qemu-aarch64." in check_aarch64(machine).stderr


def test_check_for_aarch64_installs_only_when_asked_to(machine: Machine) -> None:
    machine.program(machine.bin / "id", "echo 0")
    machine.program(machine.bin / "apt-get", 'echo "apt-get $*"')
    assert check_aarch64(machine).stdout == ""
    assert check_aarch64(machine, "--install").stdout == "apt-get install -y g++-aarch64-linux-gnu qemu-user-static\n"
    refused = check_aarch64(machine, "--instal")
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "unknown arguments: --instal" in refused.stderr


SCRIPTS = [*(f"scripts/{name}" for name in "check-aarch64 lint prove sanitize serve test".split()), ".ci/run"]


@pytest.mark.parametrize("path", SCRIPTS)
def test_scripts_are_strict_and_parse(path: str) -> None:
    text = (ROOT / path).read_text("utf-8")
    assert "\nset -euo pipefail\n" in text
    assert (ROOT / path).stat().st_mode & 0o111 == 0o111
    subprocess.run(["bash", "-n", str(ROOT / path)], check=True)
