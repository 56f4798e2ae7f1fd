"""Calibrations: kept whole, and used only by the machine that made them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from freehold.bench import floors as floors_module
from freehold.core.errors import CorruptFileError, FreeholdError
from freehold.plan.calibration import (
    Calibration,
    calibrate,
    calibration_file,
    load_calibration,
    save_calibration,
    this_identity,
)
from freehold.plan.disk import has_direct_reads, measure_disk


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FREEHOLD_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def made(**changes: object) -> Calibration:
    found = Calibration(this_identity(), "2026-01-01", 2, 1e10, 1e11, 2e11, 1e9, 1e9, disk_direct=True, load=0.1)
    return replace(found, **changes)  # type: ignore[arg-type]


def test_kept_and_found_again(home: Path) -> None:
    assert load_calibration() == (None, "this machine was not calibrated yet")
    path = save_calibration(made())
    assert path.parent == home
    assert load_calibration() == (made(), "calibrated 2026-01-01")
    assert [entry.name for entry in home.iterdir()] == ["calibration.json"]


@pytest.mark.parametrize(
    ("field", "value"),
    [("cpu", "another"), ("cores", 999), ("isa", "none"), ("memory_gib", 1), ("freehold", "0"), ("installation", "0")],
)
def test_that_of_another_machine_is_not_used(field: str, value: object) -> None:
    save_calibration(made(identity=replace(this_identity(), **{field: value})))
    found, why = load_calibration()
    assert found is None
    assert f"another machine or version ({field} {value}, here " in why


@pytest.mark.parametrize("text", ["{}", "[]", '{"format": 1}', '{"format": 2, "read": 1}', "no JSON"])
def test_what_is_none_is_refused(text: str) -> None:
    calibration_file().parent.mkdir(parents=True)
    calibration_file().write_text(text)
    with pytest.raises(CorruptFileError, match=r"calibration\.json"):
        load_calibration()


def test_a_rate_of_nothing_is_refused() -> None:
    save_calibration(made(read=0.0))
    with pytest.raises(CorruptFileError, match="measure again with --calibrate"):
        load_calibration()


def test_other_work_is_said() -> None:
    assert made().warnings == ()
    assert "3.0" in made(load=3.0).warnings[0]
    assert "page cache" in made(disk_direct=False).warnings[0]


def test_measuring_gives_positive_rates(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    monkeypatch.setattr(floors_module, "READ_NBYTES", 8 * 2**20)
    monkeypatch.setattr(floors_module, "MATRIX_SIZE", 128)
    found = calibrate(quick=True)
    assert min(found.read, found.float32, found.bfloat16, found.disk_read, found.disk_write) > 1e5
    assert found.identity == this_identity()
    assert list(home.iterdir()) == []


def test_disk_of_known_speed(tmp_path: Path) -> None:
    """Each look at the clock is a tenth of a second after the last."""
    ticks = iter(range(10**6))
    speed = measure_disk(tmp_path, nbytes=16 * 2**20, seconds=60.0, clock=lambda: next(ticks) / 10)
    assert speed.nbytes == 16 * 2**20
    assert speed.read == pytest.approx(16 * 2**20 / 0.1)
    assert speed.direct == has_direct_reads(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_slow_disk_gets_a_smaller_file(tmp_path: Path) -> None:
    ticks = iter(range(10**6))
    assert measure_disk(tmp_path, nbytes=512 * 2**20, seconds=6.0, clock=lambda: next(ticks)).nbytes == 24 * 2**20


def test_a_disk_without_room_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FreeholdError, match=r"GB free; measuring its disk takes"):
        measure_disk(tmp_path, nbytes=2**60)


def test_a_directory_that_cannot_be_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(FreeholdError, match="set FREEHOLD_HOME to a directory of yours"):
        measure_disk(tmp_path / "file" / "below", nbytes=8)
