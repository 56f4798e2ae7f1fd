"""Tiny random Llama checkpoints: each rotary variant and each switch that published configurations use."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from support.byte_tokenizer import write_byte_tokenizer
from support.portable_random import portable_normal
from support.tiny_m3 import quiet_transformers

VOCAB_SIZE = 320


@dataclass(frozen=True, slots=True)
class TinyLlamaSpec:
    """The shape of one tiny model. rope holds the keys of the configuration's rope_parameters besides theta.

    head_dim: None leaves the key out, so that it is hidden_size // num_q_heads.
    """

    name: str
    rope: dict[str, Any] = field(default_factory=lambda: {"rope_type": "default"})
    rope_theta: float = 10000.0
    hidden_size: int = 96
    intermediate_size: int = 160
    num_layers: int = 2
    num_q_heads: int = 6
    num_kv_heads: int = 2
    head_dim: int | None = None
    context_length: int = 2048
    tied: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False
    seed: int = 0


_YARN = {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 256}

LLAMAS: dict[str, TinyLlamaSpec] = {
    spec.name: spec
    for spec in (
        TinyLlamaSpec("plain", seed=1),
        TinyLlamaSpec("tied", tied=True, rope_theta=100000.0, seed=2),
        TinyLlamaSpec("one_kv_head", num_kv_heads=1, num_q_heads=4, seed=3),
        TinyLlamaSpec("attention_bias", attention_bias=True, seed=4),
        TinyLlamaSpec("mlp_bias", mlp_bias=True, attention_bias=True, tied=True, seed=5),
        TinyLlamaSpec("explicit_head_dim", head_dim=64, num_q_heads=4, num_kv_heads=4, seed=6),
        TinyLlamaSpec("linear", {"rope_type": "linear", "factor": 4.0}, seed=7),
        TinyLlamaSpec(
            "llama3",
            {
                "rope_type": "llama3",
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 256,
            },
            rope_theta=500000.0,
            head_dim=64,
            seed=8,
        ),
        TinyLlamaSpec("yarn", _YARN, head_dim=64, seed=9),
        TinyLlamaSpec(
            "yarn_tuned",
            {**_YARN, "beta_fast": 16.0, "beta_slow": 2.0, "attention_factor": 1.3, "truncate": False},
            head_dim=64,
            seed=10,
        ),
        TinyLlamaSpec("yarn_mscale", {**_YARN, "mscale": 0.7, "mscale_all_dim": 0.4}, head_dim=64, seed=11),
    )
}


def build_tiny_llama(spec: TinyLlamaSpec) -> Any:
    """The transformers model of `spec`: fp32, eager attention, its weights filled from spec.seed."""
    sizes: dict[str, Any] = {} if spec.head_dim is None else {"head_dim": spec.head_dim}
    with quiet_transformers():
        config = LlamaConfig(
            vocab_size=VOCAB_SIZE,
            hidden_size=spec.hidden_size,
            intermediate_size=spec.intermediate_size,
            num_hidden_layers=spec.num_layers,
            num_attention_heads=spec.num_q_heads,
            num_key_value_heads=spec.num_kv_heads,
            max_position_embeddings=spec.context_length,
            rms_norm_eps=1e-5,
            rope_parameters={**spec.rope, "rope_theta": spec.rope_theta},
            tie_word_embeddings=spec.tied,
            attention_bias=spec.attention_bias,
            mlp_bias=spec.mlp_bias,
            bos_token_id=None,
            eos_token_id=None,
            **sizes,
        )
        model = LlamaForCausalLM(config).eval().float()  # type: ignore[no-untyped-call]
    model.set_attn_implementation("eager")
    with torch.no_grad():
        # A tied head is the embedding under a second name: `parameters` yields it once.
        for name, tensor in model.named_parameters():
            noise = torch.from_numpy(portable_normal(tuple(tensor.shape), seed=spec.seed, name=name))
            tensor.copy_(_scaled(name, noise))
    return model


def _scaled(name: str, noise: torch.Tensor) -> torch.Tensor:
    if name.endswith("norm.weight"):
        return 0.1 * noise + 1.0
    if name.endswith(".bias"):
        return 0.2 * noise
    if name.endswith("embed_tokens.weight"):
        return noise
    return noise * (1.5 / math.sqrt(noise.shape[-1]))


def write_tiny_llama(spec: TinyLlamaSpec, directory: Path, *, older_form: bool = False) -> Any:
    """Write the checkpoint of `spec` to `directory` and return the transformers model that it came from.

    older_form: config.json with rope_theta and rope_scaling, as in checkpoints from before rope_parameters.
    """
    model = build_tiny_llama(spec)
    directory.mkdir(parents=True, exist_ok=True)
    with quiet_transformers():
        model.save_pretrained(directory)
    if older_form:
        path = directory / "config.json"
        config = json.loads(path.read_text())
        rope = config.pop("rope_parameters")
        config["rope_theta"] = rope.pop("rope_theta")
        config["rope_scaling"] = None if rope["rope_type"] == "default" else rope
        path.write_text(json.dumps(config, indent=2))
    write_byte_tokenizer(directory)
    return model
