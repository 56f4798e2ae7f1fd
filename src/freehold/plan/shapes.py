"""Every tensor of a checkpoint that is not here yet, from its configuration: names, shapes and stored types."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from freehold.core.errors import ConfigError
from freehold.loading.checkpoint import TensorInfo
from freehold.loading.quantization_config import IGNORED_KEYS, read_quantization
from freehold.loading.quoting import quoted
from freehold.model.fields import MOST_LAYERS, Fields
from freehold.model.llama import LlamaConfig
from freehold.model.minimax_m3_config import MiniMaxM3Config

Named = tuple[str, tuple[int, ...]]

MX_BLOCK = 32
"""Weights that share one exponent in MXFP8."""

# The release keeps these in float32, whatever the rest is stored in.
_FLOAT32 = (".block_sparse_moe.gate.weight", ".e_score_correction_bias", ".patch_embedding.weight")


def llama_tensors(config: LlamaConfig, dtype: str) -> dict[str, TensorInfo]:
    """name -> TensorInfo of a Llama checkpoint in safetensors. dtype: the format's word, such as "BF16"."""
    return {name: TensorInfo(shape, dtype) for name, shape in _llama(config)}


def m3_tensors(config: MiniMaxM3Config, values: Mapping[str, Any], dtype: str, where: str) -> dict[str, TensorInfo]:
    """name -> TensorInfo of a MiniMax-M3 checkpoint in safetensors: the text model, and the vision tower where the
    configuration `values` has one. Raises ConfigError for a vision tower without sizes.
    """
    full = "text_config" in values
    named = list(_m3_text(config, "language_model." if full else ""))
    if full and values.get("vision_config"):
        named += _vision(values, config.hidden_size, where)
    return {name: TensorInfo(shape, "F32" if name.endswith(_FLOAT32) else dtype) for name, shape in named}


def _llama(c: LlamaConfig) -> Iterator[Named]:
    hidden, q, kv, ff = c.hidden_size, c.num_q_heads * c.head_dim, c.num_kv_heads * c.head_dim, c.intermediate_size
    yield "model.embed_tokens.weight", (c.vocab_size, hidden)
    for i in range(c.num_layers):
        layer = f"model.layers.{i}."
        yield f"{layer}input_layernorm.weight", (hidden,)
        yield f"{layer}post_attention_layernorm.weight", (hidden,)
        for name, shape, biased in (
            ("self_attn.q_proj", (q, hidden), c.attention_bias),
            ("self_attn.k_proj", (kv, hidden), c.attention_bias),
            ("self_attn.v_proj", (kv, hidden), c.attention_bias),
            ("self_attn.o_proj", (hidden, q), c.attention_bias),
            ("mlp.gate_proj", (ff, hidden), c.mlp_bias),
            ("mlp.up_proj", (ff, hidden), c.mlp_bias),
            ("mlp.down_proj", (hidden, ff), c.mlp_bias),
        ):
            yield f"{layer}{name}.weight", shape
            if biased:
                yield f"{layer}{name}.bias", shape[:1]
    yield "model.norm.weight", (hidden,)
    if not c.tie_embeddings:
        yield "lm_head.weight", (c.vocab_size, hidden)


def _m3_text(c: MiniMaxM3Config, outer: str) -> Iterator[Named]:
    root = f"{outer}model."
    yield f"{root}embed_tokens.weight", (c.vocab_size, c.hidden_size)
    for i in range(c.num_layers):
        layer = f"{root}layers.{i}."
        yield f"{layer}input_layernorm.weight", (c.hidden_size,)
        yield f"{layer}post_attention_layernorm.weight", (c.hidden_size,)
        yield from _m3_attention(c, f"{layer}self_attn.", sparse=c.sparse_attention[i])
        if c.moe[i]:
            yield from _m3_experts(c, f"{layer}block_sparse_moe.")
        else:
            yield from _mlp(f"{layer}mlp.", c.dense_intermediate_size, c.hidden_size)
    yield f"{root}norm.weight", (c.hidden_size,)
    if not c.tie_embeddings:
        yield f"{outer}lm_head.weight", (c.vocab_size, c.hidden_size)


def _m3_attention(c: MiniMaxM3Config, root: str, *, sparse: bool) -> Iterator[Named]:
    q, kv = c.num_q_heads * c.head_dim, c.num_kv_heads * c.head_dim
    yield f"{root}q_proj.weight", (q, c.hidden_size)
    yield f"{root}k_proj.weight", (kv, c.hidden_size)
    yield f"{root}v_proj.weight", (kv, c.hidden_size)
    yield f"{root}o_proj.weight", (c.hidden_size, q)
    yield f"{root}q_norm.weight", (c.head_dim,)
    yield f"{root}k_norm.weight", (c.head_dim,)
    if sparse:
        yield f"{root}index_q_proj.weight", (c.num_index_heads * c.index_dim, c.hidden_size)
        yield f"{root}index_k_proj.weight", (c.index_dim, c.hidden_size)
        yield f"{root}index_q_norm.weight", (c.index_dim,)
        yield f"{root}index_k_norm.weight", (c.index_dim,)


