"""Quantised matrices in safetensors: found by their names, read without a copy, refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from freehold.core.errors import ConfigError, CorruptFileError, LoadError, TensorMismatchError
from freehold.loading.checkpoint import Checkpoint, TensorInfo, open_checkpoint
from freehold.loading.quantized import ScaledTensor
from support.checkpoints_memory import mapped_file
from support.scaled_matrices import fp8_values, mxfp8_values, nvfp4_values

F8 = torch.float8_e4m3fn
MXFP8: dict[str, Any] = {
    "quant_method": "mxfp8",
    "activation_scheme": "dynamic",
    "weight_block_size": [1, 32],
    "ignored_layers": ["lm_head", "layers.0.gate"],
}
NVFP4: dict[str, Any] = {"quant_method": "modelopt", "quant_algo": "NVFP4", "group_size": 16, "ignore": ["lm_head"]}
Tensors = dict[str, torch.Tensor]


def codes(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8))


def mxfp8(name: str = "a", suffix: str = "weight_scale_inv") -> Tensors:
    return {f"{name}.weight": codes(5, 96).view(F8), f"{name}.{suffix}": codes(5, 3, seed=1)}


def nvfp4(name: str = "a") -> Tensors:
    return {
        f"{name}.weight": codes(5, 24),
        f"{name}.weight_scale": codes(5, 3, seed=1).view(F8),
        f"{name}.weight_scale_2": torch.tensor(0.37),
        f"{name}.input_scale": torch.tensor(1.0),
    }


def write(directory: Path, tensors: Tensors, quantization: Any, **config: Any) -> Path:
    directory.mkdir(exist_ok=True)
    save_file(tensors, directory / "model.safetensors")
    (directory / "config.json").write_text(json.dumps({"quantization_config": quantization, **config}))
    return directory


def equal(read: torch.Tensor, expected: np.ndarray[Any, Any]) -> bool:
    return read.dtype == torch.float32 and np.array_equal(read.numpy(), expected, equal_nan=True)


@pytest.mark.parametrize("suffix", ["weight_scale_inv", "weight_scale"])
def test_mxfp8(tmp_path: Path, suffix: str) -> None:
    tensors = mxfp8(suffix=suffix) | {"norm.weight": torch.ones(96)}
    with open_checkpoint(write(tmp_path, tensors, MXFP8)) as checkpoint:
        assert dict(checkpoint.tensors) == {
            "a.weight": TensorInfo((5, 96), "MXFP8"),
            "norm.weight": TensorInfo((96,), "F32"),
        }
        expected = mxfp8_values(codes(5, 96).numpy(), codes(5, 3, seed=1).numpy())
        assert equal(checkpoint.tensor("a.weight"), expected)
        assert checkpoint.quantized("norm.weight") is None


@pytest.mark.skipif(not hasattr(torch, "float8_e8m0fnu"), reason="this torch has no such type to write")
def test_exponents_may_be_typed(tmp_path: Path) -> None:
    tensors = mxfp8()
    tensors["a.weight_scale_inv"] = tensors["a.weight_scale_inv"].view(torch.float8_e8m0fnu)
    with open_checkpoint(write(tmp_path, tensors, MXFP8)) as checkpoint:
        expected = mxfp8_values(codes(5, 96).numpy(), codes(5, 3, seed=1).numpy())
        assert equal(checkpoint.tensor("a.weight"), expected)


def test_nvfp4(tmp_path: Path) -> None:
    with open_checkpoint(write(tmp_path, nvfp4(), NVFP4)) as checkpoint:
        assert dict(checkpoint.tensors) == {"a.weight": TensorInfo((5, 48), "NVFP4")}
        scale = float(np.float32(0.37))
        expected = nvfp4_values(codes(5, 24).numpy(), codes(5, 3, seed=1).numpy(), scale)
        assert equal(checkpoint.tensor("a.weight"), expected)


@pytest.mark.parametrize("block", [[2, 40], [128, 128], None], ids=str)
def test_fp8(tmp_path: Path, block: list[int] | None) -> None:
    rows, columns = block or (5, 96)
    grid = (-(-5 // rows), -(-96 // columns))
    scales = torch.rand(grid, generator=torch.Generator().manual_seed(0))
    stored = scales if block else scales.view(())
    tensors = {"a.weight": codes(5, 96).view(F8), "a.weight_scale_inv": stored}
    with open_checkpoint(write(tmp_path, tensors, {"quant_method": "fp8", "weight_block_size": block})) as checkpoint:
        assert checkpoint.tensors["a.weight"] == TensorInfo((5, 96), "FP8")
        assert equal(checkpoint.tensor("a.weight"), fp8_values(codes(5, 96).numpy(), scales.numpy(), rows, columns))


@pytest.mark.parametrize("block", [[2**62, 2**62], [1, 10**30], [10**30, 1]])
def test_a_block_that_is_larger_than_the_matrix_ends_with_it(tmp_path: Path, block: list[int]) -> None:
    """A scale is not repeated beyond the matrix, which would fill the memory."""
    stored, scales = codes(7, 10), torch.rand(7 if block[0] == 1 else 1, 10 if block[1] == 1 else 1) + 0.5
    quantization = {"quant_method": "fp8", "weight_block_size": block}
    path = write(tmp_path, {"a.weight": stored.view(F8), "a.weight_scale_inv": scales}, quantization)
    with open_checkpoint(path) as checkpoint:
        assert equal(checkpoint.tensor("a.weight"), fp8_values(stored.numpy(), scales.expand(7, 10).numpy(), 1, 1))


def test_mixed_precision_says_it_layer_by_layer(tmp_path: Path) -> None:
    """Experts in NVFP4, named by the module above them; the rest in MXFP8, and what is not named in floats."""
    quantization = {
        "quant_method": "modelopt",
        "quant_algo": "MIXED_PRECISION",
        "kv_cache_quant_algo": None,
        "exclude_modules": ["lm_head"],
        "quantized_layers": {
            "layers.3.experts": {"quant_algo": "NVFP4", "group_size": 16},
            "layers.3.q_proj": {"quant_algo": "MXFP8"},
        },
    }
    tensors = nvfp4("layers.3.experts.0.w1") | mxfp8("layers.3.q_proj", "weight_scale")
    tensors["lm_head.weight"] = torch.ones(2, 2)
    with open_checkpoint(write(tmp_path, tensors, quantization)) as checkpoint:
        kinds = {name: info.dtype for name, info in checkpoint.tensors.items()}
    assert kinds == {
        "layers.3.experts.0.w1.weight": "NVFP4",
        "layers.3.q_proj.weight": "MXFP8",
        "lm_head.weight": "F32",
    }


def test_the_configuration_may_stand_elsewhere(tmp_path: Path) -> None:
    """In text_config, or in ModelOpt's own file."""
    (tmp_path / "model").mkdir()
    write(tmp_path / "model", mxfp8(), None, text_config={"quantization_config": MXFP8})
    with open_checkpoint(tmp_path / "model") as checkpoint:
        assert checkpoint.tensors["a.weight"].dtype == "MXFP8"
    write(tmp_path / "model", nvfp4(), None)
    beside = {"producer": {"name": "modelopt"}, "quantization": {"quant_algo": "NVFP4", "exclude_modules": []}}
    (tmp_path / "model" / "hf_quant_config.json").write_text(json.dumps(beside))
    with open_checkpoint(tmp_path / "model") as checkpoint:
        assert checkpoint.tensors["a.weight"].dtype == "NVFP4"


