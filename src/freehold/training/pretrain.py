"""Training a MiniMax-M3 from scratch: dense warm-up, then sparse; balanced experts; killed and resumed with the same
bits; over several processes if there are some."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from freehold.core.errors import ArgumentError, CorruptFileError, FreeholdError
from freehold.model.minimax_m3_config import MiniMaxM3Config
from freehold.model.minimax_m3_release import release_config
from freehold.training.looking import NO_SOURCE
from freehold.training.m3_forward import NO_TARGET, Batch, Losses, M3Forward
from freehold.training.m3_weights import Weights, first_weights, is_bias, is_index
from freehold.training.places import check_out, check_work
from freehold.training.rows import Rows, batch_of
from freehold.training.schedule import check_rate, check_seed, rate_of
from freehold.training.whole_file import (
    MOMENTS,
    beside,
    check_kept,
    check_moments,
    damaged,
    load_state,
    save_state,
    save_whole,
    write_whole,
)

_BETAS = (0.9, 0.95)
_LAST = 0.1
"""What remains of the learning rate at the end."""
_STATE, _LOG, _WHAT = "state.safetensors", "losses.jsonl", "training.json"
_CARD = "card.json"


@dataclass(frozen=True, slots=True)
class PretrainSettings:
    """rows: of a step, over all processes. dense_steps: of the warm-up, in which attention is dense. index_rate: the
    learning rate of index branches; both go up over `warmup_steps` and down along a cosine. index_weight: of the
    branches' loss. exit_weight: of the loss that every layer but the last would have as the last one: earlier
    layers then learn what they can do alone, which a task of several steps may need. looking_weight: of
    the loss of the first and the last layer for not looking where the rows say. balance_rate: by how much a step
    moves the bias of an expert that got too much or too little. clip: the largest norm of the gradient. save_every:
    steps after which the state is kept."""

    steps: int
    rows: int
    dense_steps: int
    learning_rate: float = 3e-3
    index_rate: float = 3e-3
    warmup_steps: int = 50
    weight_decay: float = 0.1
    index_weight: float = 1.0
    exit_weight: float = 0.0
    looking_weight: float = 0.0
    balance_rate: float = 1e-3
    clip: float = 1.0
    save_every: int = 50
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "rows", "warmup_steps", "save_every"):
            if getattr(self, name) < 1:
                raise ArgumentError(f"{name} is {getattr(self, name)}; it must be at least 1")
        for name in ("learning_rate", "index_rate"):
            check_rate(name, getattr(self, name))
        if not 0 < self.clip < math.inf:
            raise ArgumentError(f"clip is {self.clip}; it must be a positive number")
        for name in ("dense_steps", "weight_decay", "index_weight", "exit_weight", "looking_weight", "balance_rate"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ArgumentError(f"{name} is {getattr(self, name)}; it must be a number from 0 on")
        check_seed(self.seed)

    def rate(self, highest: float, step: int) -> float:
        """The learning rate of a step, counted from 0, of weights whose highest it is."""
        return rate_of(highest, step, warmup_steps=self.warmup_steps, steps=self.steps, last=_LAST)


@dataclass(frozen=True, slots=True)
class Progress:
    """One step: losses in nats before it, the norm of the gradient, and the largest load of an expert / the mean."""

    step: int
    language: float
    looking: float
    index: float
    gradient: float
    imbalance: float


class Trainer:
    """A model in training. Its state is its weights, the optimiser's moments and the number of steps done."""

    def __init__(self, config: MiniMaxM3Config, rows: Rows, settings: PretrainSettings, work: Path) -> None:
        """work: directory of the state. Goes on where a run with the same description was.

        Raises ArgumentError if the directory holds the work of another run, or if rows cannot be shared evenly.
        """
        self.config, self.rows, self.settings, self.work = config, rows, settings, work
        self.rank, self.world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        if settings.rows % self.world:
            raise ArgumentError(f"{settings.rows} rows of a step cannot be shared by {self.world} processes")
        torch.use_deterministic_algorithms(True)
        self.forward = M3Forward(config)
        self.weights = {
            name: w.requires_grad_(not is_bias(name)) for name, w in first_weights(config, settings.seed).items()
        }
        self._learnt = [name for name, w in self.weights.items() if w.requires_grad]
        self._optimizer = self._make_optimizer()
        self.step = 0
        self._open_work()

    def _make_optimizer(self) -> torch.optim.AdamW:
        s, w = self.settings, self.weights
        index = [n for n in self._learnt if is_index(n)]
        decayed = [n for n in self._learnt if not is_index(n) and w[n].ndim == 2]
        plain = [n for n in self._learnt if not is_index(n) and w[n].ndim == 1]
        self._order = [*decayed, *plain, *index]
        groups: list[dict[str, Any]] = [
            {"params": [w[n] for n in names], "weight_decay": decay, "highest": rate, "lr": rate}
            for names, decay, rate in (
                (decayed, s.weight_decay, s.learning_rate), (plain, 0.0, s.learning_rate), (index, 0.0, s.index_rate),
            )
            if names
        ]  # fmt: skip
        return torch.optim.AdamW(groups, betas=_BETAS)

    # The state on the disk.

    def _open_work(self) -> None:
        told = json.dumps(self._description(), sort_keys=True)
        if self.rank == 0:
            check_work(self.work, _WHAT, told, "another training")
            self.work.mkdir(parents=True, exist_ok=True)
            write_whole(told, self.work / _WHAT)
        if (self.work / _STATE).exists():
            self._restore(self.work / _STATE)
        if self.rank == 0:
            self._cut_log()

    def _description(self) -> dict[str, Any]:
        # Several processes learn what one does but for the order of a sum: half of each would be bits of neither.
        several = {"processes": self.world} if self.world > 1 else {}
        rows, settings = self.rows.name, asdict(self.settings)
        return {"config": release_config(self.config), "rows": rows, "settings": settings, **several}

    def _cut_log(self) -> None:
        """Steps after the state was kept will be done, and told, again."""
        path = self.work / _LOG
        lines = path.read_bytes().split(b"\n")[: self.step] if path.exists() else []
        if len(lines) < self.step or b"" in lines:
            raise CorruptFileError(
                f"{path}: has fewer lines than the {self.step} steps that are done; put it back, or remove {self.work} "
                "to begin again"
            )
        write_whole("".join(f"{line.decode()}\n" for line in lines), path)

    def _save(self) -> None:
        state = self._optimizer.state_dict()["state"]
        tensors: Weights = {f"weight.{name}": w.detach() for name, w in self.weights.items()}
        for number, name in enumerate(self._order):
            tensors |= {f"{key}.{name}": state[number][key] for key in MOMENTS}
        tensors["steps"] = torch.tensor(self.step)
        save_state(tensors, self.work / _STATE)

    def _restore(self, path: Path) -> None:
        tensors = load_state(path)
        self._check_state(path, tensors)
        with torch.no_grad():
            for name, w in self.weights.items():
                w.copy_(tensors[f"weight.{name}"])
        state: dict[str, Any] = self._optimizer.state_dict()
        state["state"] = {
            number: {key: tensors[f"{key}.{name}"] for key in MOMENTS} for number, name in enumerate(self._order)
        }
        self._optimizer.load_state_dict(state)
        self.step = int(tensors["steps"])

    def _check_state(self, path: Path, tensors: Mapping[str, Tensor]) -> None:
        """Raises CorruptFileError for tensors that `_save` cannot have written."""
        for name, w in self.weights.items():
            check_kept(path, tensors, f"weight.{name}", w)
        steps = tensors.get("steps", torch.empty(0))
        if steps.ndim or steps.dtype != torch.int64 or not 0 < steps <= self.settings.steps:
            raise damaged(path, f"the number of steps is missing, or is none of {self.settings.steps}")
        for name in self._order:
            check_moments(path, tensors, [f"{key}.{name}" for key in MOMENTS], self.weights[name], int(steps))

    # Steps.

    def run(self, progress: Callable[[Progress], None] = lambda _: None) -> None:
        """Every step that is not done yet. What a step learns depends on its number alone."""
        while self.step < self.settings.steps:
            done = self._one_step()
            if self.rank == 0:
                with (self.work / _LOG).open("a", encoding="utf-8") as log:
                    log.write(json.dumps(asdict(done)) + "\n")
                if self.step % self.settings.save_every == 0 or self.step == self.settings.steps:
                    self._save()
            progress(done)

    def _one_step(self) -> Progress:
        s = self.settings
        first = self.step * s.rows
        batch = batch_of([self.rows.row(first + i) for i in range(self.rank, s.rows, self.world)])
        batch = replace(batch, shares=self._shares(batch))
        losses = self.forward.losses(
            self.weights, batch, sparse=self.step >= s.dense_steps, exits=s.exit_weight > 0,
            looking=s.looking_weight > 0,
        )  # fmt: skip
        self._optimizer.zero_grad()
        whole = (
            losses.language
            + s.exit_weight * losses.exits
            + s.looking_weight * losses.looking
            + s.index_weight * losses.index
        )
        whole.backward()  # type: ignore[no-untyped-call]
        language, looking, index = self._share(losses)
        learnt = [self.weights[name] for name in self._learnt]
        norm = float(torch.nn.utils.clip_grad_norm_([w for w in learnt if w.grad is not None], s.clip))
        if not all(map(math.isfinite, (language, looking, index, norm))):
            raise FreeholdError(
                f"step {self.step + 1}: losses are {language}, {looking} and {index}, the gradient's norm is {norm}; "
                f"begin again with a lower learning_rate than {s.learning_rate}, or index_rate than {s.index_rate}"
            )
        for group in self._optimizer.param_groups:
            group["lr"] = s.rate(group["highest"], self.step)
        self._optimizer.step()
        imbalance = self._balance(losses.loads)
        self.step += 1
        return Progress(self.step, language, looking, index, norm, imbalance)

    def _shares(self, batch: Batch) -> tuple[float, float, float]:
        """See `Batch`: rows differ in how much of them is learnt, and a token counts the same in every process."""
        if self.world == 1:
            return 1.0, 1.0, 1.0
        counts = torch.zeros(3, dtype=torch.float64)
        counts[0] = (batch.targets != NO_TARGET).sum()
        if batch.sources is not None:
            counts[1:] = (batch.sources != NO_SOURCE).sum(dim=1)
        whole = counts.clone()
        dist.all_reduce(whole)
        language, first, last = (counts * self.world / whole.clamp_min(1)).tolist()
        return language, first, last

    def _share(self, losses: Losses) -> tuple[float, float, float]:
        """Every process has the mean of all gradients, and the sums of all loads; the means of the losses."""
        for name in self._learnt:  # experts without a token have no gradient: AdamW still needs one to have a state
            w = self.weights[name]
            w.grad = torch.zeros_like(w) if w.grad is None else w.grad
        figures = torch.stack([losses.language, losses.looking, losses.index]).detach().double()
        if self.world > 1:
            whole = torch.cat([self._grad(name).flatten() for name in self._learnt])
            dist.all_reduce(whole)
            parts = torch.split(whole / self.world, [self.weights[name].numel() for name in self._learnt])
            for name, part in zip(self._learnt, parts, strict=True):
                self._grad(name).copy_(part.view_as(self.weights[name]))
            for load in losses.loads.values():
                dist.all_reduce(load)
            dist.all_reduce(figures)
            figures /= self.world
        return float(figures[0]), float(figures[1]), float(figures[2])

    def _grad(self, name: str) -> torch.Tensor:
        grad = self.weights[name].grad
        assert grad is not None
        return grad

    def _balance(self, loads: Mapping[int, torch.Tensor]) -> float:
        """Experts that got more than their share are chosen less: no loss pulls on the router for it."""
        worst = 1.0
        for layer, load in loads.items():
            mean = load.double().mean()
            bias = self.weights[f"model.layers.{layer}.block_sparse_moe.e_score_correction_bias"]
            bias += self.settings.balance_rate * torch.sign(mean - load).float()
            worst = max(worst, float(load.max() / mean))
        return worst


