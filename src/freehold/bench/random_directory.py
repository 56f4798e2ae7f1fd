"""The random MiniMax-M3 of the suites as a directory of safetensors, for programs that read only such."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from freehold.bench.random_m3 import BENCH_M3
from freehold.bench.slice_checkpoint import layer, outside
from freehold.model.minimax_m3_config import MiniMaxM3Config
from freehold.model.minimax_m3_release import release_config
from freehold.training.bytes_tokenizer import write_bytes_tokenizer


def write_random_directory(path: Path, config: MiniMaxM3Config = BENCH_M3) -> None:
    """Writes it with matrices in bfloat16; norms, routers and their biases are float32."""
    path.mkdir(parents=True, exist_ok=True)
    values = release_config(config)
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for part in (outside(values), *(layer(values, i) for i in range(config.num_layers))):
        for name, (shape, kind) in part.items():
            scale = 0.1 if len(shape) == 1 else 1.0 if name.endswith("embed_tokens.weight") else 1.5 / shape[1] ** 0.5
            tensor = torch.randn(shape, generator=generator) * scale
            tensors[name] = tensor if kind == "F32" else tensor.bfloat16()
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    (path / "config.json").write_text(json.dumps(values), encoding="utf-8")
    write_bytes_tokenizer(path)
