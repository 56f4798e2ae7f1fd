"""The rivals of the model suite: whether they can run here, and the settings with which they are fastest."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from freehold.bench.workers import Worker
from freehold.loading.checkpoint import Checkpoint
from freehold.model.index_branches import index_for
from freehold.model.registry import family_of

INSTALL = "pip install 'freehold[rivals]'"


@dataclass(frozen=True, slots=True)
class TransformersSettings:
    """dtype: what the model computes in. chunk_tokens: prompt tokens of one pass; 0: all of them."""

    dtype: str
    chunk_tokens: int

    def __str__(self) -> str:
        return f"{self.dtype}, {f'chunks of {self.chunk_tokens}' if self.chunk_tokens else 'the prompt in one pass'}"


@dataclass(frozen=True, slots=True)
class RivalSettings:
    """Of llama.cpp. batch_tokens: its n_batch and n_ubatch."""

    batch_tokens: int
    flash_attention: bool

    def __str__(self) -> str:
        return f"flash attention {'on' if self.flash_attention else 'off'}, batches of {self.batch_tokens}"


@dataclass(frozen=True, slots=True)
class DenseSettings:
    """Of Freehold itself, reading every block where our side reads chosen ones; otherwise the same as ours."""

    kv_dtype: str
    activations: str
    allow_dense: bool = True

    def __str__(self) -> str:
        return "every block read"


Settings = RivalSettings | TransformersSettings | DenseSettings


@dataclass(frozen=True, slots=True)
class Obstacle:
    """Why there is no rival. cell: what the table shows in place of its figures. reason: a sentence."""

    cell: str
    reason: str


def obstacle(rival: str, checkpoint: Checkpoint, index: str) -> Obstacle | None:
    """What keeps the rival from running this checkpoint; None if nothing does. index: as in `EngineConfig`."""
    if rival == "none":
        return Obstacle("-", "No rival was asked for.")
    if rival == "dense":
        return _obstacle_of_dense(checkpoint, index)
    if rival == "transformers":
        return _obstacle_of_transformers(checkpoint)
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


def _obstacle_of_transformers(checkpoint: Checkpoint) -> Obstacle | None:
    if importlib.util.find_spec("transformers") is None:
        return Obstacle("not installed", f"transformers is not installed; {INSTALL}, then run this again.")
    if checkpoint.format == "gguf":
        return Obstacle(
            "not readable", f"transformers is measured on directories of safetensors, and {checkpoint.path} is GGUF."
        )
    return None


def _obstacle_of_dense(checkpoint: Checkpoint, index: str) -> Obstacle | None:
    if family_of(checkpoint.config, checkpoint.format, str(checkpoint.path)) == "m3":
        return None
    branch = index_for(checkpoint, index)
    if branch is not None:
        branch.checkpoint.close()
        return None
    return Obstacle("the same", f"{checkpoint.path} reads every block; `freehold convert` makes a branch for --index.")


def candidates_of_transformers(longest_prompt: int) -> list[TransformersSettings]:
    """Both types that a processor computes in, and a prompt at once or in pieces."""
    chunks = (0, 2048) if longest_prompt > 2048 else (0,)
    return [TransformersSettings(dtype, chunk) for chunk in chunks for dtype in ("bfloat16", "float32")]


def candidates(architecture: str, longest_prompt: int) -> list[RivalSettings]:
    """The settings of llama.cpp worth trying, its recommended ones first.

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
    """How long one request of each prompt length took with these settings, prefill and decoding together."""

    settings: Settings
    seconds: dict[int, float]

    def as_json(self) -> dict[str, Any]:
        """The settings, and "seconds" by prompt length."""
        return {**asdict(self.settings), "seconds": self.seconds}


def try_candidates(
    rival: str,
    tried: Sequence[Settings],
    load: dict[str, Any],
    prompts: Sequence[Sequence[int]],
    new_tokens: int,
    *,
    worker: Callable[[str], Worker] = Worker,
) -> list[Trial]:
    """Runs one request of each prompt for each setting, in a process of its own; the first prompt is to warm up.

    load: the arguments of the side's `load` besides the settings.
    """
    trials = []
    for settings in tried:
        seconds = {}
        with worker(rival) as running:
            running.call("load", **load, **asdict(settings))
            for number, prompt in enumerate(prompts):
                answer = running.call("answer", prompt=list(prompt), new_tokens=new_tokens)
                if number > 0:
                    seconds[len(prompt)] = answer["first_token_seconds"] + answer["decode_seconds"]
        trials.append(Trial(settings, seconds))
    return trials


def fastest(trials: Sequence[Trial], length: int) -> Settings:
    """The settings that were fastest with prompts of that length."""
    return min(trials, key=lambda trial: trial.seconds[length]).settings
