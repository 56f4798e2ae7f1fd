"""What a quantisation costs: errors of the weights, and what a text says of the whole model."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from freehold.core.errors import ArgumentError, FreeholdError
from freehold.core.nats import MOST_NATS
from freehold.engine.llm import LLM
from freehold.loading.checkpoint import Checkpoint
from freehold.model.base import BlockObserver
from freehold.model.index_branches import NONE
from freehold.model.registry import context_length, load_tokenizer
from freehold.quantize.journal import Done
from freehold.quantize.values import Error

_LAYER = re.compile(r"(?:layers|blk)\.(\d+)\.")
_REST = "outside the layers"


def layer_errors(done: Sequence[Done]) -> dict[str, Error]:
    """The error of each layer's codes, "layer N" or the rest, in order; layers without codes are left out."""
    found: dict[tuple[int, str], Error] = {}
    for one in done:
        if one.energy == 0.0:
            continue
        match = _LAYER.search(one.name)
        key = (int(match[1]), f"layer {match[1]}") if match else (-1, _REST)
        error = found.setdefault(key, Error())
        error.squared += one.squared
        error.energy += one.energy
    return {name: found[number, name] for number, name in sorted(found)}


@dataclass(frozen=True, slots=True)
class Reading:
    """What a model makes of a text.

    model: which one. log_likelihoods: (tokens - 1,) of each token after the first. blocks: of each sparse layer the
    chosen blocks, (tokens, num_index_heads, topk).
    """

    model: Path
    log_likelihoods: torch.Tensor
    blocks: dict[int, torch.Tensor]

    @property
    def perplexity(self) -> float:
        """exp of the mean negative log-likelihood. Raises FreeholdError if no float holds it."""
        nats = -float(self.log_likelihoods.double().mean())
        if not nats < MOST_NATS:  # a NaN too
            raise FreeholdError(
                f"{self.model}: a token of the text costs {nats:.4g} nats, for which there is no perplexity; such a "
                "model predicts nothing; what was quantised is written all the same"
            )
        return math.exp(nats)


def first_tokens(checkpoint: Checkpoint, text: str, most: int) -> list[int]:
    """The text's first tokens, for `read_tokens`: known before hours go into the model that is to read them.

    Raises ArgumentError if there are not two, or more than the model was made for; TokenizerError as loading.
    """
    ids = load_tokenizer(checkpoint).encode(text)[:most]
    if len(ids) < 2:
        raise ArgumentError(f"the text has {len(ids)} tokens; it needs two or more to be predicted")
    longest = context_length(checkpoint)
    if len(ids) > longest:
        raise ArgumentError(
            f"the text is to be read over {len(ids)} tokens; the model was made for {longest}: take fewer"
        )
    return ids


def read_tokens(model: Path, ids: Sequence[int]) -> Reading:
    """Reads two or more tokens with a model, loaded for it.

    A branch beside a model that was trained dense stays out: it was made for those weights, and the quantised ones have
    none, so that its cost would be taken for that of the codes.
    """
    with LLM(model, index=NONE) as llm:
        blocks: dict[int, list[torch.Tensor]] = {}

        def watch(_start: int) -> BlockObserver:
            def note(layer: int, chosen: torch.Tensor) -> None:
                blocks.setdefault(layer, []).append(chosen.clone())

            return note

        logits = llm.engine.score(ids, observer=watch)
    likely = torch.log_softmax(logits[:-1].double(), dim=-1)
    wanted = torch.tensor(ids[1:])
    chosen = {layer: torch.cat(parts) for layer, parts in blocks.items()}
    return Reading(model, likely.gather(1, wanted[:, None])[:, 0].float(), chosen)


def agreement(some: Reading, others: Reading) -> float | None:
    """Of the blocks that `some` chose, the part that `others` chose for the same token and head too; None without
    sparse layers."""
    same = total = 0
    for layer, chosen in some.blocks.items():
        other = others.blocks[layer]
        there = chosen >= 0
        found = (chosen[..., :, None] == other[..., None, :]).any(-1) & there
        same, total = same + int(found.sum()), total + int(there.sum())
    return same / total if total else None
