"""The vision weights of a GGUF file of their own are those of the release, in the release's order."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from freehold.core.errors import ConfigError, TensorMismatchError
from freehold.loading.checkpoint import open_checkpoint
from freehold.model.compute import ReferenceCompute
from freehold.model.minimax_m3_mmproj import in_halves, open_mmproj
from freehold.model.vision.config import VisionConfig
from freehold.model.vision.encoder import VisionEncoder
from freehold.model.vision.names import PARTS, sources
from freehold.model.weights import load_weights
from support.tiny_m3 import TinyM3Spec, write_tiny_m3, write_tiny_m3_gguf
from support.tiny_m3_mmproj import axis_by_axis, vision_keys, vision_tensors, write_mmproj

Arrays = dict[str, NDArray[np.float32]]
SPEC = TinyM3Spec("vision", (0, 1), (0, 1), num_experts=4)
TOKENS = {"image_token_index": 1, "video_token_index": 2}  # the text model's to say
HEAD_DIM = 16  # two frequencies for each axis, and four channels that do not turn


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Arrays]:
    """config.json and the vision weights of a tiny checkpoint."""
    directory = tmp_path_factory.mktemp("release")
    write_tiny_m3(SPEC, directory)
    with open_checkpoint(directory) as checkpoint:
        weights = {
            name: checkpoint.tensor(name).numpy().copy() for name in checkpoint.tensors if name.startswith(PARTS)
        }
    return json.loads((directory / "config.json").read_text()), weights


@pytest.fixture
def parts(release: tuple[dict[str, Any], Arrays]) -> tuple[dict[str, Any], Arrays]:
    """Metadata and tensors of the file, to be changed at will."""
    return vision_keys(release[0]), vision_tensors(release[1], HEAD_DIM)


def test_names_and_values_are_the_releases(
    tmp_path: Path, release: tuple[dict[str, Any], Arrays], parts: tuple[dict[str, Any], Arrays]
) -> None:
    mmproj = open_mmproj(write_mmproj(tmp_path / "mmproj.gguf", *parts))
    assert mmproj.tensors.keys() == release[1].keys()
    for name, array in release[1].items():
        assert mmproj.tensors[name].shape == array.shape
        assert torch.equal(mmproj.tensor(name), torch.from_numpy(array)), name


def test_configuration_is_the_releases(
    tmp_path: Path, release: tuple[dict[str, Any], Arrays], parts: tuple[dict[str, Any], Arrays]
) -> None:
    mmproj = open_mmproj(write_mmproj(tmp_path / "mmproj.gguf", *parts))
    known = VisionConfig.from_hf(release[0] | TOKENS, "config.json")
    known = replace(known, layer_norm_eps=float(np.float32(known.layer_norm_eps)))  # GGUF's numbers are float32
    assert VisionConfig.from_hf(mmproj.config | TOKENS, "mmproj") == known


def test_the_tower_loads_from_it(tmp_path: Path, parts: tuple[dict[str, Any], Arrays]) -> None:
    mmproj = open_mmproj(write_mmproj(tmp_path / "mmproj.gguf", *parts))
    encoder = VisionEncoder(VisionConfig.from_hf(mmproj.config | TOKENS, "mmproj"), ReferenceCompute())
    load_weights(mmproj, sources(encoder))
    assert torch.equal(encoder.projector.merge_2.weight.detach(), mmproj.tensor("patch_merge_mlp.linear_2.weight"))


def test_quantised_weights(tmp_path: Path, parts: tuple[dict[str, Any], Arrays]) -> None:
    """Rows change places after they are expanded."""
    keys, tensors = parts
    kind = gguf.GGMLQuantizationType.Q8_0
    mmproj = open_mmproj(write_mmproj(tmp_path / "mmproj.gguf", keys, tensors, kind))
    name = "vision_tower.vision_model.encoder.layers.0.self_attn.q_proj.weight"
    assert mmproj.tensors[name].dtype == "Q8_0"
    stored = gguf.dequantize(gguf.quantize(tensors["v.blk.0.attn_q.weight"], kind), kind)
    assert torch.equal(mmproj.tensor(name), in_halves(torch.from_numpy(stored), HEAD_DIM))


@pytest.mark.parametrize("head_dim", [80, 16, 12, 6])
def test_rows_are_put_back_into_halves(head_dim: int) -> None:
    """80 is the release's: 13 frequencies for each axis and two channels that do not turn."""
    rows = np.arange(3 * head_dim * 2, dtype=np.float32).reshape(3 * head_dim, 2)
    assert np.array_equal(in_halves(torch.from_numpy(axis_by_axis(rows, head_dim)), head_dim).numpy(), rows)
    assert np.array_equal(in_halves(torch.from_numpy(axis_by_axis(rows[:, 0], head_dim)), head_dim).numpy(), rows[:, 0])


