"""What a disclosure says of weights, computed from their files: where `loading` and `governance` meet."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from freehold.governance.disclosure.weights import MeasuredWeights


def measured(path: Path) -> MeasuredWeights:
    """The digests and counts of a checkpoint, a directory or a .gguf file. Reads every byte that it has not seen yet.

    Raises LoadError for what is no checkpoint.
    """
    from freehold.governance.disclosure.weights import MeasuredWeights, WeightsFile
    from freehold.loading.checkpoint import open_checkpoint
    from freehold.loading.content_digest import content_digest, file_digests

    with open_checkpoint(path) as checkpoint:
        digests = file_digests(checkpoint)
        types = Counter[str]()
        for tensor in checkpoint.tensors.values():
            types[tensor.dtype] += tensor.numel
        return MeasuredWeights(
            digest=content_digest(checkpoint),
            parameters=sum(types.values()),
            format=f"{checkpoint.format}: {', '.join(name for name, _ in types.most_common())}",
            files=tuple(
                WeightsFile(file.name, file.stat().st_size, digest)
                for file, digest in zip(checkpoint.files, digests, strict=True)
            ),
        )
