"""MiniMax-M3's vision weights out of a GGUF file of its own ("mmproj"), under the names of the release.

llama.cpp keeps the tower and its projector apart from the text model. Its file has other names, the patch embedding's
two frames as two tensors, and the rows of q and k in another order: rotary channels lie axis by axis there.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from freehold.core.errors import ConfigError, TensorMismatchError
from freehold.core.typed import is_kind
from freehold.loading.checkpoint import Checkpoint, TensorInfo, open_checkpoint
from freehold.loading.quoting import quoted
from freehold.model.fields import Fields

# Not in the file: llama.cpp has them in its code.
_ROPE_THETA = 10000.0
_SEGMENT_FRAMES = 4
_MEAN = (0.48145466, 0.4578275, 0.40821073)
_STD = (0.26862954, 0.26130258, 0.27577711)

_TOWER = "vision_tower.vision_model."
_PATCH = f"{_TOWER}embeddings.patch_embedding.weight"
_PATCH_FRAMES = ("v.patch_embd.weight", "v.patch_embd.weight.1")
_PARTS = {
    "v.pre_ln": f"{_TOWER}pre_layrnorm",
    "mm.1": "multi_modal_projector.linear_1",
    "mm.2": "multi_modal_projector.linear_2",
    "mm.merger.fc1": "patch_merge_mlp.linear_1",
    "mm.merger.fc2": "patch_merge_mlp.linear_2",
    "mm.merge.fc1": "patch_merge_mlp.linear_1",  # as the first converters wrote it
    "mm.merge.fc2": "patch_merge_mlp.linear_2",
}
_LAYER_PARTS = {
    "ln1": "layer_norm1",
    "ln2": "layer_norm2",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_out": "self_attn.out_proj",
    "ffn_up": "mlp.fc1",
    "ffn_down": "mlp.fc2",
}
_LAYER = re.compile(r"v\.blk\.(?P<number>\d+)\.(?P<part>\w+)\.(?P<kind>weight|bias)")


class Mmproj:
    """The vision weights of a GGUF file, as `load_weights` asks for them.

    path, checkpoint: the file. config: what config.json would say of the vision part, for `VisionConfig.from_hf`.
    tensors: release name -> shape and stored type; names that are no part of a tower stay as they are, so that loading
    refuses them.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        """Raises ConfigError for another kind of file, TensorMismatchError if a half of the patch embedding is missing
        or a weight is there twice."""
        self.path: Path = checkpoint.path
        self.config = _config(checkpoint)
        vision = self.config["vision_config"]
        self._head_dim: int = vision["hidden_size"] // vision["num_attention_heads"]
        self.checkpoint = checkpoint
        self._stored = _stored_names(checkpoint)
        infos = {name: checkpoint.tensors[stored] for name, stored in self._stored.items()}
        rows, channels, height, width = infos[_PATCH].shape
        infos[_PATCH] = TensorInfo((rows, channels, len(_PATCH_FRAMES), height, width), infos[_PATCH].dtype)
        self.tensors: Mapping[str, TensorInfo] = MappingProxyType(infos)

    def tensor(self, name: str) -> Tensor:
        """The tensor in the release's order, quantised ones as float32. Raises TensorMismatchError for another name."""
        if name not in self._stored:
            raise TensorMismatchError(str(self.path), missing=[name])
        if name == _PATCH:
            return torch.stack([self.checkpoint.tensor(frame) for frame in _PATCH_FRAMES], dim=2)
        tensor = self.checkpoint.tensor(self._stored[name])
        is_rotated = re.search(r"self_attn\.[qk]_proj\.", name) is not None
        return in_halves(tensor, self._head_dim) if is_rotated else tensor

    def release(self, name: str) -> None:
        """A tower is small: its pages stay until the file is closed."""

    def quantized(self, name: str) -> None:
        """None: rows change places, so that no weight is handed out as it is stored."""


def open_mmproj(path: str | Path) -> Mmproj:
    """Open the file and read its header. Raises as `open_checkpoint` and `Mmproj` do."""
    return Mmproj(open_checkpoint(path))


def in_halves(rows: Tensor, head_dim: int) -> Tensor:
    """Rows of q or k, or their biases, for rotation in halves.

    rows (heads * head_dim, ...): with n frequencies for each of the axes T, H and W, a head is stored as
    T T' H H' W W' and what is not rotated, where channel i of T turns with channel i of T'. The result has
    T H W T' H' W' and the rest, so that channel i turns with channel i + 3 n.
    """
    frequencies = head_dim // 3 // 2
    heads = rows.reshape(-1, head_dim, *rows.shape[1:])
    turned, rest = heads[:, : 6 * frequencies], heads[:, 6 * frequencies :]
    turned = turned.reshape(len(heads), 3, 2, frequencies, *rows.shape[1:]).transpose(1, 2)
    return torch.cat([turned.reshape(len(heads), 6 * frequencies, *rows.shape[1:]), rest], dim=1).reshape(rows.shape)


