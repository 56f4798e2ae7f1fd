"""Tiny random MiniMax-M3 checkpoints, in the naming of the release: every shape small, every feature present.

The weights come from `portable_random`, so a specification and its seed name the same checkpoint everywhere.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import gguf
import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from transformers import MiniMaxM3SparseForConditionalGeneration, MiniMaxM3VLConfig

from support.portable_random import portable_normal

VOCAB_SIZE = 320
# Ids that `write_byte_tokenizer` gives to M3's tokens; writing a checkpoint checks them.
END_OF_TURN, IMAGE, VIDEO = 266, 268, 269
ROPE_THETA = 5_000_000.0
ConfigForm = Literal["release", "transformers"]


@dataclass(frozen=True, slots=True)
class TinyM3Spec:
    """The shape of one tiny model. `sparse_layers` and `moe_layers` hold one 0 or 1 for each layer.

    The shared expert is num_shared_experts * expert_size wide; rotary_dim is half of head_dim, as in M3.
    gate_gain multiplies the gate and up matrices: from about 5, gates and ups run into the limit of 7.
    """

    name: str
    sparse_layers: tuple[int, ...] = (0, 1, 1)
    moe_layers: tuple[int, ...] = (0, 1, 1)
    hidden_size: int = 96
    dense_size: int = 192
    expert_size: int = 48
    num_shared_experts: int = 1
    num_experts: int = 8
    experts_per_token: int = 2
    num_q_heads: int = 4
    num_kv_heads: int = 2
    head_dim: int = 64
    index_dim: int = 64
    block_tokens: int = 128
    topk: int = 16
    local_blocks: int = 1
    gate_gain: float = 1.0
    seed: int = 0
    vocab_size: int = VOCAB_SIZE
    context_length: int = 8192

    @property
    def num_layers(self) -> int:
        return len(self.sparse_layers)

    @property
    def rotary_dim(self) -> int:
        return self.head_dim // 2

    @property
    def shared_size(self) -> int:
        return self.num_shared_experts * self.expert_size

    @property
    def dense_window(self) -> int:
        """Contexts up to this many tokens are exactly dense; beyond it, blocks are left out."""
        return self.topk * self.block_tokens


SHAPES: dict[str, TinyM3Spec] = {
    spec.name: spec
    for spec in (
        # The release's own sizes of the selection: 16 blocks of 128.
        TinyM3Spec("release_selection", seed=1),
        TinyM3Spec(
            "no_dense_lead", (1, 1), (1, 1), num_shared_experts=2, head_dim=128, index_dim=128,
            block_tokens=64, topk=4, seed=2,
        ),
        TinyM3Spec("two_local_blocks", block_tokens=32, topk=5, local_blocks=2, index_dim=128, seed=3),
        TinyM3Spec(
            "four_index_heads", (0, 0, 1), (0, 0, 1), num_q_heads=8, num_kv_heads=4, topk=4, index_dim=32,
            seed=4,
        ),
        TinyM3Spec("one_far_block", (0, 1), (0, 1), num_kv_heads=1, num_q_heads=6, topk=2, seed=5),
        TinyM3Spec("clamped_gates", topk=8, block_tokens=64, gate_gain=5.0, num_shared_experts=2, seed=6),
        TinyM3Spec(
            "wide_heads", (0, 0, 0, 1), (0, 0, 0, 1), head_dim=128, index_dim=64, block_tokens=64, topk=12,
            num_experts=16, experts_per_token=4, seed=7,
        ),
        # Attention and feed-forward kinds are two separate lists; nothing says that they go together.
        TinyM3Spec("mixed_layers", (1, 0, 1), (0, 1, 1), block_tokens=32, topk=16, local_blocks=2, seed=8),
    )
}  # fmt: skip


def build_tiny_m3(spec: TinyM3Spec) -> Any:
    """The transformers model of `spec`: fp32, eager attention and experts, weights filled from spec.seed."""
    with quiet_transformers():
        config = MiniMaxM3VLConfig(**release_config(spec))
        model = MiniMaxM3SparseForConditionalGeneration(config).eval().float()  # type: ignore[no-untyped-call]
    model.set_attn_implementation("eager")
    model.set_experts_implementation("eager")
    model.generation_config.eos_token_id = None
    with torch.no_grad():
        for name, tensor in _weights(model):
            tensor.copy_(torch.from_numpy(_draw(name, tuple(tensor.shape), spec)))
    return model


def write_tiny_m3(spec: TinyM3Spec, directory: Path, *, config_form: ConfigForm = "release") -> Any:
    """Write the checkpoint of `spec` to `directory` and return the transformers model that it came from.

    config_form: "release" writes config.json with the keys of the published one, "transformers" keeps what
    `save_pretrained` wrote. The tensors are named as in the release either way.
    """
    model = build_tiny_m3(spec)
    directory.mkdir(parents=True, exist_ok=True)
    with quiet_transformers():
        model.save_pretrained(directory)
    if config_form == "release":
        (directory / "config.json").write_text(json.dumps(release_config(spec), indent=2))
        generation = {"do_sample": True, "temperature": 1.0, "top_p": 0.95, "eos_token_id": END_OF_TURN}
        (directory / "generation_config.json").write_text(json.dumps(generation))
    _write_tokenizer(directory)
    return model


def release_config(spec: TinyM3Spec) -> dict[str, Any]:
    """config.json of `spec` with the keys and the nesting of the published checkpoint."""
    merge = {
        "image_token_compression_method": "patch_merge",
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
    }
    return {
        "architectures": ["MiniMaxM3SparseForConditionalGeneration"],
        "model_type": "minimax_m3_vl",
        "torch_dtype": "float32",
        "transformers_version": "4.52.4",
        "image_token_index": IMAGE,
        "video_token_index": VIDEO,
        "image_seq_length": 4,
        "process_image_mode": "dynamic_res",
        "projector_hidden_act": "gelu",
        "projector_hidden_size": spec.hidden_size,
        "multimodal_projector_bias": True,
        "num_reward_heads": 0,
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "full",
        "img_token_compression_config": merge,
        "text_config": _release_text_config(spec),
        "vision_config": {
            "model_type": "clip_vision_model",
            "hidden_size": 32,
            "num_attention_heads": 2,
            "num_hidden_layers": 1,
            "intermediate_size": 64,
            "patch_size": 14,
            "image_size": 56,
            "num_channels": 3,
            "projection_dim": spec.hidden_size,
            "position_embedding_type": "rope",
            "rope_mode": "3d",
            "rope_theta": 10000.0,
            "layer_norm_eps": 1e-5,
            "hidden_act": "gelu",
            "attention_dropout": 0.0,
            "vision_segment_max_frames": 4,
            "img_token_compression_config": merge,
        },
    }


def _release_text_config(spec: TinyM3Spec) -> dict[str, Any]:
    sparse = list(spec.sparse_layers)
    return {
        "architectures": ["MiniMaxM3SparseForCausalLM"],
        "hidden_size": spec.hidden_size,
        "intermediate_size": spec.expert_size,
        "dense_intermediate_size": spec.dense_size,
        "shared_intermediate_size": spec.shared_size,
        "num_hidden_layers": spec.num_layers,
        "num_attention_heads": spec.num_q_heads,
        "num_key_value_heads": spec.num_kv_heads,
        "head_dim": spec.head_dim,
        "vocab_size": spec.vocab_size,
        "max_position_embeddings": spec.context_length,
        "rms_norm_eps": 1e-6,
        "use_gemma_norm": True,
        "rope_theta": ROPE_THETA,
        "rotary_dim": spec.rotary_dim,
        "partial_rotary_factor": spec.rotary_dim / spec.head_dim,
        "num_local_experts": spec.num_experts,
        "num_experts_per_tok": spec.experts_per_token,
        "n_shared_experts": spec.num_shared_experts,
        "scoring_func": "sigmoid",
        "use_routing_bias": True,
        "routed_scaling_factor": 2.0,
        "moe_layer_freq": list(spec.moe_layers),
        "hidden_act": "swigluoai",
        "swiglu_alpha": 1.702,
        "swiglu_limit": 7.0,
        "use_qk_norm": True,
        "qk_norm_type": "per_head",
        "attention_output_gate": False,
        "tie_word_embeddings": False,
        "num_mtp_modules": 1,
        "sparse_attention_config": {
            "use_sparse_attention": True,
            "sparse_index_dim": spec.index_dim,
            "sparse_num_index_heads": spec.num_kv_heads,
            "sparse_topk_blocks": spec.topk,
            "sparse_block_size": spec.block_tokens,
            "sparse_score_type": "max",
            "sparse_init_block": 0,
            "sparse_local_block": spec.local_blocks,
            "sparse_attention_freq": sparse,
            "sparse_disable_index_value": sparse,
        },
    }


def _weights(model: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Parameters and stored buffers, by their transformers names."""
    stored = model.state_dict(keep_vars=True)
    yield from stored.items()


