"""The whole way from frames to the rows that stand in a prompt."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor, nn

from freehold.core.errors import ConfigError
from freehold.core.visuals import Frames
from freehold.loading.checkpoint import Checkpoint
from freehold.model.base import last_of
from freehold.model.compute import Compute
from freehold.model.minimax_m3_mmproj import Mmproj
from freehold.model.vision.config import VisionConfig
from freehold.model.vision.names import PARTS, sources
from freehold.model.vision.patches import patch_rows
from freehold.model.vision.processor_file import check_processor
from freehold.model.vision.projector import Projector
from freehold.model.vision.rope import axis_tables
from freehold.model.vision.tower import Tower
from freehold.model.weights import Source, load_weights


class VisionEncoder(nn.Module):
    """Frames to embeddings. It looks at one image or segment at a time, so that its features never depend on what
    else there is."""

    def __init__(self, config: VisionConfig, compute: Compute) -> None:
        super().__init__()
        self.config, self.compute = config, compute
        self.tower = Tower(config, compute)
        self.projector = Projector(config, compute)

    def steps(self, frames: Frames) -> Iterator[Tensor | None]:
        """See `Vision.steps`: a pause after each half of a layer."""
        with torch.no_grad():
            cos, sin = axis_tables(self.config, self.compute, frames.grid)
            h = torch.empty(0)
            # A generator's body may not keep gradients off between its steps: they would be off for the caller.
            steps = self.tower.steps(patch_rows(frames, self.config), cos, sin)
        while True:
            with torch.no_grad():
                following = next(steps, None)
                if following is None:
                    features: Tensor = self.projector(h)
                    break
                h = following
            yield None
        yield features

    def forward(self, frames: Frames) -> Tensor:
        """(frames.num_tokens, out_size) float32."""
        return last_of(self.steps(frames))

    @staticmethod
    def from_checkpoint(checkpoint: Checkpoint, compute: Compute) -> VisionEncoder | None:
        """The encoder of a full checkpoint in the release's layout; None if the checkpoint holds no vision weights.

        Raises ConfigError if there are weights without a configuration, or one that is not supported, or files that ask
        for images to be prepared in another way;
        TensorMismatchError if some are missing, unknown, misshapen or mistyped.
        """
        encoder = VisionEncoder.empty(checkpoint, compute)
        if encoder is not None:
            wanted, ignored = encoder.sources()
            load_weights(checkpoint, wanted, ignored=ignored)
        return encoder

    @staticmethod
    def empty(checkpoint: Checkpoint, compute: Compute) -> VisionEncoder | None:
        """The encoder without its weights; None if the checkpoint holds none. Raises ConfigError."""
        if checkpoint.format != "safetensors" or not any(name.startswith(PARTS) for name in checkpoint.tensors):
            return None
        where = f"{checkpoint.path}/config.json"
        if checkpoint.config.get("vision_config") is None:
            raise ConfigError(f"{where}: 'vision_config' is missing, but the checkpoint holds the weights of a tower")
        config = VisionConfig.from_hf(checkpoint.config, where)
        check_processor(checkpoint.path, config)
        return VisionEncoder(config, compute)

    def sources(self) -> tuple[list[Source], Callable[[str], bool]]:
        """Every weight and where it comes from; and which other names are not its own."""
        return sources(self), lambda name: not name.startswith(PARTS)

    @staticmethod
    def from_mmproj(mmproj: Mmproj, compute: Compute, tokens: Mapping[str, int], width: int) -> VisionEncoder:
        """The encoder of a file of its own. tokens: `image_token_index` and `video_token_index`; width: of the text
        model.

        Raises ConfigError if the file belongs to a text model of another width or is not supported, TensorMismatchError
        as `from_checkpoint`.
        """
        config = VisionConfig.from_hf({**mmproj.config, **tokens}, str(mmproj.path))
        if config.out_size != width:
            raise ConfigError(
                f"{mmproj.path}: makes rows of {config.out_size} numbers, and the text model takes {width}; it belongs"
                " to another model"
            )
        encoder = VisionEncoder(config, compute)
        load_weights(mmproj, sources(encoder))
        return encoder