def _m3_experts(c: MiniMaxM3Config, root: str) -> Iterator[Named]:
    yield f"{root}gate.weight", (c.num_experts, c.hidden_size)
    yield f"{root}e_score_correction_bias", (c.num_experts,)
    for e in range(c.num_experts):
        yield f"{root}experts.{e}.w1.weight", (c.expert_intermediate_size, c.hidden_size)
        yield f"{root}experts.{e}.w3.weight", (c.expert_intermediate_size, c.hidden_size)
        yield f"{root}experts.{e}.w2.weight", (c.hidden_size, c.expert_intermediate_size)
    yield from _mlp(f"{root}shared_experts.", c.shared_intermediate_size, c.hidden_size)


def _mlp(root: str, width: int, hidden: int) -> Iterator[Named]:
    yield f"{root}gate_proj.weight", (width, hidden)
    yield f"{root}up_proj.weight", (width, hidden)
    yield f"{root}down_proj.weight", (hidden, width)


def _vision(values: Mapping[str, Any], text_hidden: int, where: str) -> Iterator[Named]:
    """The tower, the projector and the merging of neighbouring patches."""
    given = values["vision_config"]
    if not isinstance(given, Mapping):
        raise ConfigError(f"{where}: 'vision_config' is {quoted(given)}; it must be an object")
    f = Fields(given, f"{where}: vision_config")
    merging = f.object("img_token_compression_config")
    merging = merging if merging.values else f
    frames, merge = merging.positive("temporal_patch_size", 2), merging.positive("spatial_merge_size", 2)
    hidden, inner, patch = f.positive("hidden_size"), f.positive("intermediate_size"), f.positive("patch_size")
    projected = Fields(values, where).positive("projector_hidden_size")
    root = "vision_tower.vision_model."
    yield f"{root}embeddings.patch_embedding.weight", (hidden, f.positive("num_channels", 3), frames, patch, patch)
    yield from _with_bias(f"{root}pre_layrnorm", (hidden,))
    for i in range(f.positive("num_hidden_layers", most=MOST_LAYERS)):
        layer = f"{root}encoder.layers.{i}."
        for name in ("layer_norm1", "layer_norm2"):
            yield from _with_bias(layer + name, (hidden,))
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            yield from _with_bias(f"{layer}self_attn.{name}", (hidden, hidden))
        yield from _with_bias(f"{layer}mlp.fc1", (inner, hidden))
        yield from _with_bias(f"{layer}mlp.fc2", (hidden, inner))
    yield from _with_bias("multi_modal_projector.linear_1", (projected, hidden))
    yield from _with_bias("multi_modal_projector.linear_2", (text_hidden, projected))
    yield from _with_bias("patch_merge_mlp.linear_1", (projected, text_hidden * merge**2))
    yield from _with_bias("patch_merge_mlp.linear_2", (text_hidden, projected))


def _with_bias(name: str, shape: tuple[int, ...]) -> Iterator[Named]:
    yield f"{name}.weight", shape
    yield f"{name}.bias", shape[:1]


def quantised_tensors(tensors: Mapping[str, TensorInfo], quantisation: Any, where: str) -> dict[str, TensorInfo]:
    """The tensors as a quantization_config stores them. MXFP8: each matrix in 8-bit floats, and one exponent for each
    32 of its weights. Raises ConfigError for a method whose sizes cannot be derived."""
    if not isinstance(quantisation, Mapping):
        raise ConfigError(f"{where}: 'quantization_config' is {quoted(quantisation)}; it must be an object")
    method = quantisation.get("quant_method")
    if method != "mxfp8":
        raise ConfigError(
            f"{where}: 'quantization_config' asks for {quoted(method)}, whose sizes do not follow from the"
            " configuration; name the directory that holds the files"
        )
    # Keys that are not known are a reason not to load it, and not one against planning.
    lists = {key: quantisation[key] for key in IGNORED_KEYS if key in quantisation}
    known = read_quantization({"quant_method": method, **lists}, f"{where}: quantization_config")
    found = {}
    for name, info in tensors.items():
        if len(info.shape) != 2 or known.format_of(name.removesuffix(".weight")) is None:
            found[name] = info
            continue
        rows, columns = info.shape
        if columns % MX_BLOCK:
            raise ConfigError(f"{where}: {name} has {columns} columns; MXFP8 comes in blocks of {MX_BLOCK}")
        found[name] = TensorInfo(info.shape, "F8_E4M3")
        found[f"{name}_scale_inv"] = TensorInfo((rows, columns // MX_BLOCK), "U8")
    return found