def test_packed_parts_are_views_of_the_file(tmp_path: Path) -> None:
    with open_checkpoint(write(tmp_path, nvfp4(), NVFP4)) as checkpoint:
        packed = checkpoint.quantized("a.weight")
        assert isinstance(packed, ScaledTensor)
        assert (packed.kind, packed.shape, packed.block) == ("NVFP4", (5, 48), (1, 16))
        assert torch.equal(packed.data, codes(5, 24))
        assert torch.equal(packed.scales.view(torch.uint8), codes(5, 3, seed=1))
        assert packed.tensor_scale == float(np.float32(0.37))
        assert mapped_file(packed.data) == mapped_file(packed.scales) == tmp_path / "model.safetensors"


def test_raw_shows_what_the_files_hold(tmp_path: Path) -> None:
    with open_checkpoint(write(tmp_path, mxfp8(), {"quant_method": "unheard of"}), raw=True) as checkpoint:
        assert {name: info.dtype for name, info in checkpoint.tensors.items()} == {
            "a.weight": "F8_E4M3",
            "a.weight_scale_inv": "U8",
        }


def test_digest_covers_scales(tmp_path: Path) -> None:
    one, other = mxfp8(), mxfp8()
    other["a.weight_scale_inv"] = other["a.weight_scale_inv"] ^ 1
    digests = [open_checkpoint(write(tmp_path / n, t, MXFP8)).digest() for n, t in (("a", one), ("b", other))]
    assert digests[0] != digests[1]


