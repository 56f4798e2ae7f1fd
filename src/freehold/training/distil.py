"""Training the index branch of one layer against the attention of a frozen model (paper Eq. 9 to 12)."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from freehold.attention import index_kl_loss
from freehold.attention.impl.reference import block_scores, top_blocks
from freehold.core.errors import ArgumentError, FreeholdError
from freehold.model.compute import ReferenceCompute
from freehold.model.index_branch import IndexSizes
from freehold.training.index_init import Projections
from freehold.training.schedule import check_rate, check_seed, rate_of
from freehold.training.whole_file import MOMENTS, check_kept, check_moments, damaged, load_state, save_state

_BETAS = (0.9, 0.98)
_LAST = 0.05
"""What remains of the learning rate at the end."""


@dataclass(frozen=True, slots=True)
class DistilSettings:
    """steps: updates of each layer over every key that a query sees, each on `queries` random positions of one window.
    sparse_steps: updates after those, over the blocks that the branch then chooses. learning_rate: after
    `warmup_steps`, then along a cosine to the end of both. save_every: steps after which the state is kept."""

    steps: int = 300
    sparse_steps: int = 0
    queries: int = 128
    learning_rate: float = 7e-3
    warmup_steps: int = 20
    save_every: int = 50
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "queries", "warmup_steps", "save_every"):
            if getattr(self, name) < 1:
                raise ArgumentError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.sparse_steps < 0:
            raise ArgumentError(f"sparse_steps is {self.sparse_steps}; it must not be negative")
        check_rate("learning_rate", self.learning_rate)
        check_seed(self.seed)

    @property
    def all_steps(self) -> int:
        """Of both kinds."""
        return self.steps + self.sparse_steps

    def rate(self, step: int) -> float:
        """The learning rate of a step, counted from 0."""
        return rate_of(self.learning_rate, step, warmup_steps=self.warmup_steps, steps=self.all_steps, last=_LAST)


@dataclass(frozen=True, slots=True)
class Lesson:
    """Some queries of a layer over one window: x (length, hidden_size), positions (queries,) int64, ascending; q
    (queries, num_q_heads, head_dim) and k (length, num_kv_heads, head_dim) as attention sees them; cos and sin (length,
    head_dim / 2)."""

    x: Tensor
    positions: Tensor
    q: Tensor
    k: Tensor
    cos: Tensor
    sin: Tensor


class Student:
    """The index branch of one layer in training. sizes: how it chooses blocks."""

    def __init__(self, first: Projections, settings: DistilSettings, sizes: IndexSizes) -> None:
        self.sizes = sizes
        self.q, self.k = (t.clone().requires_grad_() for t in (first.q, first.k))
        self.settings, self.step = settings, 0
        self._optimizer = torch.optim.AdamW([self.q, self.k], lr=1.0, betas=_BETAS, weight_decay=0.0)
        self.losses: list[float] = []

    def learn(self, lesson: Lesson) -> float:
        """One update; the loss before it. Raises FreeholdError if it is no number."""
        for group in self._optimizer.param_groups:
            group["lr"] = self.settings.rate(self.step)
        self._optimizer.zero_grad()
        loss = self.loss(lesson)
        loss.backward()  # type: ignore[no-untyped-call]
        self._optimizer.step()
        if not all(bool(t.isfinite().all()) for t in (loss, self.q, self.k)):
            raise FreeholdError(
                f"step {self.step + 1}: the loss is {float(loss.detach())}, and what it teaches is no number; give a "
                f"lower learning_rate than {self.settings.learning_rate}, unless the model's own weights are no numbers"
            )
        self.step += 1
        self.losses.append(float(loss.detach()))
        return self.losses[-1]

    def loss(self, lesson: Lesson) -> Tensor:
        """KL(attention || index) of a lesson's queries: over every key they see, or, once that is learnt, over the
        blocks that the branch chooses."""
        index_q, index_k = index_of(self.q, self.k, lesson)
        block_ids = None if self.step < self.settings.steps else self._chosen(index_q, index_k, lesson.positions)
        return index_kl_loss(
            lesson.q, lesson.k, index_q, index_k, positions=lesson.positions, block_ids=block_ids,
            block_tokens=self.sizes.block_tokens,
        )  # fmt: skip

    def _chosen(self, index_q: Tensor, index_k: Tensor, positions: Tensor) -> Tensor:
        s = self.sizes
        scores = block_scores(index_q.detach(), index_k.detach(), positions, s.block_tokens)
        return top_blocks(scores, positions // s.block_tokens, s.topk, s.local_blocks, s.init_blocks)

    def save(self, path: Path) -> None:
        """Weights and optimiser, whole or not at all."""
        state = self._optimizer.state_dict()["state"]
        tensors = {"q": self.q.detach(), "k": self.k.detach(), "losses": torch.tensor(self.losses, dtype=torch.float64)}
        for number, name in enumerate(("q", "k")):
            for key in MOMENTS:
                tensors[f"{name}.{key}"] = state[number][key].clone()
        save_state(tensors, path)

    def restore(self, path: Path) -> None:
        """Goes on where `save` was. Raises CorruptFileError if the file is not what `save` wrote."""
        tensors = load_state(path)
        self._check_state(path, tensors)
        with torch.no_grad():
            self.q.copy_(tensors["q"])
            self.k.copy_(tensors["k"])
        self.losses = tensors["losses"].tolist()
        self.step = len(self.losses)
        state: dict[str, Any] = self._optimizer.state_dict()
        state["state"] = {i: {key: tensors[f"{name}.{key}"] for key in MOMENTS} for i, name in enumerate(("q", "k"))}
        self._optimizer.load_state_dict(state)

    def _check_state(self, path: Path, tensors: Mapping[str, Tensor]) -> None:
        """Raises CorruptFileError for tensors that `save` cannot have written."""
        losses = tensors.get("losses", torch.empty(0))
        if losses.dtype != torch.float64 or losses.ndim != 1 or not bool(losses.isfinite().all()):
            raise damaged(path, "its losses are missing, or are no numbers")
        if len(losses) > self.settings.all_steps:
            raise damaged(path, f"it has {len(losses)} losses of {self.settings.all_steps} steps")
        for name, w in (("q", self.q), ("k", self.k)):
            check_kept(path, tensors, name, w)
            check_moments(path, tensors, [f"{name}.{key}" for key in MOMENTS], w, len(losses))


def index_of(q: Tensor, k: Tensor, lesson: Lesson) -> tuple[Tensor, Tensor]:
    """The branch's queries (queries, num_kv_heads, dim) and keys (length, dim) with projections q and k."""
    rope, positions = ReferenceCompute().rope, lesson.positions
    dim = k.shape[0]
    index_q = (lesson.x[positions] @ q.T).view(len(positions), -1, dim)
    index_k = (lesson.x @ k.T).view(-1, 1, dim)
    return (
        rope(index_q, lesson.cos[positions], lesson.sin[positions]),
        rope(index_k, lesson.cos, lesson.sin)[:, 0],
    )


def train(
    student: Student,
    lesson_of: Callable[[int, Tensor], Lesson],
    num_windows: int,
    length: int,
    *,
    layer: int,
    state: Path | None = None,
    progress: Callable[[int, float], None] = lambda step, loss: None,
) -> Student:
    """All steps that the student has not done yet. What a step sees depends on the seed, the layer and its number
    alone, so that a run that was killed ends with the bits of one that was not.

    lesson_of(window, positions) -> the layer's lesson. state: file of the student's state, kept every `save_every`
    steps.
    """
    settings = student.settings
    if state is not None and state.exists():
        student.restore(state)
    while student.step < settings.all_steps:
        draw = random.Random(f"{settings.seed} {layer} {student.step}")
        window = draw.randrange(num_windows)
        # Early positions have few keys to choose from, and are dense at inference anyway.
        least = min(256, length // 4)
        positions = torch.tensor(sorted(draw.sample(range(least, length), min(settings.queries, length - least))))
        try:
            loss = student.learn(lesson_of(window, positions))
        except FreeholdError as error:
            raise FreeholdError(f"layer {layer}, {error}") from None
        if state is not None and (student.step % settings.save_every == 0 or student.step == settings.all_steps):
            student.save(state)
        progress(student.step, loss)
    return student
