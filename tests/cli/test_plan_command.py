"""`freehold plan`: tables for people, one object for programs, errors that name what is wrong."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.torch import load_file, save_file

import freehold
from freehold.cli.main import main
from freehold.core.errors import TensorMismatchError
from freehold.plan import calibration
from freehold.plan.calibration import Calibration, this_identity
from support import published_m3
from support.quantised_m3 import write_quantised_m3
from support.tiny_llama import LLAMAS, write_tiny_llama
from support.tiny_m3 import SHAPES, release_config, write_tiny_m3


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty FREEHOLD_HOME."""
    monkeypatch.setenv("FREEHOLD_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def m3(tmp_path: Path) -> str:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(published_m3.full_config()))
    return str(path)


@pytest.fixture
def tiny(tmp_path: Path) -> str:
    """The configuration of an M3 that is planned in no time."""
    path = tmp_path / "tiny.json"
    path.write_text(json.dumps(release_config(SHAPES["release_selection"])))
    return str(path)


def plan(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["plan", *arguments])


def plan_json(*arguments: str) -> dict[str, Any]:
    done = plan(*arguments, "--json")
    assert done.exit_code == 0, done.output
    (line,) = done.stdout.splitlines()
    return dict(json.loads(line))


def known() -> Calibration:
    return Calibration(this_identity(), "2026-01-01", 2, 4e10, 1e11, 2e11, 1e9, 1e9, disk_direct=True)


def test_tables_name_the_parameters_and_what_is_missing(m3: str) -> None:
    done = plan(m3, "--ram", "64GB", "--context", "131072", "--kv-dtype", "bfloat16")
    assert done.exit_code == 0, done.output
    for text in ("427,040,140,160", "144,953.25", "GB are missing", "Ways out:", "rates are unknown"):
        assert text in done.stdout


def test_one_object_with_sizes_in_bytes(m3: str) -> None:
    made = plan_json(m3, "--ram", "256GB", "--context", "8192", "--users", "2", "--weights", "int8")
    assert made["model"]["parameters"]["total"] == published_m3.PARAMETERS
    assert made["ram_bytes"] == 256 * 10**9
    assert made["rates"] is None
    assert [(way["context"], way["users"]) for way in made["ways"]] == [(8192, 2)] * 4
    assert made["verdicts"]


def test_rates_come_from_the_last_calibration(tiny: str) -> None:
    calibration.save_calibration(known())
    arguments = (tiny, "--ram", "1500GB", "--context", "8192")
    made, faster = plan_json(*arguments), plan_json(*arguments, "--disk-bandwidth", "5GB")
    assert made["rates"] == {"read": 4e10, "float32": 1e11, "bfloat16": 2e11, "disk": 1e9}
    assert faster["rates"]["disk"] == 5e9
    assert made["ways"][0]["decode_tokens_per_second"] > 0
    assert made["ways"][0]["decode_bound"] == "memory"


def test_calibrate_measures_and_keeps(tiny: str, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration, "calibrate", known)
    assert plan_json(tiny, "--calibrate")["calibration"]["read"] == 4e10
    assert plan_json(tiny)["calibration"]["read"] == 4e10
    assert [entry.name for entry in home.iterdir()] == ["calibration.json"]


def test_the_line_to_serve_is_one_that_serve_knows(tmp_path: Path) -> None:
    write_tiny_llama(LLAMAS["plain"], tmp_path / "llama")
    done = plan(str(tmp_path / "llama"))
    assert done.exit_code == 0, done.output
    line = " ".join(done.stdout.split()).partition("freehold serve ")[2]
    assert line.startswith(str(tmp_path / "llama"))
    serve = CliRunner().invoke(main, ["serve", *line.split(), "--help"])
    assert serve.exit_code == 0, serve.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nobody"], "no model 'nobody'"),
        (["CONFIG", "--context", "9000"], "context is 9000; the model was made for 8192"),
        (["CONFIG", "--users", "9" * 400], "it must be at most"),
        (["CONFIG", "--context", "9" * 400], "it must be at most"),
    ],
)
def test_errors_name_the_thing_and_its_value(tiny: str, arguments: list[str], message: str) -> None:
    done = plan(*(tiny if word == "CONFIG" else word for word in arguments))
    assert done.exit_code == 1
    assert message in done.stderr


@pytest.mark.parametrize("option", ["--ram", "--disk-bandwidth"])
def test_sizes_beyond_any_machine_are_usage_errors(tiny: str, option: str) -> None:
    done = plan(tiny, option, "9" * 400 + "TB")
    assert done.exit_code == 2
    assert "is larger than any memory or disk" in done.stderr


def test_a_matrix_without_elements_takes_no_memory(tmp_path: Path) -> None:
    """Loading refuses it by name; planning says what the files hold."""
    write_tiny_llama(LLAMAS["plain"], tmp_path / "llama")
    tensors = load_file(file := tmp_path / "llama" / "model.safetensors")
    name = "model.layers.0.self_attn.q_proj.weight"
    whole = plan_json(str(tmp_path / "llama"))["weights"]["memory_bytes"]
    save_file({**tensors, name: tensors[name][:0].clone()}, file)
    assert plan_json(str(tmp_path / "llama"))["weights"]["memory_bytes"]["attention"] < whole["attention"]