def _draw(name: str, shape: tuple[int, ...], spec: TinyM3Spec) -> NDArray[np.float32]:
    """One tensor of the checkpoint. Text norms are offsets from 1; those of the vision tower are not."""
    noise = portable_normal(shape, seed=spec.seed, name=name)
    scale, offset = _distribution(name, shape, spec)
    drawn: NDArray[np.float32] = noise * np.float32(scale) + np.float32(offset)
    return drawn


def _distribution(name: str, shape: tuple[int, ...], spec: TinyM3Spec) -> tuple[float, float]:
    """Standard deviation and mean of a tensor's entries."""
    if name.endswith("e_score_correction_bias"):
        return 0.2, 0.0
    if name.endswith(".bias"):
        return 0.1, 0.0
    if len(shape) == 1:
        return 0.1, 1.0 if ".vision_tower." in name else 0.0
    if name.endswith("embed_tokens.weight"):
        return 1.0, 0.0
    # Experts are stacked as [experts, out, in]; the patch embedding is [out, channels, frames, rows, columns].
    fan_in = shape[-1] if len(shape) <= 3 else math.prod(shape[1:])
    gain = spec.gate_gain if "gate_up_proj" in name else 1.0
    return gain * 1.5 / math.sqrt(fan_in), 0.0


def _write_tokenizer(directory: Path) -> None:
    # Imported here: making golden fixtures must not load the package, which the tokenizer's writer does.
    from support.byte_tokenizer import write_byte_tokenizer

    write_byte_tokenizer(directory)
    added = json.loads((directory / "tokenizer.json").read_text())["added_tokens"]
    ids = {token["content"]: token["id"] for token in added}
    assert (ids["[e~["], ids["]<]image[>["], ids["]<]video[>["]) == (END_OF_TURN, IMAGE, VIDEO), ids


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Without progress bars, and without the remark that M3's default token ids exceed a tiny vocabulary."""
    logging: Any = transformers.utils.logging
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.set_verbosity(verbosity)


