"""What a checkpoint's own files say about preparing images: it must be what is done here."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from freehold.core.errors import ConfigError
from freehold.loading.json_object import read_json_object
from freehold.model.vision.config import VisionConfig
from freehold.model.vision.patches import MEAN, STD
from freehold.model.vision.resize import IMAGE_AREA, VIDEO_AREA, Area

_BICUBIC = 3
_WRONG_SIZE = [672, 672]
"""The release's files say so, and nothing has ever heeded it."""


def check_processor(directory: Path, config: VisionConfig) -> None:
    """Compares preprocessor_config.json, video_preprocessor_config.json and processor_config.json, where they are, with
    what is done here. Raises ConfigError for a field that would make other pixels, CorruptFileError for broken JSON.

    Fields that transformers does not heed are not looked at.
    """
    for name, part, area in (
        ("preprocessor_config.json", None, IMAGE_AREA),
        ("video_preprocessor_config.json", None, VIDEO_AREA),
        ("processor_config.json", "image_processor", IMAGE_AREA),
        ("processor_config.json", "video_processor", VIDEO_AREA),
    ):
        path = directory / name
        if not path.is_file():
            continue
        values = read_json_object(path)
        found = values if part is None else values.get(part)
        if isinstance(found, Mapping):
            _compare(found, _wanted(config, area), str(path), video=area is VIDEO_AREA)


def _wanted(config: VisionConfig, area: Area) -> dict[str, list[Any]]:
    """Field -> the values that mean what is done here."""
    return {
        "do_resize": [True],
        "do_rescale": [True],
        "do_normalize": [True],
        "do_convert_rgb": [True],
        "resample": [_BICUBIC],
        "rescale_factor": [1 / 255],
        "image_mean": [list(MEAN)],
        "image_std": [list(STD)],
        "patch_size": [config.patch_size],
        "temporal_patch_size": [config.temporal_patch_size],
        "merge_size": [config.merge_size],
        "min_pixels": [area.least],
        "max_pixels": [area.most],
        "size": [_WRONG_SIZE, {"shortest_edge": area.least, "longest_edge": area.most}],
        "vision_segment_max_frames": [config.segment_frames],
    }


def _compare(values: Mapping[str, Any], wanted: Mapping[str, list[Any]], where: str, *, video: bool) -> None:
    for name, meant in wanted.items():
        value = values.get(name)
        if value is None or (video and name == "size"):  # videos go by min_pixels and max_pixels
            continue
        if not any(_same(value, one) for one in meant):
            raise ConfigError(
                f"{where}: {name!r} is {value!r}; images are prepared with {meant[-1]!r} here, and the model would see "
                "something else than its makers meant"
            )


def _same(value: Any, wanted: Any) -> bool:
    """Equal, numbers within rounding."""
    if isinstance(wanted, float) and isinstance(value, (int, float)):
        return abs(value - wanted) <= 1e-6 * abs(wanted)
    if isinstance(wanted, list) and isinstance(value, list):
        return len(value) == len(wanted) and all(map(_same, value, wanted))
    return bool(value == wanted)
