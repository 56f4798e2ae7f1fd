"""transformers' own processor of MiniMax-M3, in a process of its own: what it makes of image files, videos and texts.

Run as a program it reads one JSON object from its input and writes safetensors. It takes the real torchvision where
one can be imported, and the stand-in otherwise; that choice must not change the process that runs the tests.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from support.repository import ROOT


@dataclass(frozen=True, slots=True)
class Processed:
    """token_ids: of the text, expanded. pixels, grid: by kind ("image", "video"), as the model takes them."""

    token_ids: list[int]
    pixels: dict[str, torch.Tensor]
    grid: dict[str, torch.Tensor]

    def inputs(self) -> dict[str, torch.Tensor]:
        """Keyword arguments of the model, without the tokens."""
        given = {}
        if "image" in self.pixels:
            given |= {"pixel_values": self.pixels["image"], "image_grid_thw": self.grid["image"]}
        if "video" in self.pixels:
            given |= {"pixel_values_videos": self.pixels["video"], "video_grid_thw": self.grid["video"]}
        return given


def process(jobs: list[dict[str, Any]], tokenizer: Path, out: Path) -> list[Processed]:
    """One `Processed` for each job: {"text": ..., "images": [paths], "frames": [paths], "fps": number}; the last two
    are for at most one video, and may be left out."""
    given = json.dumps({"tokenizer": str(tokenizer), "jobs": jobs, "out": str(out)})
    done = subprocess.run(
        [sys.executable, "-m", "support.m3_processor"], input=given, capture_output=True, text=True, cwd=ROOT / "tests"
    )
    assert done.returncode == 0, done.stderr
    tensors = load_file(out)
    results = []
    for number in range(len(jobs)):
        mine = {name.partition(".")[2]: t for name, t in tensors.items() if name.startswith(f"{number}.")}
        kinds = [kind for kind in ("image", "video") if f"{kind}.pixels" in mine]
        results.append(
            Processed(
                mine["ids"].tolist(),
                {kind: mine[f"{kind}.pixels"] for kind in kinds},
                {kind: mine[f"{kind}.grid"] for kind in kinds},
            )
        )
    return results


def main() -> None:
    try:
        import torchvision  # noqa: F401
    except (ImportError, RuntimeError):
        from support.torchvision_stand_in import install

        install()
    given = json.load(sys.stdin)
    processor = _processor(given["tokenizer"])
    tensors: dict[str, torch.Tensor] = {}
    for number, job in enumerate(given["jobs"]):
        made = _processed(processor, job)
        tensors |= {f"{number}.{name}": tensor.contiguous() for name, tensor in made.items()}
    save_file(tensors, given["out"])


def _processor(directory: str) -> Any:
    from transformers import PreTrainedTokenizerFast
    from transformers.models.minimax_m3_vl.image_processing_minimax_m3_vl import MiniMaxM3VLImageProcessor
    from transformers.models.minimax_m3_vl.processing_minimax_m3_vl import MiniMaxM3VLProcessor
    from transformers.models.minimax_m3_vl.video_processing_minimax_m3_vl import MiniMaxM3VLVideoProcessor

    tokenizer = PreTrainedTokenizerFast(tokenizer_file=f"{directory}/tokenizer.json")
    return MiniMaxM3VLProcessor(
        image_processor=MiniMaxM3VLImageProcessor(), tokenizer=tokenizer, video_processor=MiniMaxM3VLVideoProcessor()
    )


def _processed(processor: Any, job: dict[str, Any]) -> dict[str, torch.Tensor]:
    import numpy as np
    from PIL import Image, ImageOps
    from transformers.video_utils import VideoMetadata

    def load_image(path: str) -> Image.Image:
        """As transformers' own function of this name, but for what is transparent: that one drops it before the
        processor, which lays it on white, sees it."""
        return ImageOps.exif_transpose(Image.open(path))

    extra: dict[str, Any] = {}
    if job.get("images"):
        extra["images"] = [load_image(path) for path in job["images"]]
    if job.get("frames"):
        frames = [np.asarray(load_image(path)) for path in job["frames"]]
        extra["videos"] = [np.stack(frames)]
        count, fps = len(frames), job["fps"]
        extra["video_metadata"] = [VideoMetadata(total_num_frames=count, fps=fps, frames_indices=list(range(count)))]
    out = processor(text=[job["text"]], return_tensors="pt", **extra)
    made = {"ids": out["input_ids"][0]}
    if "pixel_values" in out:
        made |= {"image.pixels": out["pixel_values"], "image.grid": out["image_grid_thw"]}
    if "pixel_values_videos" in out:
        made |= {"video.pixels": out["pixel_values_videos"], "video.grid": out["video_grid_thw"]}
    return made


if __name__ == "__main__":
    main()
