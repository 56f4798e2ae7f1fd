"""The sizes of a MiniMax-M3 text model, read strictly from each of the forms they are published in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from freehold.core.errors import ConfigError
from freehold.loading.quoting import quoted
from freehold.model.fields import MOST_CHANNELS, MOST_EXPERTS, MOST_LAYERS, Fields

_VISION_KEYS = frozenset(
    """
    vision_config image_token_index video_token_index image_token_id video_token_id image_seq_length
    process_image_mode image_grid_pinpoints projector_hidden_act projector_hidden_size merged_hidden_size
    multimodal_projector_bias num_reward_heads vision_feature_layer vision_feature_select_strategy
    img_token_compression_config text_config
    """.split()
)
# Multi-token prediction modules are named in configurations, but released weights hold none.
_MTP_KEYS = frozenset({"num_mtp_modules", "num_nextn_predict_layers", "mtp_transformer_layers"})
_TRAINING_KEYS = frozenset({"output_router_logits", "router_aux_loss_coef", "router_jitter_noise", "max_model_len"})


@dataclass(frozen=True)
class MiniMaxM3Config:
    """`sparse_attention` and `moe` say, layer by layer, whether it is sparse and whether it has experts."""

    vocab_size: int
    hidden_size: int
    num_layers: int
    num_q_heads: int
    num_kv_heads: int
    head_dim: int
    rotary_dim: int
    rope_theta: float
    rms_norm_eps: float
    context_length: int
    dense_intermediate_size: int
    expert_intermediate_size: int
    shared_intermediate_size: int
    num_experts: int
    num_experts_per_token: int
    routed_scaling_factor: float
    swiglu_alpha: float
    swiglu_limit: float
    index_dim: int
    num_index_heads: int
    block_tokens: int
    topk: int
    local_blocks: int
    init_blocks: int
    sparse_attention: tuple[bool, ...]
    moe: tuple[bool, ...]
    tie_embeddings: bool

    @staticmethod
    def from_hf(values: Mapping[str, Any], where: str) -> MiniMaxM3Config:
        """Reads config.json: the release's form, or the form that transformers saves.

        A layer list that is missing is an error, not a default: without it a sparse model would run dense.
        """
        text = values.get("text_config", values)
        if not isinstance(text, Mapping):
            raise ConfigError(f"{where}: 'text_config' is {quoted(text)}; it must be an object")
        if text is not values:
            outer = Fields(values, where)
            outer.require("tie_word_embeddings", [False, text.get("tie_word_embeddings", False)])
            outer.done(ignored=_VISION_KEYS)
        f = Fields(text, where)
        layers = f.positive("num_hidden_layers", most=MOST_LAYERS)
        for key, allowed in _FIXED.items():
            f.require(key, allowed)
        head_dim = f.positive("head_dim", most=MOST_CHANNELS)
        sparse = f.object("sparse_attention_config")
        has_release_form = bool(sparse.values)
        if not has_release_form and "index_head_dim" not in text:
            raise ConfigError(
                f"{where}: 'sparse_attention_config' is missing or empty; without it nothing says which layers are "
                "sparse, and a model trained sparse must not run dense"
            )
        index = _index_sizes(sparse, f, layers, has_release_form)
        config = MiniMaxM3Config(
            vocab_size=f.positive("vocab_size"),
            hidden_size=f.positive("hidden_size"),
            num_layers=layers,
            num_q_heads=f.positive("num_attention_heads"),
            num_kv_heads=f.positive("num_key_value_heads"),
            head_dim=head_dim,
            **_rotary(f, head_dim, where),
            rms_norm_eps=f.get("rms_norm_eps", float),
            context_length=f.positive("max_position_embeddings"),
            dense_intermediate_size=f.positive("dense_intermediate_size"),
            expert_intermediate_size=f.positive("intermediate_size"),
            shared_intermediate_size=f.positive("shared_intermediate_size"),
            num_experts=f.positive("num_local_experts"),
            num_experts_per_token=f.positive("num_experts_per_tok"),
            routed_scaling_factor=f.get("routed_scaling_factor", float),
            swiglu_alpha=f.get("swiglu_alpha", float),
            swiglu_limit=f.get("swiglu_limit", float),
            moe=_layer_list(f, "moe_layer_freq", "mlp_layer_types", {"sparse": True, "dense": False}, layers),
            tie_embeddings=f.get("tie_word_embeddings", bool, False),
            **index,
        )
        f.done(ignored=_MTP_KEYS | _TRAINING_KEYS)
        return config._checked(where)

    @staticmethod
    def from_gguf(metadata: Mapping[str, Any], where: str) -> MiniMaxM3Config:
        """Reads GGUF metadata of architecture "minimax-m3". Every key is demanded: a default would be silently wrong.

        GGUF has no gate constants and no layer lists: they are 1.702 and 7, and layers are sparse with
        experts from `leading_dense_block_count` on.
        """
        f = Fields({k[11:]: v for k, v in metadata.items() if k.startswith("minimax-m3.")}, where)
        f.require("expert_gating_func", [2])
        f.require("expert_weights_norm", [True])
        layers, lead = f.positive("block_count", most=MOST_LAYERS), f.get("leading_dense_block_count", int)
        if not 0 <= lead <= layers:
            raise ConfigError(f"{where}: 'leading_dense_block_count' is {lead}; the model has {layers} layers")
        head_dim = f.positive("attention.key_length", most=MOST_CHANNELS)
        expert = f.positive("expert_feed_forward_length")
        f.require("attention.value_length", [head_dim])
        flags = (False,) * lead + (True,) * (layers - lead)
        config = MiniMaxM3Config(
            vocab_size=f.positive("vocab_size", len(Fields(metadata, where).get("tokenizer.ggml.tokens", list, []))),
            hidden_size=f.positive("embedding_length"),
            num_layers=layers,
            num_q_heads=f.positive("attention.head_count"),
            num_kv_heads=f.positive("attention.head_count_kv"),
            head_dim=head_dim,
            rotary_dim=f.positive("rope.dimension_count"),
            rope_theta=f.get("rope.freq_base", float),
            rms_norm_eps=f.get("attention.layer_norm_rms_epsilon", float),
            context_length=f.positive("context_length"),
            dense_intermediate_size=f.positive("feed_forward_length"),
            expert_intermediate_size=expert,
            shared_intermediate_size=expert * f.positive("expert_shared_count"),
            num_experts=f.positive("expert_count"),
            num_experts_per_token=f.positive("expert_used_count"),
            routed_scaling_factor=f.get("expert_weights_scale", float),
            swiglu_alpha=1.702,
            swiglu_limit=7.0,
            index_dim=f.positive("attention.indexer.key_length", most=MOST_CHANNELS),
            num_index_heads=f.positive("attention.indexer.head_count"),
            block_tokens=f.positive("attention.indexer.block_size"),
            topk=f.positive("attention.indexer.top_k"),
            local_blocks=f.positive("attention.indexer.local_blocks"),
            init_blocks=0,
            sparse_attention=flags,
            moe=flags,
            tie_embeddings=False,
        )
        f.done()
        return config._checked(where)

    def _checked(self, where: str) -> MiniMaxM3Config:
        problems = [
            f"{name} is {getattr(self, name)}; it must be a positive number"
            for name in ("rope_theta", "rms_norm_eps", "routed_scaling_factor", "swiglu_alpha", "swiglu_limit")
            if not 0 < getattr(self, name) < 1e12
        ]
        if self.rms_norm_eps >= 1:
            problems.append(f"rms_norm_eps is {self.rms_norm_eps}; it must be below 1")
        if sum(self.moe) * self.num_experts > MOST_EXPERTS:
            problems.append(f"{sum(self.moe)} layers of {self.num_experts} experts; at most {MOST_EXPERTS} are read")
        if self.num_q_heads % self.num_kv_heads:
            problems.append(f"{self.num_q_heads} query heads are no multiple of {self.num_kv_heads} KV heads")
        if any(self.sparse_attention) and self.num_index_heads != self.num_kv_heads:
            problems.append(
                f"{self.num_index_heads} index heads, but each of {self.num_kv_heads} KV heads needs its own"
            )
        if self.rotary_dim % 2 or self.rotary_dim > min(self.head_dim, self.index_dim):
            problems.append(f"rotary_dim {self.rotary_dim} must be even, and at most head_dim and index_dim")
        if self.block_tokens % 16:
            problems.append(f"block size {self.block_tokens} must be a multiple of 16")
        if not 1 <= self.local_blocks + self.init_blocks <= self.topk:
            problems.append(
                f"{self.local_blocks} local and {self.init_blocks} first blocks must fit into top-{self.topk}"
            )
        if self.num_experts_per_token > self.num_experts:
            problems.append(f"{self.num_experts_per_token} experts a token, but only {self.num_experts} experts")
        if problems:
            raise ConfigError(f"{where}: " + "; ".join(problems))
        return self


_FIXED: dict[str, list[Any]] = {
    "hidden_act": ["swigluoai", "silu"],  # transformers saves "silu" and computes the clamped gate
    "scoring_func": ["sigmoid"],
    "use_routing_bias": [True],
    "use_qk_norm": [True],
    "qk_norm_type": ["per_head"],
    "use_gemma_norm": [True],
    "attention_output_gate": [False],
    "attention_bias": [False],
    "attention_dropout": [0, 0.0],
    "rope_scaling": [],
    "sliding_window": [],
    "n_shared_experts": [1, 2, 3, 4],  # the width is shared_intermediate_size; the count itself adds nothing
    "vision_config": [],
}


def _index_sizes(sparse: Fields, text: Fields, layers: int, release_form: bool) -> dict[str, Any]:
    """The index branch, from sparse_attention_config or from transformers' flat keys."""
    if not release_form:
        return {
            "index_dim": text.positive("index_head_dim", most=MOST_CHANNELS),
            "num_index_heads": text.positive("index_n_heads"),
            "block_tokens": text.positive("index_block_size"),
            "topk": text.positive("index_topk_blocks"),
            "local_blocks": text.positive("index_local_blocks"),
            "init_blocks": 0,
            "sparse_attention": _layer_list(
                text, None, "layer_types", {"minimax_m3_sparse": True, "full_attention": False}, layers
            ),
        }
    sparse.require("use_sparse_attention", [True])
    sparse.require("sparse_score_type", ["max"])
    flags = sparse.flags("sparse_attention_freq", layers)
    if flags is None:
        raise ConfigError(
            f"{sparse.where}: 'sparse_attention_freq' is missing; without it nothing says which layers are sparse"
        )
    disabled = sparse.flags("sparse_disable_index_value", layers)
    if disabled is not None and any(s and not d for s, d in zip(flags, disabled, strict=True)):
        raise ConfigError(f"{sparse.where}: an index value branch (sparse_disable_index_value 0) is not supported")
    sizes = {
        "index_dim": sparse.positive("sparse_index_dim", most=MOST_CHANNELS),
        "num_index_heads": sparse.positive("sparse_num_index_heads"),
        "block_tokens": sparse.positive("sparse_block_size"),
        "topk": sparse.positive("sparse_topk_blocks"),
        "local_blocks": sparse.positive("sparse_local_block"),
        "init_blocks": sparse.get("sparse_init_block", int, 0),
        "sparse_attention": flags,
    }
    sparse.done()
    # transformers' form of the same facts may stand beside; it must not contradict.
    for flat, name in (
        ("index_head_dim", "index_dim"),
        ("index_n_heads", "num_index_heads"),
        ("index_block_size", "block_tokens"),
        ("index_topk_blocks", "topk"),
        ("index_local_blocks", "local_blocks"),
    ):
        text.require(flat, [sizes[name]])
    if text.optional("layer_types") is not None:
        other = _layer_list(text, None, "layer_types", {"minimax_m3_sparse": True, "full_attention": False}, layers)
        if other != flags:
            raise ConfigError(f"{text.where}: 'layer_types' and 'sparse_attention_freq' contradict each other")
    return sizes