def test_the_first_converters_name(tmp_path: Path, parts: tuple[dict[str, Any], Arrays]) -> None:
    keys, tensors = parts
    older = {name.replace("merger", "merge"): array for name, array in tensors.items()}
    assert "patch_merge_mlp.linear_1.bias" in open_mmproj(write_mmproj(tmp_path / "m.gguf", keys, older)).tensors
    with pytest.raises(TensorMismatchError, match=r"mm\.merge.*: is the same weight as mm\.merge"):
        open_mmproj(write_mmproj(tmp_path / "m.gguf", keys, tensors | older))


@pytest.mark.parametrize("frame", ["v.patch_embd.weight", "v.patch_embd.weight.1"])
def test_half_a_patch_embedding(tmp_path: Path, parts: tuple[dict[str, Any], Arrays], frame: str) -> None:
    keys, tensors = parts
    del tensors[frame]
    with pytest.raises(TensorMismatchError, match=f"(?s)missing.*{frame}"):
        open_mmproj(write_mmproj(tmp_path / "m.gguf", keys, tensors))


def test_halves_of_a_patch_embedding_that_differ(tmp_path: Path, parts: tuple[dict[str, Any], Arrays]) -> None:
    keys, tensors = parts
    tensors["v.patch_embd.weight.1"] = tensors["v.patch_embd.weight.1"][:16]
    with pytest.raises(TensorMismatchError, match=r"v\.patch_embd\.weight\.1: is \(16, .* must be \(32, "):
        open_mmproj(write_mmproj(tmp_path / "m.gguf", keys, tensors))


def test_tensors_of_no_tower_are_refused_when_it_loads(tmp_path: Path, parts: tuple[dict[str, Any], Arrays]) -> None:
    keys, tensors = parts
    tensors["v.blk.0.ls1.weight"] = np.ones(4, np.float32)
    mmproj = open_mmproj(write_mmproj(tmp_path / "m.gguf", keys, tensors))
    encoder = VisionEncoder(VisionConfig.from_hf(mmproj.config | TOKENS, "mmproj"), ReferenceCompute())
    with pytest.raises(TensorMismatchError, match=r"(?s)unexpected.*v\.blk\.0\.ls1\.weight"):
        load_weights(mmproj, sources(encoder))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"projector_type": "qwen2vl_merger"}, "projector_type is 'qwen2vl_merger'; only 'minimax_m3' is read"),
        ({"vision.image_mean": [0.5, 0.5, 0.5]}, "image_mean.* MiniMax-M3 has"),
        ({"vision.image_std": [0.5]}, "image_std.* list of 3 numbers"),
        ({"vision.projection_dim": None}, r"vision\.projection_dim.* is missing"),
        ({"vision.window_size": 4}, r"unknown keys \['vision.window_size'\]"),
        ({"use_gelu": False}, "'use_gelu' is False"),
    ],
)
def test_other_files_are_refused(
    tmp_path: Path, parts: tuple[dict[str, Any], Arrays], change: dict[str, Any], message: str
) -> None:
    keys = {key: value for key, value in (parts[0] | change).items() if value is not None}
    with pytest.raises(ConfigError, match=message):
        open_mmproj(write_mmproj(tmp_path / "m.gguf", keys, parts[1]))


def test_a_text_model_is_no_vision_part(tmp_path: Path) -> None:
    write_tiny_m3_gguf(SPEC, tmp_path / "text.gguf")
    with pytest.raises(ConfigError, match=r"is 'minimax-m3'; the vision part .* 'clip'"):
        open_mmproj(tmp_path / "text.gguf")
