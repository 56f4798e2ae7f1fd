"""Conversions and trainings write over nobody's files, refuse at once what cannot end well, and know their own work."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import random
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.torch import load_file, save_file

from freehold.cli.main import main
from freehold.core.errors import ArgumentError, CorruptFileError, FreeholdError
from freehold.loading.checkpoint import open_checkpoint
from freehold.training import pretrain, whole_file
from freehold.training.convert import ConvertSettings, convert, remove_work
from freehold.training.corpus import documents_in
from freehold.training.distil import DistilSettings
from freehold.training.m3_weights import first_weights
from freehold.training.places import alone_in
from freehold.training.pretrain import PretrainSettings, Trainer
from freehold.training.retrieval_rows import RetrievalRows
from freehold.training.shapes import RETRIEVAL, RETRIEVAL_WORDS
from support.tiny_llama import TinyLlamaSpec, write_tiny_llama

SHAPE = ["--windows", "2", "--window-tokens", "256", "--block-tokens", "16", "--topk", "4", "--queries", "16"]
QUICK = [*SHAPE, "--steps", "3", "--keep-dense", "0"]
TRAIN = ["--retrieval", "--row-tokens", "96", "--rows", "2", "--dense-steps", "1", "--steps", "2"]
SETTINGS = ConvertSettings(
    windows=2, window_tokens=256, block_tokens=16, topk=4, keep_dense=(0,), distil=DistilSettings(steps=3, queries=16)
)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("base")
    write_tiny_llama(TinyLlamaSpec("placed", num_layers=2, seed=51), path)
    return path


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("texts")
    rng = random.Random(1)
    for i in range(12):
        (path / f"d{i}.txt").write_text("".join(rng.choice("abcdefghij klm.\n") for _ in range(2500)))
    return path


def said(result: Result) -> str:
    assert result.exit_code == 1, result.output
    assert result.stderr.splitlines()[-1].startswith("error: ")
    return result.stderr


def converted(base: Path, out: Path, texts: Path, *options: str) -> Result:
    return CliRunner().invoke(main, ["convert", str(base), str(out), "--text", str(texts), *QUICK, *options])


def trained(out: Path, *options: str) -> Result:
    return CliRunner().invoke(main, ["train", str(out), *TRAIN, *options])


def contents(directory: Path) -> dict[str, str]:
    files = (path for path in sorted(directory.rglob("*")) if path.is_file())
    return {str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_nothing_writes_over_a_model(base: Path, texts: Path, tmp_path: Path) -> None:
    model = shutil.copytree(base, tmp_path / "model")
    before = contents(model)
    assert "which this command did not write" in said(converted(model, model, texts))
    assert "which this command did not write" in said(trained(model))
    assert contents(model) == before
    (tmp_path / "file").write_text("mine")
    assert "is no directory" in said(converted(base, tmp_path / "file", texts))
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    assert "is no directory" in said(converted(base, tmp_path / "link", texts))


def test_work_is_not_done_among_other_files(base: Path, texts: Path, tmp_path: Path) -> None:
    for name in ("out.work", "given"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "losses.jsonl").write_text("mine\n" * 9)
    for result in (
        converted(base, tmp_path / "out", texts),
        converted(base, tmp_path / "other", texts, "--work", str(tmp_path / "given")),
        trained(tmp_path / "out"),
        trained(tmp_path / "other", "--work", str(tmp_path / "given")),
    ):
        assert "holds 'losses.jsonl' and no" in said(result)
    for name in ("out.work", "given"):
        assert {p.name: p.read_text() for p in (tmp_path / name).iterdir()} == {"losses.jsonl": "mine\n" * 9}
    for result in (converted(base, tmp_path / "one", texts, "--work", str(tmp_path / "one")), trained(Path("/"))):
        assert "error: " in said(result)
    assert not (tmp_path / "one").exists()


def test_the_same_conversion_comes_out_again_and_another_does_not(base: Path, texts: Path, tmp_path: Path) -> None:
    out, texts = tmp_path / "out", shutil.copytree(texts, tmp_path / "texts")
    assert converted(base, out, texts).exit_code == 0
    made = contents(out)
    assert converted(base, out, texts).exit_code == 0
    assert contents(out) == made
    assert "which this command did not write" in said(converted(base, out, texts, "--seed", "1"))
    assert "which this command did not write" in said(converted(base, out, texts, "--keep-dense", "1"))
    assert contents(out) == made
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "texts"]
    for name in ("model.safetensors", "losses.jsonl"):  # as a process that was killed leaves it
        (out / name).unlink()
    assert converted(base, out, texts).exit_code == 0
    assert contents(out) == made
    for path in texts.iterdir():
        path.write_text(path.read_text()[::-1])
    assert "which this command did not write" in said(converted(base, out, texts))
    assert contents(out) == made


def test_the_same_training_comes_out_again_and_another_does_not(tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert trained(out).exit_code == 0
    made = contents(out)
    assert trained(out, "--work", str(tmp_path / "again")).exit_code == 0
    assert contents(out) == made
    assert "did not write" in said(trained(out, "--work", str(tmp_path / "other"), "--seed", "1"))
    assert contents(out) == made
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        (out / name).unlink()
    assert trained(out).exit_code == 0
    assert contents(out) == made


def test_a_directory_with_no_name_has_one(base: Path, texts: Path, tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert converted(base, Path("."), texts).exit_code == 0
    assert (tmp_path / "here" / "config.json").exists()


def test_one_process_at_a_time(base: Path, texts: Path, tmp_path: Path) -> None:
    with alone_in(tmp_path / "out.work"):
        assert "another process works here" in said(converted(base, tmp_path / "out", texts))
        assert "another process works here" in said(trained(tmp_path / "out"))
    assert list(tmp_path.iterdir()) == []
    assert converted(base, tmp_path / "out", texts).exit_code == 0


def run(base: Path, texts: Path, tmp_path: Path, settings: ConvertSettings = SETTINGS, **options) -> dict[str, str]:
    with open_checkpoint(base) as checkpoint:
        convert(
            checkpoint,
            tmp_path / "out",
            documents_in([texts]),
            settings,
            work=tmp_path / "work",
            origin="made",
            **options,
        )
    return contents(tmp_path / "out")


def test_a_removal_that_was_interrupted_harms_nothing(base: Path, texts: Path, tmp_path: Path, monkeypatch) -> None:
    made = run(base, texts, tmp_path)
    (tmp_path / "work" / "mine.txt").write_text("mine")
    unlink, left = Path.unlink, [0]

    def interrupted(self: Path, missing_ok: bool = False) -> None:
        left[0] -= 1
        if left[0] == 0:
            raise KeyboardInterrupt
        unlink(self, missing_ok)

    monkeypatch.setattr(Path, "unlink", interrupted)
    for count in range(2, 8):
        left[0] = count
        with pytest.raises(KeyboardInterrupt):
            remove_work(tmp_path / "work")
        left[0] = -1
        assert run(base, texts, tmp_path) == made, count
    remove_work(tmp_path / "work")
    assert [path.name for path in (tmp_path / "work").iterdir()] == ["mine.txt"]


def test_a_capture_that_is_gone_is_made_again(base: Path, texts: Path, tmp_path: Path) -> None:
    made = run(base, texts, tmp_path)
    for path in (tmp_path / "work").glob("layer-*"):
        path.unlink()
    (tmp_path / "work" / "captured").unlink()
    os.truncate(tmp_path / "work" / "judged", 100)
    assert run(base, texts, tmp_path) == made
    (tmp_path / "work" / "captured.json").write_text("{")
    assert run(base, texts, tmp_path) == made


def test_a_killed_process_does_not_disown_its_work(base: Path, texts: Path, tmp_path: Path, monkeypatch) -> None:
    def killed(*_args: object) -> None:
        raise KeyboardInterrupt

    for whole in (False, True):
        if whole:
            run(base, texts, tmp_path)
        with monkeypatch.context() as patched:
            patched.setattr(whole_file.os, "replace", killed)
            with pytest.raises(KeyboardInterrupt):
                run(base, texts, tmp_path)
    run(base, texts, tmp_path)


def test_a_damaged_state_is_named(base: Path, texts: Path, tmp_path: Path) -> None:
    made = run(base, texts, tmp_path)
    state = tmp_path / "work" / "layer-1.safetensors"
    os.truncate(state, 300)
    with pytest.raises(CorruptFileError, match=r"layer-1.safetensors: is damaged .* remove it"):
        run(base, texts, tmp_path)
    whole_file.save_state({"q": torch.zeros(3)}, state)
    with pytest.raises(CorruptFileError, match="its losses are missing"):
        run(base, texts, tmp_path)
    state.unlink()
    assert run(base, texts, tmp_path) == made


def test_a_directory_in_the_place_of_a_file_is_named(base: Path, texts: Path, tmp_path: Path) -> None:
    made = run(base, texts, tmp_path)
    work = tmp_path / "work"
    for name, said in (
        ("layer-0.safetensors", "cannot be read .* remove it"),
        ("captured", "cannot be written .* remove it"),
    ):
        (work / name).unlink()
        (work / name).mkdir()
        with pytest.raises(FreeholdError, match=rf"{name}: {said}"):
            run(base, texts, tmp_path)
        (work / name).rmdir()
    assert run(base, texts, tmp_path) == made


def test_a_number_of_windows_that_is_none_is_captured_again(base: Path, texts: Path, tmp_path: Path) -> None:
    made = run(base, texts, tmp_path)
    state = tmp_path / "work" / "captured.json"
    told = json.loads(state.read_text())
    for sums in ([math.inf], 7, [[]], told["crc32"][:1] * 2):
        state.write_text(json.dumps({**told, "crc32": sums}))
        assert run(base, texts, tmp_path) == made
        assert json.loads(state.read_text()) == told
    state.write_text(json.dumps({**told, "crc32": told["crc32"] * 9}))
    assert run(base, texts, tmp_path) == made


@pytest.mark.parametrize("name", ["captured", "judged"])
def test_what_the_disk_changed_is_captured_again(base: Path, texts: Path, tmp_path: Path, name: str) -> None:
    run(base, texts, tmp_path)
    whole = contents(tmp_path)
    file = tmp_path / "work" / name
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    run(base, texts, tmp_path)
    assert contents(tmp_path) == whole


def test_a_state_that_the_disk_changed_is_refused(base: Path, texts: Path, tmp_path: Path) -> None:
    run(base, texts, tmp_path)
    state, other = (tmp_path / "work" / f"layer-{number}.safetensors" for number in (0, 1))
    whole = state.read_bytes()
    state.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(CorruptFileError, match=r"layer-0.safetensors: is damaged \(its checksum is another"):
        run(base, texts, tmp_path)
    whole_file.save_whole(whole_file.load_state(other), state)
    with pytest.raises(CorruptFileError, match="its checksum is another, or missing"):
        run(base, texts, tmp_path)


def test_a_full_disk_is_said_before_the_work(base: Path, texts: Path, tmp_path: Path, monkeypatch) -> None:
    def full(*_args: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(os, "posix_fallocate", full)
        with pytest.raises(ArgumentError, match="bytes, for which there is no room"):
            run(base, texts, tmp_path)
    assert not (tmp_path / "work" / "captured").exists()
    run(base, texts, tmp_path)

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(FreeholdError, match=r"cannot be written \(No space left on device\)"):
        whole_file.save_whole({}, tmp_path / "x")
    with pytest.raises(FreeholdError, match=r"x.json: cannot be written \(No space left on device\)"):
        whole_file.write_whole("{}", tmp_path / "x.json")
    assert not list(tmp_path.glob("x*"))


def test_what_is_written_is_known_by_its_name_until_it_is_whole_and_everybody_may_read_it(
    tmp_path: Path, monkeypatch
) -> None:
    tensors = {
        "b": torch.randn(3, 5), "a": torch.randn(7), "steps": torch.tensor(5), "none": torch.zeros(0, 3),
        "half": torch.randn(3, 3).bfloat16(), "losses": torch.randn(4, dtype=torch.float64),
        "turned": torch.randn(2, 3).T,
    }  # fmt: skip
    with monkeypatch.context() as killed:
        killed.setattr(os, "replace", lambda *_names: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            whole_file.save_whole(tensors, tmp_path / "x")
    assert [path.name for path in tmp_path.iterdir()] == ["x.new"]
    whole_file.save_whole(tensors, tmp_path / "x", metadata={"format": "pt"})
    assert [path.name for path in tmp_path.iterdir()] == ["x"]
    (tmp_path / "plain").touch()
    assert (tmp_path / "x").stat().st_mode == (tmp_path / "plain").stat().st_mode
    found = load_file(tmp_path / "x")
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--keep-dense", "0,7"], "keep_dense names layer 7; the model has layers 0 to 1"),
        (["--keep-dense", "-1"], "keep_dense names layer -1"),
        (["--keep-dense", "1,0"], "nothing is left to be sparse"),
        (["--learning-rate", "inf"], "learning_rate is inf"),
        (["--learning-rate", "nan"], "learning_rate is nan"),
        (["--seed", str(2**64)], "seed is 18446744073709551616; it must be from"),
        (["--topk", "16"], "nothing would be left out"),
        (["--window-tokens", "4096"], "window_tokens is 4096; the model's context has 2048"),
        (["--window-tokens", "2048", "--topk", "5", "--text", "TEXT"], "held out to judge have no window of 2048"),
    ],
)
def test_what_cannot_end_well_is_refused_at_once(base: Path, texts: Path, tmp_path: Path, options, message) -> None:
    (tmp_path / "one.txt").write_text("word " * 600)
    given = [str(tmp_path / "one.txt") if option == "TEXT" else option for option in options]
    result = converted(base, tmp_path / "out", tmp_path / "one.txt" if given != options else texts, *given)
    assert message in said(result)
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "out.work").exists()


def test_all_layers_dense_is_refused_before_the_work(base: Path, texts: Path, tmp_path: Path) -> None:
    options = ["--text", str(texts), *SHAPE, "--dense-layers", "2"]
    result = CliRunner().invoke(main, ["convert", str(base), str(tmp_path / "out"), *options])
    assert "nothing is left to be sparse" in said(result)
    assert "windows" not in result.stderr


def test_what_learns_no_numbers_ends(base: Path, texts: Path, tmp_path: Path, monkeypatch) -> None:
    broken = shutil.copytree(base, tmp_path / "broken")
    weights = load_file(broken / "model.safetensors")
    weights["model.layers.1.self_attn.q_proj.weight"][0] = torch.nan
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    assert "costs nan nats a token, densely" in said(converted(broken, tmp_path / "out", texts))
    assert list((tmp_path / "out").iterdir()) == []

    def first(*given: object) -> dict[str, torch.Tensor]:
        found = first_weights(*given)  # type: ignore[arg-type]
        found["model.layers.1.self_attn.q_proj.weight"][0] = torch.nan
        return found

    monkeypatch.setattr(pretrain, "first_weights", first)
    result = trained(tmp_path / "model", "--save-every", "1", "--json")
    assert "begin again with a lower learning_rate than 0.003" in said(result)
    assert not (tmp_path / "model").exists()
    assert not (tmp_path / "model.work" / "state.safetensors").exists()
    assert "learning_rate is 1e+38" in said(trained(tmp_path / "model", "--learning-rate", "1e38"))


def test_a_training_that_cannot_go_on_says_why(tmp_path: Path) -> None:
    config = replace(RETRIEVAL, hidden_size=32, num_q_heads=2, num_kv_heads=1, num_index_heads=1, topk=3)
    settings = PretrainSettings(steps=2, rows=1, dense_steps=1)

    def go_on() -> Trainer:
        return Trainer(config, RetrievalRows(RETRIEVAL_WORDS, 96, seed=0), settings, tmp_path)

    go_on().run()
    log, state = tmp_path / "losses.jsonl", tmp_path / "state.safetensors"
    lines = log.read_bytes()
    log.write_bytes(lines[: lines.index(b"\n") + 1])
    with pytest.raises(CorruptFileError, match="fewer lines than the 2 steps"):
        go_on()
    log.write_bytes(lines + b'{"step": 3, "lan')
    assert go_on().step == 2
    assert log.read_bytes() == lines
    whole = state.read_bytes()
    state.write_bytes(whole[:1000])
    with pytest.raises(CorruptFileError, match="is damaged"):
        go_on()
    whole_file.save_state({"steps": torch.tensor(2)}, state)
    with pytest.raises(CorruptFileError, match="is missing, or of another shape"):
        go_on()
    with pytest.raises(ArgumentError, match="seed is"):
        replace(settings, seed=2**64)


def test_a_shape_that_is_no_object_is_refused(tmp_path: Path) -> None:
    (tmp_path / "c.json").write_text("[]")
    assert "must be a JSON object" in said(trained(tmp_path / "out", "--config", str(tmp_path / "c.json")))
    (tmp_path / "file").write_text("")
    assert "Not a directory" in said(trained(tmp_path / "file" / "x"))


def test_names_that_are_no_text_are_names(texts: Path, tmp_path: Path) -> None:
    odd = os.fsencode(tmp_path) + b"/n\xff.txt"
    with open(odd, "wb") as file:
        file.write((texts / "d0.txt").read_bytes())
    (document,) = documents_in([tmp_path])
    assert document.held_out in (True, False)
