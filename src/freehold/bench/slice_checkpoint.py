"""A slice of MiniMax-M3 in its true sizes: a few layers of random 4-bit weights, written to the disk as
`freehold quantize` writes them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from freehold.core.errors import ArgumentError
from freehold.loading.block_config import block_config
from freehold.loading.checkpoint import INDEX_NAME
from freehold.model.minimax_m3_release import M3_TEXT

Say = Callable[[str], None]

_BLOCK = 32
_Q4_1, _Q8_0 = 20, 34  # bytes of a block
_LAYERS, _LEAD = 3, 1
_FLAGS = [0] * _LEAD + [1] * (_LAYERS - _LEAD)

SMALL = {
    "hidden_size": 128, "intermediate_size": 64, "dense_intermediate_size": 128, "shared_intermediate_size": 64,
    "num_attention_heads": 8, "head_dim": 32, "rotary_dim": 16, "vocab_size": 512, "num_local_experts": 8,
    "max_position_embeddings": 8192,
}  # fmt: skip
"""Instead of these sizes: whether it works."""


def slice_config(small: bool) -> dict[str, Any]:
    """config.json of the slice, without its quantisation."""
    sparse = {"sparse_attention_freq": _FLAGS, "sparse_disable_index_value": _FLAGS}
    config = {**M3_TEXT, "num_hidden_layers": _LAYERS, "moe_layer_freq": _FLAGS}
    config["sparse_attention_config"] = {**M3_TEXT["sparse_attention_config"], **sparse}
    if small:
        config.update(SMALL)
        config["sparse_attention_config"]["sparse_index_dim"] = 32
    return config


def write_slice(directory: Path, config: dict[str, Any], say: Say) -> None:
    """Writes the checkpoint, a file for each layer, unless it is there. Raises ArgumentError if something else is."""
    if (directory / "config.json").exists():
        there = json.loads((directory / "config.json").read_text(encoding="utf-8"))
        there.pop("quantization_config", None)
        if there != config:
            raise ArgumentError(f"{directory}: holds another checkpoint; name another directory")
        return
    directory.mkdir(parents=True, exist_ok=True)
    kinds: dict[str, str] = {}
    weight_map: dict[str, str] = {}
    parts = [outside(config), *(layer(config, i) for i in range(_LAYERS))]
    for number, shapes in enumerate(parts):
        name = f"model-{number + 1:05d}-of-{len(parts):05d}.safetensors"
        say(f"writing {name}")
        generator = np.random.default_rng(number)
        save_file(
            {tensor: _random(shape, kind, generator) for tensor, (shape, kind) in shapes.items()}, directory / name
        )
        weight_map.update(dict.fromkeys(shapes, name))
        kinds.update({tensor: kind for tensor, (_, kind) in shapes.items() if kind.startswith("Q")})
    index = {"metadata": {}, "weight_map": weight_map}
    (directory / INDEX_NAME).write_text(json.dumps(index), encoding="utf-8")
    text = json.dumps({**config, "quantization_config": block_config(kinds)})
    (directory / "config.json").write_text(text, encoding="utf-8")


Shapes = dict[str, tuple[tuple[int, ...], str]]


def outside(c: dict[str, Any]) -> Shapes:
    """Name -> shape and kind of the tensors that belong to no layer, for a configuration like `M3_TEXT`."""
    vocabulary = (c["vocab_size"], c["hidden_size"])
    return {
        "model.embed_tokens.weight": (vocabulary, "Q8_0"),
        "model.norm.weight": ((c["hidden_size"],), "F32"),
        "lm_head.weight": (vocabulary, "Q8_0"),
    }


def layer(c: dict[str, Any], i: int) -> Shapes:
    """The same of a layer."""
    root, hidden, head = f"model.layers.{i}.", c["hidden_size"], c["head_dim"]
    q, kv = c["num_attention_heads"] * head, c["num_key_value_heads"] * head
    found: Shapes = {
        f"{root}input_layernorm.weight": ((hidden,), "F32"),
        f"{root}post_attention_layernorm.weight": ((hidden,), "F32"),
        f"{root}self_attn.q_proj.weight": ((q, hidden), "Q8_0"),
        f"{root}self_attn.k_proj.weight": ((kv, hidden), "Q8_0"),
        f"{root}self_attn.v_proj.weight": ((kv, hidden), "Q8_0"),
        f"{root}self_attn.o_proj.weight": ((hidden, q), "Q8_0"),
        f"{root}self_attn.q_norm.weight": ((head,), "F32"),
        f"{root}self_attn.k_norm.weight": ((head,), "F32"),
    }
    if not c["moe_layer_freq"][i]:
        return found | _network(
            f"{root}mlp.", ("gate_proj", "up_proj", "down_proj"), c["dense_intermediate_size"], hidden
        )
    sparse = c["sparse_attention_config"]
    index = sparse["sparse_index_dim"]
    found |= {
        f"{root}self_attn.index_q_proj.weight": ((sparse["sparse_num_index_heads"] * index, hidden), "Q8_0"),
        f"{root}self_attn.index_k_proj.weight": ((index, hidden), "Q8_0"),
        f"{root}self_attn.index_q_norm.weight": ((index,), "F32"),
        f"{root}self_attn.index_k_norm.weight": ((index,), "F32"),
    }
    moe = f"{root}block_sparse_moe."
    found[f"{moe}gate.weight"] = (c["num_local_experts"], hidden), "F32"
    found[f"{moe}e_score_correction_bias"] = (c["num_local_experts"],), "F32"
    names = ("gate_proj", "up_proj", "down_proj")
    found |= _network(f"{moe}shared_experts.", names, c["shared_intermediate_size"], hidden)
    for e in range(c["num_local_experts"]):
        found |= _network(f"{moe}experts.{e}.", ("w1", "w3", "w2"), c["intermediate_size"], hidden)
    return found


def _network(root: str, names: tuple[str, str, str], width: int, hidden: int) -> Shapes:
    shapes = ((width, hidden), (width, hidden), (hidden, width))
    return {f"{root}{name}.weight": (shape, "Q4_1") for name, shape in zip(names, shapes, strict=True)}


def _random(shape: tuple[int, ...], kind: str, generator: np.random.Generator) -> torch.Tensor:
    """Norms around 1, matrices that keep the size of what they multiply."""
    if kind == "F32":
        scale = 0.1 if len(shape) == 1 else shape[1] ** -0.5
        return torch.from_numpy(generator.standard_normal(shape, np.float32) * np.float32(scale))
    rows, columns = shape
    nbytes = _Q4_1 if kind == "Q4_1" else _Q8_0
    blocks = generator.integers(0, 256, (rows, columns // _BLOCK, nbytes), np.uint8)
    spread = 4.6 if kind == "Q4_1" else 73.9  # of codes that are drawn evenly
    scale = np.float16(columns**-0.5 / spread)
    blocks[..., :2] = np.frombuffer(scale.tobytes(), np.uint8)
    if kind == "Q4_1":
        blocks[..., 2:4] = np.frombuffer(np.float16(-7.5 * float(scale)).tobytes(), np.uint8)
    return torch.from_numpy(blocks.reshape(rows, -1))