def _layer_list(
    f: Fields, flags_key: str | None, types_key: str, types: dict[str, bool], layers: int
) -> tuple[bool, ...]:
    flags = None if flags_key is None else f.flags(flags_key, layers)
    names = f.optional(types_key)
    if names is not None:
        kinds = list(types)  # in a list anything may be looked for
        if not isinstance(names, list) or len(names) != layers or any(n not in kinds for n in names):
            raise ConfigError(f"{f.where}: {types_key!r} must list {layers} of {sorted(types)}; it is {quoted(names)}")
        named = tuple(types[n] for n in names)
        if flags is not None and flags != named:
            raise ConfigError(f"{f.where}: {flags_key!r} and {types_key!r} contradict each other")
        return named
    if flags is None:
        known = types_key if flags_key is None else f"{flags_key!r} or {types_key!r}"
        raise ConfigError(f"{f.where}: {known} is missing; without it the layers' kinds are unknown")
    return flags


def _rotary(f: Fields, head_dim: int, where: str) -> dict[str, Any]:
    """rotary_dim and theta, which are told up to three times; contradictions are errors."""
    rope = f.object("rope_parameters")
    rope.require("rope_type", ["default"])
    theta = f.get("rope_theta", float, rope.maybe("rope_theta", float))
    factor = f.maybe("partial_rotary_factor", float) or rope.maybe("partial_rotary_factor", float)
    if factor is not None and not 0 < factor <= 1:
        raise ConfigError(f"{where}: partial_rotary_factor is {factor}; it must be above 0 and at most 1")
    rotary_dim = f.positive("rotary_dim", None if factor is None else int(head_dim * factor))
    if factor is not None and int(head_dim * factor) != rotary_dim:
        raise ConfigError(
            f"{where}: rotary_dim is {rotary_dim}, but partial_rotary_factor {factor} of head_dim {head_dim} "
            f"is {int(head_dim * factor)}"
        )
    return {"rotary_dim": rotary_dim, "rope_theta": theta}
