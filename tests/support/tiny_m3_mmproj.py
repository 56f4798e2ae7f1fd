"""The vision part of a tiny MiniMax-M3 as llama.cpp's own file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray

MEAN, STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
LAYER_PARTS = {
    "layer_norm1": "ln1",
    "layer_norm2": "ln2",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.out_proj": "attn_out",
    "mlp.fc1": "ffn_up",
    "mlp.fc2": "ffn_down",
}
OTHER_PARTS = {
    "vision_tower.vision_model.pre_layrnorm": "v.pre_ln",
    "multi_modal_projector.linear_1": "mm.1",
    "multi_modal_projector.linear_2": "mm.2",
    "patch_merge_mlp.linear_1": "mm.merger.fc1",
    "patch_merge_mlp.linear_2": "mm.merger.fc2",
}


def stored_channel(channel: int, head_dim: int) -> int:
    """Where a channel of a head stands in the file. Of 6 n rotated ones, T H W are followed by their partners."""
    n = head_dim // 3 // 2
    if channel >= 6 * n:
        return channel
    half, axis, frequency = channel // (3 * n), channel // n % 3, channel % n
    return axis * 2 * n + half * n + frequency


def axis_by_axis(rows: NDArray[Any], head_dim: int) -> NDArray[Any]:
    stored = np.empty_like(rows)
    for row in range(len(rows)):
        head, channel = divmod(row, head_dim)
        stored[head * head_dim + stored_channel(channel, head_dim)] = rows[row]
    return stored


def vision_keys(config: dict[str, Any]) -> dict[str, Any]:
    """Metadata below "clip.", for config.json's `config`."""
    vision = config["vision_config"]
    return {
        "has_vision_encoder": True,
        "projector_type": "minimax_m3",
        "use_gelu": True,
        "vision.image_size": vision["image_size"],
        "vision.patch_size": vision["patch_size"],
        "vision.embedding_length": vision["hidden_size"],
        "vision.feed_forward_length": vision["intermediate_size"],
        "vision.block_count": vision["num_hidden_layers"],
        "vision.projection_dim": vision["projection_dim"],
        "vision.spatial_merge_size": 2,
        "vision.attention.head_count": vision["num_attention_heads"],
        "vision.attention.layer_norm_epsilon": vision["layer_norm_eps"],
        "vision.image_mean": MEAN,
        "vision.image_std": STD,
    }


def vision_tensors(weights: dict[str, NDArray[np.float32]], head_dim: int) -> dict[str, NDArray[np.float32]]:
    """Names and arrays of the file, for the release's names and arrays."""
    found: dict[str, NDArray[np.float32]] = {}
    for name, array in weights.items():
        module, _, kind = name.rpartition(".")
        if module.endswith("patch_embedding"):
            found["v.patch_embd.weight"], found["v.patch_embd.weight.1"] = array[:, :, 0], array[:, :, 1]
        elif ".encoder.layers." in name:
            number, _, part = module.partition(".encoder.layers.")[2].partition(".")
            rotated = part in ("self_attn.q_proj", "self_attn.k_proj")
            found[f"v.blk.{number}.{LAYER_PARTS[part]}.{kind}"] = axis_by_axis(array, head_dim) if rotated else array
        else:
            found[f"{OTHER_PARTS[module]}.{kind}"] = array
    return found


def write_mmproj(path: Path, keys: dict[str, Any], tensors: dict[str, NDArray[np.float32]], kind: Any = None) -> Path:
    """kind: a quantised type for the matrices whose rows are long enough, as converters choose it."""
    writer = gguf.GGUFWriter(path, "clip")
    for key, value in keys.items():
        unsigned = type(value) is int  # as llama.cpp wants them
        kind_of_value = gguf.GGUFValueType.UINT32 if unsigned else gguf.GGUFValueType.get_type(value)
        writer.add_key_value(f"clip.{key}", value, kind_of_value)
    for name, array in tensors.items():
        array = np.ascontiguousarray(array, np.float32)
        if kind is not None and array.ndim == 2 and array.shape[1] % 32 == 0:
            writer.add_tensor(name, gguf.quantize(array, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