def test_weights_stored_as_floats_stay_floats(tmp_path: Path) -> None:
    """Norms are on no list of ignored layers."""
    with open_checkpoint(write(tmp_path, {"a.weight": torch.ones(2, 32)}, MXFP8)) as checkpoint:
        assert checkpoint.tensors["a.weight"].dtype == "F32"


def without(tensors: Tensors, name: str) -> Tensors:
    return {key: value for key, value in tensors.items() if key != name}


BROKEN = {
    "no scale": (without(mxfp8(), "a.weight_scale_inv"), MXFP8, "missing.*a.weight_scale_inv or a.weight_scale"),
    "no second scale": (without(nvfp4(), "a.weight_scale_2"), NVFP4, "missing.*a.weight_scale_2"),
    "no weight": (without(mxfp8(), "a.weight"), MXFP8, r"missing.*a.weight \(its weight_scale_inv is there\)"),
    "float exponents": (
        mxfp8() | {"a.weight_scale_inv": torch.ones(5, 3)}, MXFP8,
        "wrong type.*a.weight_scale_inv: is F32, must be U8 or F8_E8M0",
    ),
    "byte scales": (
        nvfp4() | {"a.weight_scale": codes(5, 3)}, NVFP4, "wrong type.*a.weight_scale: is U8, must be F8_E4M3",
    ),
    "half second scale": (
        nvfp4() | {"a.weight_scale_2": torch.tensor(1.0).half()}, NVFP4,
        "wrong type.*a.weight_scale_2: is F16, must be F32",
    ),
    "too few scales": (
        mxfp8() | {"a.weight_scale_inv": codes(5, 2)}, MXFP8,
        r"wrong shape.*a.weight_scale_inv: is \(5, 2\), must be \(5, 3\)",
    ),
    "two scales": (
        mxfp8() | {"a.weight_scale": codes(5, 3)}, MXFP8, "has both a weight_scale_inv and a weight_scale",
    ),
    "vector": (
        {"a.weight": codes(32).view(F8), "a.weight_scale_inv": codes(1)}, MXFP8,
        r"a.weight: is \(32,\); a quantised weight must be a matrix",
    ),
    "bytes for MXFP8": (nvfp4(), MXFP8, "a.weight: is U8, which is not how MXFP8 is stored"),
    "FP8 for NVFP4": (mxfp8(), NVFP4, "a.weight: is F8_E4M3, which is not how NVFP4 is stored"),
    "ignored": (mxfp8("layers.0.gate"), MXFP8, "layers.0.gate.weight: is F8_E4M3, but quantization_config does not"),
    "floats with scales": (
        mxfp8() | {"a.weight": torch.ones(5, 96)}, MXFP8, "a.weight: is F32, but has a weight_scale_inv",
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", BROKEN)
def test_tensors_that_do_not_fit_are_named(tmp_path: Path, fault: str) -> None:
    tensors, quantization, message = BROKEN[fault]
    with pytest.raises(TensorMismatchError, match=f"(?s){message}"):
        open_checkpoint(write(tmp_path, tensors, quantization))


def test_all_faults_are_named_at_once(tmp_path: Path) -> None:
    tensors = without(mxfp8("a"), "a.weight_scale_inv") | without(mxfp8("b"), "b.weight_scale_inv")
    with pytest.raises(TensorMismatchError) as raised:
        open_checkpoint(write(tmp_path, tensors, MXFP8))
    assert len(raised.value.missing) == 2


def shards(directory: Path) -> Checkpoint:
    """Codes in one file, scales in another."""
    tensors = mxfp8()
    write(directory, {}, MXFP8)
    (directory / "model.safetensors").unlink()
    places = {"a.weight": "one.safetensors", "a.weight_scale_inv": "two.safetensors"}
    for name, file in places.items():
        if not (directory / file).exists():
            save_file({name: tensors[name]}, directory / file)
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    return open_checkpoint(directory)


def test_scales_may_be_in_another_shard(tmp_path: Path) -> None:
    with shards(tmp_path) as checkpoint:
        assert checkpoint.tensor("a.weight").shape == (5, 96)


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    shards(tmp_path).close()
    (tmp_path / "two.safetensors").unlink()
    with pytest.raises(LoadError, match=r"(?s)1 of the 2 files.*two\.safetensors"):
        open_checkpoint(tmp_path)


def test_a_half_written_file_is_named(tmp_path: Path) -> None:
    shards(tmp_path).close()
    content = (tmp_path / "one.safetensors").read_bytes()
    (tmp_path / "one.safetensors").write_bytes(content[: len(content) // 2 + 50])
    with pytest.raises(CorruptFileError, match=r"one\.safetensors: is cut short"):
        open_checkpoint(tmp_path)


REFUSED = {
    "method": ({"quant_method": "gptq"}, "quant_method is 'gptq'.*'mxfp8', 'fp8' and 'modelopt'"),
    "no method": ({"bits": 4}, "quant_method is None"),
    "no object": ("mxfp8", "is 'mxfp8'; it must be an object"),
    "unknown key": (MXFP8 | {"rotate": True}, r"unknown keys \['rotate'\]"),
    "other blocks": (MXFP8 | {"weight_block_size": [1, 16]}, r"weight_block_size is \[1, 16\]"),
    "blocks of fp8": ({"quant_method": "fp8", "weight_block_size": [0, 1]}, r"\[0, 1\]; it must be \[rows, columns\]"),
    "another float": ({"quant_method": "fp8", "fmt": "e5m2"}, "fmt is 'e5m2'"),
    "exponents for nothing": ({"quant_method": "fp8", "scale_fmt": "ue8m0"}, "weight_block_size is missing"),
    "algorithm": ({"quant_method": "modelopt", "quant_algo": "W4A8_AWQ"}, "quant_algo is 'W4A8_AWQ'"),
    "no layers": ({"quant_method": "modelopt", "quant_algo": "MIXED_PRECISION"}, "quantized_layers is None"),
    "layers for nothing": (NVFP4 | {"quantized_layers": {"a": {}}}, "goes with quant_algo 'MIXED_PRECISION'"),
    "a layer's algorithm": (
        {
            "quant_method": "modelopt",
            "quant_algo": "MIXED_PRECISION",
            "quantized_layers": {"q": {"quant_algo": "INT8"}},
        },
        r"quantized_layers\['q'\]: quant_algo is 'INT8'",
    ),
    "cache": (NVFP4 | {"kv_cache_quant_algo": "FP8"}, "kv_cache_quant_algo is 'FP8'"),
    "names": (MXFP8 | {"ignored_layers": "lm_head"}, "ignored_layers is 'lm_head'; it must list"),
    "pattern": (MXFP8 | {"ignored_layers": ["re:("]}, r"pattern 're:\(' .* no regular expression"),
    "nested repetition": (MXFP8 | {"ignored_layers": ["re:(a+)+b"]}, "repeats a group"),
    "much repetition": (MXFP8 | {"ignored_layers": ["re:.*.*.*.*b"]}, "more than 3 times"),
    "many patterns": (MXFP8 | {"ignored_layers": ["*"] * 1001}, "1001 patterns of ignored modules; at most 1000"),
    "deep names": (MXFP8 | {"ignored_layers": [".".join("a" * 33)]}, "33 components; at most 32"),
}


@pytest.mark.parametrize("fault", REFUSED)
def test_other_quantisations_are_refused_by_name(tmp_path: Path, fault: str) -> None:
    quantization, message = REFUSED[fault]
    with pytest.raises(ConfigError, match=message):
        open_checkpoint(write(tmp_path, mxfp8(), quantization))


@pytest.mark.parametrize(
    ("pattern", "ignored"),
    [
        ("layers.3.gate", {"model.layers.3.gate"}),
        ("layers.3", {"model.layers.3.gate", "model.layers.3.gate_proj"}),
        ("*.gate", {"model.layers.3.gate", "model.layers.30.gate"}),
        ("model.layers.3*", {"model.layers.3.gate", "model.layers.30.gate", "model.layers.3.gate_proj"}),
        ("re:.*gate_", {"model.layers.3.gate_proj"}),
        (r"re:(model\.)?layers\.\d+\.gate$", {"model.layers.3.gate", "model.layers.30.gate"}),
        ("*layers*gate", {"model.layers.3.gate", "model.layers.30.gate"}),
        ("gate_", set()),
    ],
)
def test_names_of_ignored_layers(tmp_path: Path, pattern: str, ignored: set[str]) -> None:
    """A plain name stands for whole components of a path: layer 3 is not layer 30, gate is not gate_proj."""
    modules = {"model.layers.3.gate", "model.layers.30.gate", "model.layers.3.gate_proj"}
    tensors = {name: tensor for module in modules for name, tensor in mxfp8(module).items()}
    path = write(tmp_path, tensors, MXFP8 | {"ignored_layers": [pattern]})
    refused: set[str] = set()
    try:
        open_checkpoint(path).close()
    except TensorMismatchError as error:
        refused = {line.partition(".weight:")[0] for line in error.mistyped}
    assert refused == ignored
