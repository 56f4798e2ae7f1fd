"""Tiny MiniMax-M3 checkpoints in the quantised layouts of the releases, and the same weights as plain floats."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import gguf
import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

from support import scaled_matrices as matrices
from support.tiny_m3 import TinyM3Spec, write_tiny_m3

Release = Literal["MXFP8", "NVFP4", "FP8"]
Stored = tuple[dict[str, torch.Tensor], torch.Tensor]

_FP8_BLOCK = (64, 32)
_EXPERT = re.compile(r"block_sparse_moe\.experts\.\d+\.w[123]\.weight$")
_MATRIX = re.compile(r"language_model\.model\.layers\..*_proj\.weight$")
_IGNORED = ["lm_head", "model.embed_tokens", "vision_tower", "multi_modal_projector", "patch_merge_mlp"]


def write_quantised_m3(spec: TinyM3Spec, directory: Path, release: Release) -> Path:
    """Write the checkpoint of `spec` to directory / "packed", and what its weights stand for to directory / "plain".

    Quantised are the matrices that the release quantises: projections, shared and routed experts.
    """
    packed, plain = directory / "packed", directory / "plain"
    write_tiny_m3(spec, packed)
    weights = load_file(packed / "model.safetensors")
    stored, floats, algorithms = {}, {}, {}
    for name, weight in weights.items():
        algorithm = _algorithm(name, release)
        if algorithm is None:
            stored[name] = floats[name] = weight
            continue
        algorithms[name.removesuffix(".weight")] = {"quant_algo": algorithm}
        tensors, floats[name] = _MAKERS[algorithm](name, weight.numpy(), release)
        stored.update(tensors)
    shutil.copytree(packed, plain)
    save_file({name: tensor.contiguous() for name, tensor in stored.items()}, packed / "model.safetensors")
    save_file({name: tensor.contiguous() for name, tensor in floats.items()}, plain / "model.safetensors")
    config = json.loads((packed / "config.json").read_text())
    gates = [f"language_model.model.layers.{n}.block_sparse_moe.gate" for n in range(spec.num_layers)]
    config["quantization_config"] = _quantization_config(release, _IGNORED + gates, algorithms)
    (packed / "config.json").write_text(json.dumps(config))
    return directory


def _algorithm(name: str, release: Release) -> Release | Literal["MXFP8"] | None:
    if _EXPERT.search(name):
        return release
    if _MATRIX.match(name):
        return "MXFP8" if release == "NVFP4" else release
    return None


def _quantization_config(release: Release, ignored: list[str], algorithms: dict[str, Any]) -> dict[str, Any]:
    if release == "MXFP8":
        return {
            "quant_method": "mxfp8",
            "activation_scheme": "dynamic",
            "weight_block_size": [1, 32],
            "ignored_layers": ignored,
        }
    if release == "FP8":
        return {"quant_method": "fp8", "weight_block_size": list(_FP8_BLOCK), "modules_to_not_convert": ignored}
    return {
        "quant_method": "modelopt",
        "quant_algo": "MIXED_PRECISION",
        "kv_cache_quant_algo": None,
        "exclude_modules": ignored,
        "quantized_layers": algorithms,
    }


def _mxfp8(name: str, weight: NDArray[np.float32], release: Release) -> Stored:
    codes, scales = matrices.mxfp8_codes(weight)
    suffix = "_scale" if release == "NVFP4" else "_scale_inv"  # ModelOpt's name, and MiniMax's
    stored = {name: torch.from_numpy(codes).view(torch.float8_e4m3fn), name + suffix: torch.from_numpy(scales)}
    return stored, torch.from_numpy(matrices.mxfp8_values(codes, scales))


def _fp8(name: str, weight: NDArray[np.float32], release: Release) -> Stored:
    codes, scales = matrices.fp8_codes(weight, *_FP8_BLOCK)
    stored = {name: torch.from_numpy(codes).view(torch.float8_e4m3fn), f"{name}_scale_inv": torch.from_numpy(scales)}
    return stored, torch.from_numpy(matrices.fp8_values(codes, scales, *_FP8_BLOCK))


def _nvfp4(name: str, weight: NDArray[np.float32], release: Release) -> Stored:
    codes, scales, tensor_scale = matrices.nvfp4_codes(weight)
    stored = {
        name: torch.from_numpy(codes),
        f"{name}_scale": torch.from_numpy(scales).view(torch.float8_e4m3fn),
        f"{name}_scale_2": torch.tensor(tensor_scale),
        f"{name.removesuffix('.weight')}.input_scale": torch.tensor(1.0),
    }
    return stored, torch.from_numpy(matrices.nvfp4_values(codes, scales, tensor_scale))


_MAKERS: dict[str, Callable[[str, NDArray[np.float32], Release], Stored]] = {
    "MXFP8": _mxfp8,
    "FP8": _fp8,
    "NVFP4": _nvfp4,
}


def copy_gguf(source: Path, target: Path, *, split_max_tensors: int = 0, alignment: int | None = None) -> None:
    """Write the model of a GGUF file anew with every tensor as float32, in parts of so many tensors if not 0."""
    reader = gguf.GGUFReader(source)
    architecture = reader.fields["general.architecture"].contents()
    writer = gguf.GGUFWriter(target, architecture, split_max_tensors=split_max_tensors)
    for field in reader.fields.values():
        if field.name.startswith(("GGUF.", "general.architecture")):
            continue
        kind, inner = field.types[0], field.types[-1] if len(field.types) > 1 else None
        writer.add_key_value(field.name, field.contents(), kind, sub_type=inner)
    if alignment is not None:
        writer.add_custom_alignment(alignment)
    for tensor in reader.tensors:
        values = gguf.dequantize(tensor.data, tensor.tensor_type)
        writer.add_tensor(tensor.name, np.ascontiguousarray(values, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
