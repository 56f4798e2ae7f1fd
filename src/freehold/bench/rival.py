"""The rival of the model suite: whether it can run here, and the settings with which it is fastest."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from freehold.bench.workers import Worker
from freehold.loading.checkpoint import Checkpoint

INSTALL = "pip install 'freehold[rivals]'"


@dataclass(frozen=True, slots=True)
class RivalSettings:
    """batch_tokens: llama.cpp's n_batch and n_ubatch."""

    batch_tokens: int
    flash_attention: bool

    def __str__(self) -> str:
        return f"flash attention {'on' if self.flash_attention else 'off'}, batches of {self.batch_tokens}"


@dataclass(frozen=True, slots=True)
class Obstacle:
    """Why there is no rival. cell: what the table shows in place of its figures. reason: a sentence."""

    cell: str
    reason: str


def obstacle(rival: str, checkpoint: Checkpoint) -> Obstacle | None:
    """What keeps the rival ("llama.cpp" or "none") from running this checkpoint; None if nothing does."""
    if rival == "none":
        return Obstacle("-", "No rival was asked for.")
    if importlib.util.find_spec("llama_cpp") is None:
        return Obstacle(
            "not installed", f"llama.cpp is not installed; {INSTALL} compiles it for this machine, then run this again."
        )
    if checkpoint.format != "gguf":
        return Obstacle(
            "not readable",
            f"llama.cpp reads GGUF files only, and {checkpoint.path} is a {checkpoint.format} checkpoint.",
        )
    return None


def candidates(architecture: str, longest_prompt: int) -> list[RivalSettings]:
    """The settings worth trying, llama.cpp's recommended ones first.

    Without flash attention, llama.cpp computes MiniMax-M3's sparse layers densely: another model, so not tried.
    """
    found = [RivalSettings(512, True)]
    if longest_prompt > 512:
        found.append(RivalSettings(2048, True))
    if architecture != "minimax-m3":
        found += [RivalSettings(settings.batch_tokens, False) for settings in found]
    return found


@dataclass(frozen=True, slots=True)
class Trial:
    """How long one request took with these settings, prefill and decoding together."""

    settings: RivalSettings
    seconds: float

    def as_json(self) -> dict[str, Any]:
        """The settings, and "seconds"."""
        return {**asdict(self.settings), "seconds": self.seconds}


def try_candidates(
    tried: Sequence[RivalSettings],
    load: dict[str, Any],
    prompts: Sequence[Sequence[int]],
    new_tokens: int,
    *,
    worker: Callable[[str], Worker] = Worker,
) -> list[Trial]:
    """Runs one request for each setting in a process of its own, the first prompt to warm up and the last for the time.

    load: the arguments of the side's `load` besides the settings. The fastest comes first.
    """
    trials = []
    for settings in tried:
        with worker("llama.cpp") as running:
            running.call("load", **load, **asdict(settings))
            for prompt in prompts:
                answer = running.call("answer", prompt=list(prompt), new_tokens=new_tokens)
        trials.append(Trial(settings, answer["first_token_seconds"] + answer["decode_seconds"]))
    return sorted(trials, key=lambda trial: trial.seconds)
