"""To be nobody: an interpreter that an ordinary user can run here, and a directory that is its own."""

from __future__ import annotations

import importlib.util
import os
import pwd
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from support.repository import ROOT


@cache
def interpreter() -> tuple[list[str], dict[str, str]] | str:
    """The command and environment in which nobody can import this package; otherwise why there is none."""
    if os.geteuid() != 0:
        return "only root can be nobody"
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    start = str(Path(__file__).parent / "nobody_site")
    site = [start, os.environ.get("PYTHONPATH"), str(ROOT / "src"), sysconfig.get_path("purelib")]
    kernels = importlib.util.find_spec("freehold._native")
    variables = {
        "PATH": os.defpath,
        "PYTHONPATH": os.pathsep.join(filter(None, site)),
        "FREEHOLD_TEST_KERNELS": "" if kernels is None or kernels.origin is None else kernels.origin,
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "2",
    }
    for place in (sys.executable, f"/usr/bin/{version}", f"/usr/local/bin/{version}"):
        words = [place, "-c", "import freehold._native, rfc8785, torch"]
        try:
            done = subprocess.run(words, capture_output=True, env=variables, user="nobody", extra_groups=[], cwd="/")
        except OSError:
            continue
        if done.returncode == 0:
            return [place], variables
    return f"nobody can run no {version} here that has this package's dependencies"


@contextmanager
def own_directory() -> Iterator[Path]:
    """A directory that belongs to nobody, outside of those that only this user can enter."""
    made = Path(tempfile.mkdtemp(prefix="freehold-nobody-"))
    try:
        os.chown(made, pwd.getpwnam("nobody").pw_uid, -1)
        made.chmod(0o755)
        yield made
    finally:
        shutil.rmtree(made)