def test_unknown_configurations_are_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"model_type": "mamba"}))
    done = plan(str(path))
    assert done.exit_code == 1
    assert "model type 'mamba' is not supported" in done.stderr


def spoil(directory: Path, spoiled: str) -> tuple[str, str]:
    """Makes a checkpoint one that does not load; what is said about it."""
    file = directory / "model.safetensors"
    tensors = load_file(file)
    name = next(name for name in reversed(tensors) if name.endswith("self_attn.o_proj.weight"))
    if spoiled == "vision":
        name = next(name for name in tensors if name.startswith("vision_tower.") and "out_proj.weight" in name)
    if spoiled == "shape":
        tensors[name] = tensors[name][:-1].contiguous()
    elif spoiled == "type":
        tensors[name] = tensors[name].to(torch.int32)
    elif spoiled == "wide":
        tensors[name] = tensors[name].double()
    elif spoiled == "more":
        tensors[name.replace("o_proj", "x_proj")] = tensors[name].clone()
    else:
        del tensors[name]
    save_file(tensors, file)
    titles = {"shape": "wrong shape (1)", "type": "wrong type (1)", "wide": "wrong type (1)", "more": "unexpected (1)"}
    return titles.get(spoiled, "missing (1)"), name.replace("o_proj", "x_proj") if spoiled == "more" else name


@pytest.mark.parametrize("spoiled", ["missing", "shape", "type", "wide", "more", "vision"])
@pytest.mark.parametrize("family", ["llama", "m3"])
def test_a_checkpoint_that_does_not_load(tmp_path: Path, family: str, spoiled: str) -> None:
    """Whatever loading says about names, shapes and types, the plan says before."""
    path = tmp_path / "model"
    if family == "llama":
        write_tiny_llama(LLAMAS["plain"], path)
        spoiled = "missing" if spoiled == "vision" else spoiled
    else:
        write_tiny_m3(SHAPES["release_selection"], path)
    assert plan_json(str(path))["model"]["refusals"] == []
    title, name = spoil(path, spoiled)
    with pytest.raises(TensorMismatchError) as caught:
        freehold.LLM(path)
    made = plan_json(str(path))
    assert made["model"]["refusals"] == [str(caught.value)]
    assert not any(way["runs_in_this_version"] for way in made["ways"])
    said = plan(str(path))
    assert said.exit_code == 0, said.output
    text = " ".join(said.output.split())
    assert "does not load, because" in text
    assert title in text
    assert name in text
    assert "to serve" not in text
    assert not [line for line in said.output.splitlines() if line.endswith("yes │")]


def test_the_commands_are_those_that_a_shell_takes(tmp_path: Path) -> None:
    path = tmp_path / "my model's (copy)"
    write_tiny_llama(LLAMAS["plain"], path)
    (line,) = (line for line in plan(str(path)).output.splitlines() if "freehold serve" in line)
    words = shlex.split(line.partition(": ")[2])
    assert words[:4] == ["freehold", "serve", str(path), "--context-length"]
    assert words[-2:] == ["--activations", "float32"]
    (line,) = (line for line in plan(str(path), "--weights", "int4").output.splitlines() if "--bits 4" in line)
    assert shlex.split(line.rpartition(": ")[2]) == ["freehold", "quantize", str(path), "OUT", "--bits", "4"]


@pytest.mark.parametrize("text", ['{"a":', "[]", "{}"])
def test_a_damaged_calibration_is_refused_with_the_way_out(tiny: str, home: Path, text: str) -> None:
    home.mkdir()
    (home / "calibration.json").write_text(text)
    done = plan(tiny)
    assert done.exit_code == 1
    assert done.output.startswith(f"error: {home / 'calibration.json'}: ")
    assert done.output.rstrip().endswith("; measure again with --calibrate")


def test_a_part_that_is_not_there_is_named(tmp_path: Path) -> None:
    write_tiny_llama(LLAMAS["plain"], tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    parts = dict.fromkeys(tensors, "model-00001-of-00002.safetensors")
    parts["model.norm.weight"] = "model-00002-of-00002.safetensors"
    del tensors["model.norm.weight"]
    (tmp_path / "model.safetensors").unlink()
    save_file(tensors, tmp_path / "model-00001-of-00002.safetensors")
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": parts}))
    done = plan(str(tmp_path))
    assert done.exit_code == 1
    assert "1 of the 2 files that model.safetensors.index.json names are missing" in done.output
    assert "model-00002-of-00002.safetensors" in done.output


def test_scales_that_do_not_fit_their_weights(tmp_path: Path) -> None:
    path = write_quantised_m3(SHAPES["release_selection"], tmp_path, "MXFP8") / "packed"
    assert plan_json(str(path))["model"]["refusals"] == []
    tensors = load_file(path / "model.safetensors")
    name = next(name for name in tensors if name.endswith("_scale_inv"))
    tensors[name] = tensors[name][:-1].contiguous()
    save_file(tensors, path / "model.safetensors")
    (refusal,) = plan_json(str(path))["model"]["refusals"]
    assert name.removesuffix("_scale_inv") in refusal
