"""The sizes of MiniMax-M3's vision tower, read strictly from config.json."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from freehold.core.errors import ConfigError
from freehold.model.fields import MOST_LAYERS, Fields

_ROPE_AXES = 3
_MOST_PIXELS = 1024


@dataclass(frozen=True, slots=True)
class VisionConfig:
    """A tower of `num_layers` over patches of patch_size x patch_size pixels and temporal_patch_size frames, and a
    projector that makes one token of merge_size x merge_size patches.

    hidden_size, intermediate_size, num_heads: of the tower. projector_size: inside the projector. out_size: of the
        text model.
    segment_frames: most temporal patches that see each other; longer videos are cut into segments.
    token_ids: of the tokens that stand for rows of "image" and "video", where the configuration names them.
    """

    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    patch_size: int
    temporal_patch_size: int
    merge_size: int
    rope_theta: float
    layer_norm_eps: float
    projector_size: int
    out_size: int
    segment_frames: int
    token_ids: Mapping[str, int]

    @property
    def head_dim(self) -> int:
        """Width of a head."""
        return self.hidden_size // self.num_heads

    @property
    def patch_numbers(self) -> int:
        """Numbers that make a patch: channels, frames, rows, columns."""
        return 3 * self.temporal_patch_size * self.patch_size**2

    @property
    def factor(self) -> int:
        """Sides of an image are multiples of this many pixels: one token's side."""
        return self.patch_size * self.merge_size

    @property
    def axis_frequencies(self) -> int:
        """Rotary frequencies of each of the three axes."""
        return self.head_dim // _ROPE_AXES // 2

    @staticmethod
    def from_hf(values: Mapping[str, Any], where: str) -> VisionConfig:
        """Reads the outer configuration of config.json: the release's form, or the form that transformers saves.
        Raises ConfigError for what is missing, unknown, or changes the mathematics."""
        vision, text = values.get("vision_config"), values.get("text_config")
        if not isinstance(vision, Mapping) or not isinstance(text, Mapping):
            raise ConfigError(f"{where}: 'vision_config' and 'text_config' must both be objects for a model that sees")
        outer = Fields(values, where)
        for key, allowed in _OUTER_FIXED.items():
            outer.require(key, allowed)
        f = Fields(vision, f"{where}: vision_config")
        for key, allowed in _FIXED.items():
            f.require(key, allowed)
        merge = f.object("img_token_compression_config")
        merge.require("image_token_compression_method", ["patch_merge"])
        rope = f.object("rope_parameters")
        rope.require("rope_type", ["axial"])
        out_size = Fields(text, where).positive("hidden_size")
        f.require("projection_dim", [out_size])
        config = VisionConfig(
            hidden_size=f.positive("hidden_size"),
            intermediate_size=f.positive("intermediate_size"),
            num_layers=f.positive("num_hidden_layers", most=MOST_LAYERS),
            num_heads=f.positive("num_attention_heads"),
            patch_size=f.positive("patch_size", most=_MOST_PIXELS),
            temporal_patch_size=f.positive("temporal_patch_size", merge.maybe("temporal_patch_size", int)),
            merge_size=f.positive("spatial_merge_size", merge.maybe("spatial_merge_size", int), most=_MOST_PIXELS),
            rope_theta=f.get("rope_theta", float, rope.maybe("rope_theta", float)),
            layer_norm_eps=f.get("layer_norm_eps", float),
            projector_size=outer.positive("projector_hidden_size"),
            out_size=out_size,
            # transformers keeps it in its video processor, with this default.
            segment_frames=f.positive("vision_segment_max_frames", 4),
            token_ids={kind: _token(outer, kind) for kind in ("image", "video")},
        )
        merge.done()
        f.done(ignored=_IGNORED)
        return config._checked(where)

    def _checked(self, where: str) -> VisionConfig:
        if self.hidden_size % self.num_heads:
            raise ConfigError(f"{where}: {self.hidden_size} channels of the vision tower, but {self.num_heads} heads")
        if self.axis_frequencies < 1:
            raise ConfigError(f"{where}: heads of {self.head_dim} channels are too narrow for three rotary axes")
        return self


def _token(outer: Fields, kind: str) -> int:
    """transformers reads either name, and saves the first."""
    return outer.get(f"{kind}_token_index", int, outer.maybe(f"{kind}_token_id", int))


_OUTER_FIXED: dict[str, list[Any]] = {
    "projector_hidden_act": ["gelu"],
    "multimodal_projector_bias": [True],
    "vision_feature_layer": [-1],
    "vision_feature_select_strategy": ["full"],
    "process_image_mode": ["dynamic_res"],
}
_FIXED: dict[str, list[Any]] = {
    "num_channels": [3],
    "position_embedding_type": ["rope"],
    "rope_mode": ["3d"],
    "hidden_act": ["gelu"],
    "attention_dropout": [0, 0.0],
}
# image_size bounds nothing: positions are computed, not looked up. The vocabulary is a left-over of CLIP's.
_IGNORED = frozenset({"image_size", "vocab_size"})
