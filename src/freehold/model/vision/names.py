"""The names of the vision weights on disk, in the release's safetensors."""

from __future__ import annotations

from typing import TYPE_CHECKING

from freehold.model.layers import Linear
from freehold.model.vision.tower import Layer, LayerNorm
from freehold.model.weights import Source

if TYPE_CHECKING:
    from freehold.model.vision.encoder import VisionEncoder

PARTS = ("vision_tower.", "multi_modal_projector.", "patch_merge_mlp.")
"""What every name begins with, one for each part."""

_TOWER = "vision_tower.vision_model."


def sources(encoder: VisionEncoder) -> list[Source]:
    """Every weight of the tower and its projector, and where it comes from."""
    c = encoder.config
    tower, projector = encoder.tower, encoder.projector
    kernel = (c.hidden_size, 3, c.temporal_patch_size, c.patch_size, c.patch_size)
    found = [Source(f"{_TOWER}embeddings.patch_embedding.weight", kernel, tower.patch_embedding.load)]
    found += _pair(f"{_TOWER}pre_layrnorm", tower.first_norm, (c.hidden_size,))
    for number, layer in enumerate(tower.layers):
        assert isinstance(layer, Layer)
        found += _layer(f"{_TOWER}encoder.layers.{number}.", layer, c.hidden_size, c.intermediate_size)
    merged = c.out_size * c.merge_size**2
    found += _pair("multi_modal_projector.linear_1", projector.linear_1, (c.projector_size, c.hidden_size))
    found += _pair("multi_modal_projector.linear_2", projector.linear_2, (c.out_size, c.projector_size))
    found += _pair("patch_merge_mlp.linear_1", projector.merge_1, (c.projector_size, merged))
    found += _pair("patch_merge_mlp.linear_2", projector.merge_2, (c.out_size, c.projector_size))
    return found


def _layer(root: str, layer: Layer, hidden: int, inner: int) -> list[Source]:
    attention = layer.attention
    square = (hidden, hidden)
    return [
        *_pair(f"{root}layer_norm1", layer.attention_norm, (hidden,)),
        *_pair(f"{root}self_attn.q_proj", attention.q_proj, square),
        *_pair(f"{root}self_attn.k_proj", attention.k_proj, square),
        *_pair(f"{root}self_attn.v_proj", attention.v_proj, square),
        *_pair(f"{root}self_attn.out_proj", attention.out_proj, square),
        *_pair(f"{root}layer_norm2", layer.feed_forward_norm, (hidden,)),
        *_pair(f"{root}mlp.fc1", layer.fc1, (inner, hidden)),
        *_pair(f"{root}mlp.fc2", layer.fc2, (hidden, inner)),
    ]


def _pair(name: str, layer: Linear | LayerNorm, shape: tuple[int, ...]) -> list[Source]:
    """A layer's weight and bias."""
    return [
        Source(f"{name}.weight", shape, layer.load),
        Source(f"{name}.bias", shape[:1], layer.load_bias),
    ]
