"""The parts of a model, and which part a tensor's name belongs to."""

from __future__ import annotations

import re
from functools import cache
from typing import Literal, get_args

Part = Literal[
    "embeddings",
    "attention",
    "index",
    "router",
    "routed experts",
    "shared experts",
    "dense MLP",
    "norms",
    "head",
    "vision",
    "other",
]
PARTS: tuple[Part, ...] = get_args(Part)
"""In the order in which tables show them. "other" is what no forward pass of the text model uses."""

# The first that matches wins. Each line holds the names of safetensors, then those of GGUF.
_PATTERNS: tuple[tuple[Part, str], ...] = (
    ("vision", r"^(vision_tower|multi_modal_projector|patch_merge_mlp|v|mm)\."),
    ("other", r"(^|\.)mtp\.|rotary_emb\.inv_freq$|^rope_freqs\."),
    ("embeddings", r"(^|\.)embed_tokens\.|^token_embd\."),
    ("head", r"(^|\.)lm_head\.|^output\."),
    ("index", r"\.self_attn\.index_[qk]_(proj|norm)\.|\.indexer\."),
    ("router", r"\.block_sparse_moe\.(gate\.|e_score_correction_bias)|\.ffn_gate_inp\.|\.exp_probs_b\."),
    ("routed experts", r"\.experts\.\d+\.|\.ffn_(gate|up|down)_exps\."),
    ("shared experts", r"\.shared_experts\.|\.ffn_(gate|up|down)_shexp\."),
    ("attention", r"\.self_attn\.[qkvo]_(proj|norm)\.|\.attn_([qkv]|output|[qk]_norm)\."),
    ("dense MLP", r"\.mlp\.(gate|up|down)_proj\.|\.ffn_(gate|up|down)\."),
    ("norms", r"layernorm\.|(^|\.)norm\.|\.(attn|ffn)_norm\.|^output_norm\."),
)
_NUMBER = re.compile(r"\d+")
_COMPILED = tuple((part, re.compile(pattern)) for part, pattern in _PATTERNS)


def part_of(name: str) -> Part:
    """The part that the tensor `name`, of safetensors or GGUF, belongs to; "other" for names that no model here has."""
    return _part_of_kind(_NUMBER.sub("0", name))  # M3 has thousands of tensors, but few kinds of them


@cache
def _part_of_kind(name: str) -> Part:
    return next((part for part, pattern in _COMPILED if pattern.search(name)), "other")