# ---------------------------------------------------------------------------------------------------- GGUF


def write_tiny_m3_gguf(spec: TinyM3Spec, path: Path, *, special: bool = False) -> Any:
    """Write the same weights as one fp32 GGUF file of architecture "minimax-m3"; return the transformers model.

    special: with the vocabulary of `write_tiny_m3`, which has M3's special tokens.
    The format has no lists for each layer: layers from `leading_dense_block_count` on are sparse and MoE.
    """
    lead = spec.sparse_layers.count(0)
    assert spec.sparse_layers == spec.moe_layers == (0,) * lead + (1,) * (spec.num_layers - lead), (
        f"{spec.name}: GGUF can only say how many leading layers are dense"
    )
    model = build_tiny_m3(spec)
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = gguf.GGUFWriter(path, "minimax-m3")
    _add_gguf_sizes(writer, spec, lead)
    if special:
        _add_special_vocabulary(writer)
    else:
        _add_gguf_vocabulary(writer)
    text = {
        name.removeprefix("model.language_model."): tensor.detach().numpy()
        for name, tensor in model.state_dict().items()
        if name.startswith(("model.language_model.", "lm_head."))
    }
    for name, array in _gguf_tensors(text, spec):
        writer.add_tensor(name, np.ascontiguousarray(array, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return model


def _add_gguf_sizes(writer: gguf.GGUFWriter, spec: TinyM3Spec, lead: int) -> None:
    writer.add_name(f"tiny random MiniMax-M3, {spec.name}")
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    writer.add_block_count(spec.num_layers)
    writer.add_context_length(8192)
    writer.add_embedding_length(spec.hidden_size)
    writer.add_feed_forward_length(spec.dense_size)
    writer.add_head_count(spec.num_q_heads)
    writer.add_head_count_kv(spec.num_kv_heads)
    writer.add_key_length(spec.head_dim)
    writer.add_value_length(spec.head_dim)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(ROPE_THETA)
    writer.add_rope_dimension_count(spec.rotary_dim)
    writer.add_vocab_size(VOCAB_SIZE)
    writer.add_expert_count(spec.num_experts)
    writer.add_expert_used_count(spec.experts_per_token)
    writer.add_expert_feed_forward_length(spec.expert_size)
    writer.add_expert_shared_count(spec.num_shared_experts)
    writer.add_expert_weights_scale(2.0)
    writer.add_expert_weights_norm(True)
    writer.add_expert_gating_func(gguf.ExpertGatingFuncType.SIGMOID)
    writer.add_leading_dense_block_count(lead)
    # The writer has no functions for M3's indexer; the keys are those that llama.cpp reads.
    for key, value in (
        ("head_count", spec.num_kv_heads),
        ("key_length", spec.index_dim),
        ("top_k", spec.topk),
        ("block_size", spec.block_tokens),
        ("local_blocks", spec.local_blocks),
    ):
        writer.add_uint32(f"minimax-m3.attention.indexer.{key}", value)


def _add_gguf_vocabulary(writer: gguf.GGUFWriter) -> None:
    """A byte-level vocabulary: 256 bytes, two control tokens, the rest unused."""
    tokens = [byte_symbol(value) for value in range(256)] + ["]~!b[", "[e~["]
    types = [gguf.TokenType.NORMAL] * 256 + [gguf.TokenType.CONTROL] * 2
    types += [gguf.TokenType.UNUSED] * (VOCAB_SIZE - len(tokens))
    tokens += [f"<unused{i}>" for i in range(len(tokens), VOCAB_SIZE)]
    # One merge: llama.cpp refuses a byte-pair vocabulary without any. Its product is an ordinary token.
    tokens[258], types[258] = "th", gguf.TokenType.NORMAL
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("minimax-m2")
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges(["t h"])
    writer.add_bos_token_id(256)
    writer.add_eos_token_id(257)
    writer.add_add_bos_token(False)


def _add_special_vocabulary(writer: gguf.GGUFWriter) -> None:
    from support.byte_tokenizer import MERGES, SPECIAL_TOKENS

    tokens = [*map(byte_symbol, range(256)), *(left + right for left, right in MERGES), *SPECIAL_TOKENS]
    types = [gguf.TokenType.NORMAL] * (256 + len(MERGES)) + [gguf.TokenType.CONTROL] * len(SPECIAL_TOKENS)
    types += [gguf.TokenType.UNUSED] * (VOCAB_SIZE - len(tokens))
    tokens += [f"<unused{i}>" for i in range(len(tokens), VOCAB_SIZE)]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("minimax-m2")
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges([f"{left} {right}" for left, right in MERGES])
    writer.add_bos_token_id(tokens.index("]~!b["))
    writer.add_eos_token_id(tokens.index("[e~["))
    writer.add_add_bos_token(False)


def byte_symbol(value: int) -> str:
    """The printable character that stands for a byte in a byte-level BPE vocabulary (GPT-2's table)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    if value in printable:
        return chr(value)
    return chr(256 + [byte for byte in range(256) if byte not in printable].index(value))


def _gguf_tensors(text: dict[str, NDArray[Any]], spec: TinyM3Spec) -> Iterator[tuple[str, NDArray[Any]]]:
    """GGUF bakes the 1 of "1 + w" into the norms and keeps gate and up apart."""
    yield "token_embd.weight", text["embed_tokens.weight"]
    yield "output_norm.weight", text["norm.weight"] + 1
    yield "output.weight", text["lm_head.weight"]
    for layer in range(spec.num_layers):
        source = {
            name.removeprefix(f"layers.{layer}."): array
            for name, array in text.items()
            if name.startswith(f"layers.{layer}.")
        }
        for name, array in _gguf_layer(source, sparse=bool(spec.sparse_layers[layer])):
            yield f"blk.{layer}.{name}", array


def _gguf_layer(source: dict[str, NDArray[Any]], *, sparse: bool) -> Iterator[tuple[str, NDArray[Any]]]:
    yield "attn_norm.weight", source["input_layernorm.weight"] + 1
    yield "ffn_norm.weight", source["post_attention_layernorm.weight"] + 1
    for ours, theirs in (("q", "q"), ("k", "k"), ("v", "v"), ("o", "output")):
        yield f"attn_{theirs}.weight", source[f"self_attn.{ours}_proj.weight"]
    for which in ("q", "k"):
        yield f"attn_{which}_norm.weight", source[f"self_attn.{which}_norm.weight"] + 1
    if not sparse:
        gate, up = np.split(source["mlp.gate_up_proj.weight"], 2, axis=0)
        yield "ffn_gate.weight", gate
        yield "ffn_up.weight", up
        yield "ffn_down.weight", source["mlp.down_proj.weight"]
        return
    for which in ("q", "k"):
        yield f"indexer.{which}_proj.weight", source[f"self_attn.indexer.{which}_proj.weight"]
        yield f"indexer.{which}_norm.weight", source[f"self_attn.indexer.{which}_norm.weight"] + 1
    yield "ffn_gate_inp.weight", source["mlp.gate.weight"]
    yield "exp_probs_b.bias", source["mlp.gate.e_score_correction_bias"]
    gate, up = np.split(source["mlp.experts.gate_up_proj"], 2, axis=1)
    yield "ffn_gate_exps.weight", gate
    yield "ffn_up_exps.weight", up
    yield "ffn_down_exps.weight", source["mlp.experts.down_proj"]
    gate, up = np.split(source["mlp.shared_experts.gate_up_proj.weight"], 2, axis=0)
    yield "ffn_gate_shexp.weight", gate
    yield "ffn_up_shexp.weight", up
    yield "ffn_down_shexp.weight", source["mlp.shared_experts.down_proj.weight"]