def write_model(trainer: Trainer, out: Path, card: Mapping[str, Any]) -> None:
    """Writes config.json, model.safetensors (float32) and card.json: a checkpoint as the release's are."""
    out.mkdir(parents=True, exist_ok=True)
    # The card is first, so that what a killed process left is known again; config.json, which makes it a model, last.
    write_whole(_written(card), out / _CARD)
    weights = {name: w.detach() for name, w in trainer.weights.items()}
    save_whole(weights, out / "model.safetensors", metadata={"format": "pt"})
    write_whole(_written(_config(trainer)), out / "config.json")


def check_model_out(trainer: Trainer, out: Path, card: Mapping[str, Any]) -> None:
    """Raises ArgumentError if `out` holds something else than what `write_model` would write."""

    def is_ours() -> bool:
        if not (out / _CARD).is_file() or (out / _CARD).read_bytes() != _written(card).encode():
            return False
        path = out / "config.json"
        return not path.exists() or path.read_bytes() == _written(_config(trainer)).encode()

    check_out(out, is_ours, {beside(out / _CARD).name})


def _config(trainer: Trainer) -> dict[str, Any]:
    return {**release_config(trainer.config), "torch_dtype": "float32"}


def _written(values: Mapping[str, Any]) -> str:
    return json.dumps(dict(values), indent=2) + "\n"