def _stored_names(checkpoint: Checkpoint) -> dict[str, str]:
    """Release name -> name in the file."""
    missing = [name for name in _PATCH_FRAMES if name not in checkpoint.tensors]
    misshapen = [
        f"{name}: is {checkpoint.tensors[name].shape}, must be (out, channels, rows, columns)"
        for name in _PATCH_FRAMES
        if name not in missing and len(checkpoint.tensors[name].shape) != 4
    ]
    if not missing and not misshapen:
        first, second = (checkpoint.tensors[name].shape for name in _PATCH_FRAMES)
        if second != first:  # together they are one weight of the release
            misshapen.append(f"{_PATCH_FRAMES[1]}: is {second}, must be {first} like {_PATCH_FRAMES[0]}")
    names: dict[str, str] = {}
    for stored in checkpoint.tensors:
        if stored == _PATCH_FRAMES[1]:
            continue
        name = _PATCH if stored == _PATCH_FRAMES[0] else _release_name(stored)
        if name in names:
            misshapen.append(f"{stored}: is the same weight as {names[name]}")
        names[name] = stored
    if missing or misshapen:
        raise TensorMismatchError(str(checkpoint.path), missing=missing, misshapen=misshapen)
    return names


def _release_name(stored: str) -> str:
    layer = _LAYER.fullmatch(stored)
    if layer is not None and layer["part"] in _LAYER_PARTS:
        return f"{_TOWER}encoder.layers.{layer['number']}.{_LAYER_PARTS[layer['part']]}.{layer['kind']}"
    part, _, kind = stored.rpartition(".")
    return f"{_PARTS[part]}.{kind}" if part in _PARTS and kind in ("weight", "bias") else stored


def _config(checkpoint: Checkpoint) -> dict[str, Any]:
    """The keys of the release's configuration, out of llama.cpp's metadata. Every size is demanded."""
    where, metadata = str(checkpoint.path), checkpoint.config
    if checkpoint.format != "gguf" or metadata.get("general.architecture") != "clip":
        found = metadata.get("general.architecture", checkpoint.format)
        raise ConfigError(f"{where}: is {found!r}; the vision part of a GGUF model is a file of architecture 'clip'")
    f = Fields({k.removeprefix("clip."): v for k, v in metadata.items() if k.startswith("clip.")}, where)
    projector = f.optional("projector_type") or f.optional("vision.projector_type")
    f.optional("vision.projector_type")
    if projector != "minimax_m3":
        raise ConfigError(f"{where}: its projector_type is {quoted(projector)}; only 'minimax_m3' is read")
    for key, allowed in (("has_vision_encoder", [True]), ("has_audio_encoder", [False]), ("use_gelu", [True])):
        f.require(key, allowed)
    _check_colours(f, "vision.image_mean", _MEAN)
    _check_colours(f, "vision.image_std", _STD)
    out_size = f.positive("vision.projection_dim")
    inner = checkpoint.tensors.get("mm.1.weight")
    vision = {
        "hidden_size": f.positive("vision.embedding_length"),
        "intermediate_size": f.positive("vision.feed_forward_length"),
        "num_hidden_layers": f.positive("vision.block_count"),
        "num_attention_heads": f.positive("vision.attention.head_count"),
        "patch_size": f.positive("vision.patch_size"),
        "spatial_merge_size": f.positive("vision.spatial_merge_size"),
        "temporal_patch_size": len(_PATCH_FRAMES),
        "layer_norm_eps": f.get("vision.attention.layer_norm_epsilon", float),
        "image_size": f.positive("vision.image_size"),
        "projection_dim": out_size,
        "rope_theta": _ROPE_THETA,
        "vision_segment_max_frames": _SEGMENT_FRAMES,
    }
    f.done(ignored={key for key in f.values if key.startswith("vision.image_") and key.endswith("_pixels")})
    return {
        "vision_config": vision,
        "text_config": {"hidden_size": out_size},
        # The width inside the projector is told by its weight alone; without it, loading says what is missing.
        "projector_hidden_size": out_size if inner is None or not inner.shape else inner.shape[0],
    }


def _check_colours(f: Fields, key: str, expected: tuple[float, ...]) -> None:
    """Pictures are normalised with the release's numbers; a file with others was made for another model."""
    found = f.optional(key)
    if not isinstance(found, list) or len(found) != len(expected) or not all(is_kind(value, float) for value in found):
        raise ConfigError(f"{f.where}: {key!r} is {quoted(found)}; it must be a list of {len(expected)} numbers")
    if not all(math.isclose(a, b, rel_tol=1e-5) for a, b in zip(found, expected, strict=True)):
        raise ConfigError(f"{f.where}: {key!r} is {found}; MiniMax-M3 has {list(expected)}")
