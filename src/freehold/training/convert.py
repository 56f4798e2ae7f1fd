"""`convert`: an index branch for a dense model, trained against its own attention.

One pass of the frozen model keeps what every layer reads; then the branches of some layers at a time are trained, so
that memory holds these layers alone. Everything is kept in a work directory: the same call goes on where a killed one
was, with the bits of one that was not.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any

import torch

from freehold.core.errors import ArgumentError, ConfigError, FreeholdError
from freehold.core.nats import MOST_NATS
from freehold.loading.checkpoint import Checkpoint
from freehold.model.compute import compute_for
from freehold.model.index_branch import IndexSizes
from freehold.model.index_sidecar import open_index
from freehold.model.llama import Llama
from freehold.model.registry import family_of, load_tokenizer
from freehold.training.captured import Captured
from freehold.training.corpus import Document, Window, windows_of
from freehold.training.dense_choice import Harm, harms
from freehold.training.distil import DistilSettings, Student, train
from freehold.training.frozen import FrozenModel
from freehold.training.index_init import Init, Projections, first_index
from freehold.training.kept_losses import KeptLosses
from freehold.training.lessons import Lessons
from freehold.training.places import check_out, check_work
from freehold.training.recall import Recall, recall_of
from freehold.training.side_by_side import side_by_side
from freehold.training.sidecar_writer import rounded, write_sidecar
from freehold.training.whole_file import beside, load_state, write_whole

_SAMPLE_ROWS = 1024
_JUDGED_ROWS = 64
_CARD = "conversion.json"
"""In the work directory: of which conversion it is."""
_EVERY, _CHOSEN = "every-layer", "chosen-layers"
"""Branches in it."""
_LOSSES = "losses"
"""In it: of held-out windows, as far as they were read."""

Progress = Callable[[str, int, int], None]
"""Called with (what is done, so much, of so much)."""


@dataclass(frozen=True, slots=True)
class ConvertSettings:
    """windows, window_tokens: captured to train with. block_tokens, topk: of the selection. dense_layers: how many
    layers stay dense, chosen by measurement. keep_dense: these instead. init: see `first_index`. judged_windows:
    held-out windows for the choice of layers and the report."""

    windows: int = 40
    window_tokens: int = 4096
    block_tokens: int = 128
    topk: int = 16
    dense_layers: int = 3
    keep_dense: tuple[int, ...] | None = None
    init: Init = "svd"
    judged_windows: int = 2
    distil: DistilSettings = field(default_factory=DistilSettings)

    def __post_init__(self) -> None:
        for name in ("windows", "window_tokens", "topk", "judged_windows"):
            if getattr(self, name) < 1:
                raise ArgumentError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.block_tokens < 16 or self.block_tokens % 16:
            raise ArgumentError(f"block_tokens is {self.block_tokens}; it must be a multiple of 16")
        if self.dense_layers < 0:
            raise ArgumentError(f"dense_layers is {self.dense_layers}; it must not be negative")
        if self.block_tokens * self.topk >= self.window_tokens:
            raise ArgumentError(
                f"topk is {self.topk} and block_tokens {self.block_tokens}, which is all of window_tokens "
                f"{self.window_tokens}: nothing would be left out; give longer windows, or fewer or smaller blocks"
            )

    def check_layers(self, num_layers: int) -> None:
        """Raises ArgumentError for layers that a model of so many does not have, or if none would be sparse."""
        for layer in self.keep_dense or ():
            if not 0 <= layer < num_layers:
                raise ArgumentError(f"keep_dense names layer {layer}; the model has layers 0 to {num_layers - 1}")
        dense = self.dense_layers if self.keep_dense is None else len(set(self.keep_dense))
        if dense >= num_layers:
            raise ArgumentError(f"every layer of {num_layers} is to stay dense; nothing is left to be sparse")


@dataclass(frozen=True, slots=True)
class Perplexities:
    """Of the model as it was and with its branch, on `tokens` tokens of held-out windows."""

    dense: float
    sparse: float
    tokens: int


@dataclass(frozen=True, slots=True)
class Converted:
    """What a conversion made. losses: mean of each layer's last 50 steps, in nats. recalls: of each layer on held-out
    windows. harms: of each layer alone, the largest first; empty where the layers were named. perplexities: on the
    same windows, a first look; `freehold eval` reads more of them."""

    path: Path
    sparse_layers: tuple[int, ...]
    losses: dict[int, float]
    recalls: dict[int, Recall]
    harms: tuple[Harm, ...]
    perplexities: Perplexities


def convert(
    checkpoint: Checkpoint,
    out: Path,
    documents: Sequence[Document],
    settings: ConvertSettings,
    *,
    work: Path,
    origin: str,
    progress: Progress = lambda what, done, total: None,
) -> Converted:
    """Trains the branch of every layer and writes those of the sparse ones to `out`. origin: of the texts, in words.

    Raises ConfigError for a model that is not of the Llama family, ArgumentError for texts without enough tokens or a
    work directory of another conversion, FreeholdError for a model that predicts nothing.
    """
    if family_of(checkpoint.config, checkpoint.format, str(checkpoint.path)) != "llama":
        raise ConfigError(f"{checkpoint.path}: only models of the Llama family are converted; this one has a branch")
    return _Conversion(checkpoint, out, documents, settings, work, origin, progress).run()


class _Conversion:
    def __init__(
        self,
        checkpoint: Checkpoint,
        out: Path,
        documents: Sequence[Document],
        settings: ConvertSettings,
        work: Path,
        origin: str,
        progress: Progress,
    ) -> None:
        self.checkpoint, self.out, self.settings = checkpoint, out, settings
        self.work, self.origin, self.progress = work, origin, progress
        self.documents = documents
        self.model = Llama.from_checkpoint(checkpoint, compute_for("native")[0])
        c = self.model.config
        self.sizes = IndexSizes(c.num_kv_heads, c.head_dim, settings.block_tokens, settings.topk)
        if c.attention_bias:
            raise ConfigError(f"{checkpoint.path}: its queries and keys have biases, which a branch does not have")
        settings.check_layers(c.num_layers)
        length, seed = settings.window_tokens, settings.distil.seed
        if length > c.context_length:
            raise ArgumentError(f"window_tokens is {length}; the model's context has {c.context_length}")
        encode = load_tokenizer(checkpoint).encode
        learned, judged = [d for d in documents if not d.held_out], [d for d in documents if d.held_out]
        self.windows = windows_of(learned, encode, length, settings.windows, seed=seed, which="to learn from")
        self.judged = windows_of(
            judged,
            encode,
            length,
            settings.judged_windows,
            seed=seed,
            which="held out to judge",
        )
        self._claim()

    def _claim(self) -> None:
        """The work directory is this conversion's, or nobody's; and so is what comes out."""
        told = json.dumps(self._description(), sort_keys=True)
        check_work(self.work, _CARD, told, "the work of another conversion")
        self._check_out()
        self.work.mkdir(parents=True, exist_ok=True)
        self.out.mkdir(parents=True, exist_ok=True)
        write_whole(told, self.work / _CARD)

    def _check_out(self) -> None:
        check_out(self.out, self._made_out, {beside(Path("config.json")).name})

    def _made_out(self) -> bool:
        """Whether this conversion wrote what is in `out`."""
        try:
            found = json.loads((self.out / "config.json").read_bytes())
            same = bool(found["base_digest"] == self.checkpoint.digest())
            return same and json.loads(json.dumps(self._subject())).items() <= found["card"].items()
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return False

    def _description(self) -> dict[str, Any]:
        s = self.settings
        return {
            "base": self.checkpoint.digest(),
            "tokens": self._tokens_digest(),
            "init": s.init,
            "windows": len(self.windows),
            "window_tokens": s.window_tokens,
            "distil": asdict(s.distil),
            # Over every key, a branch learns the same whatever it will choose.
            **({"block_tokens": s.block_tokens, "topk": s.topk} if s.distil.sparse_steps else {}),
        }

    def _tokens_digest(self) -> str:
        """Of the windows, those that judge too: an edited text has the same name, and may have as many tokens."""
        return hashlib.sha256(repr([w.token_ids for w in (*self.windows, *self.judged)]).encode()).hexdigest()

    def run(self) -> Converted:
        before, tokens = self._nats("densely", FrozenModel(self.model, self.settings.window_tokens), self._kept(""))
        captured = self._capture("captured", self.windows)
        judged = self._capture("judged", self.judged)
        learnt = self._learn(captured, judged)
        branches, losses, recalls = (dict(enumerate(each)) for each in zip(*learnt, strict=True))
        dense, found = self._dense(branches)
        sparse = tuple(i for i in branches if i not in dense)
        chosen = {i: branches[i] for i in sparse}
        after, _ = self._nats("sparsely", *self._with_branches(_CHOSEN, chosen))
        perplexities = Perplexities(math.exp(before), math.exp(after), tokens)
        card = self._card(losses, recalls, found, perplexities, dense)
        self._check_out()  # hours may have passed
        write_sidecar(self.out, chosen, self.sizes, self.checkpoint.digest(), card)
        return Converted(self.out, sparse, losses, recalls, found, perplexities)

    def _capture(self, name: str, windows: list[Window]) -> Captured:
        c, length = self.model.config, self.settings.window_tokens
        captured = Captured(self.work / name, c.num_layers, len(windows), length, c.hidden_size)
        captured.fill(
            FrozenModel(self.model, length), windows, lambda done, of: self.progress(f"{name} windows", done, of)
        )
        return captured

    def _learn(self, captured: Captured, judged: Captured) -> list[tuple[Projections, float, Recall]]:
        """Of every layer: the branch, the mean loss of its last steps, and its recall. No layer's depends on another's:
        they are trained side by side."""
        layers, steps = self.model.config.num_layers, self.settings.distil.all_steps
        taken, telling = [0] * layers, Lock()

        def learn(layer: int, go_on: Callable[[], None]) -> tuple[Projections, float, Recall]:
            def report(step: int, _loss: float) -> None:
                go_on()
                with telling:
                    taken[layer] = step
                    self.progress("steps", sum(taken), layers * steps)

            with _no_memory_named(layer):
                student = self._train(layer, captured, report)
                taken[layer] = steps  # those of a command before, too
                branch, last = rounded(Projections(student.q, student.k)), student.losses[-50:]
                return branch, sum(last) / len(last), self._recall(layer, judged, branch)

        return side_by_side(learn, layers)

    def _train(self, layer: int, captured: Captured, report: Callable[[int, float], None]) -> Student:
        lessons, settings = Lessons(self.model, captured, layer), self.settings.distil
        c = self.model.config
        state = self.work / f"layer-{layer}.safetensors"
        generator = torch.Generator().manual_seed(settings.seed * 1000 + layer)
        first = first_index(
            lessons.attention(), lessons.sample(_SAMPLE_ROWS), num_kv_heads=c.num_kv_heads, head_dim=c.head_dim,
            init=self.settings.init, generator=generator,
        )  # fmt: skip
        return train(
            Student(first, settings, self.sizes), lessons.of, len(self.windows), self.settings.window_tokens,
            layer=layer, state=state, progress=report,
        )  # fmt: skip

    def _recall(self, layer: int, judged: Captured, branch: Projections) -> Recall:
        lessons, length = Lessons(self.model, judged, layer), self.settings.window_tokens
        positions = torch.linspace(length // 2, length - 1, _JUDGED_ROWS).long()
        each = [recall_of(branch.q, branch.k, lessons.of(w, positions), self.sizes) for w in range(len(self.judged))]
        return Recall(*(sum(getattr(r, name) for r in each) / len(each) for name in ("mass", "oracle", "blocks")))

    def _dense(self, branches: dict[int, Projections]) -> tuple[frozenset[int], tuple[Harm, ...]]:
        """Which layers stay dense, and why."""
        named = self.settings.keep_dense
        if named is not None:
            return frozenset(named), ()
        if self.settings.dense_layers == 0:
            return frozenset(), ()
        sparse, kept = self._with_branches(_EVERY, branches)
        found = harms(
            sparse, self.judged, branches, kept,
            lambda done, of: self.progress("layers of windows judged", done, of),
        )  # fmt: skip
        return frozenset(harm.layer for harm in found[: self.settings.dense_layers]), tuple(found)

    def _with_branches(self, name: str, branches: dict[int, Projections]) -> tuple[FrozenModel, KeptLosses]:
        """The model with these branches, which are kept in the work directory under a name, and its losses."""
        directory = self.work / name
        write_sidecar(directory, branches, self.sizes, self.checkpoint.digest(), {})
        index = open_index(directory)
        sparse = Llama.from_checkpoint(self.checkpoint, self.model.compute, index)
        return FrozenModel(sparse, self.settings.window_tokens), self._kept(index.checkpoint.digest())

    def _kept(self, branch: str) -> KeptLosses:
        return KeptLosses(self.work / _LOSSES, f"{self.checkpoint.digest()} {branch}")

    def _nats(self, how: str, model: FrozenModel, kept: KeptLosses) -> tuple[float, int]:
        """Mean loss of held-out tokens, and their number. Raises FreeholdError if the model predicts none of them."""
        found = []
        for number, window in enumerate(self.judged, 1):
            found.append(kept.of("all layers", window, model.losses))
            self.progress(f"held-out windows read {how}", number, len(self.judged))
        nats = float(torch.cat(found).double().numpy().mean())  # torch's own order of adding depends on its threads
        if not nats < MOST_NATS:  # a NaN too
            raise FreeholdError(
                f"{self.checkpoint.path}: held-out text costs {nats:.4g} nats a token, {how}; a model that predicts "
                "nothing is not converted"
            )
        return nats, sum(map(len, found))

    def _card(
        self,
        losses: dict[int, float],
        recalls: dict[int, Recall],
        found: tuple[Harm, ...],
        perplexities: Perplexities,
        dense: frozenset[int],
    ) -> dict[str, Any]:
        return {
            **self._subject(),
            "dense_layers": sorted(dense),
            "perplexity": asdict(perplexities),
            "kl_nats": {str(i): round(loss, 4) for i, loss in losses.items()},
            "recall": {str(i): {k: round(v, 4) for k, v in asdict(r).items()} for i, r in recalls.items()},
            "harm_nats": {str(h.layer): [round(h.nats, 5), round(h.error, 5)] for h in found},
        }

    def _subject(self) -> dict[str, Any]:
        """What the card says before anything is learnt."""
        learned = [d for d in self.documents if not d.held_out]
        names = hashlib.sha256("\n".join(sorted(d.name for d in learned)).encode(errors="surrogateescape")).hexdigest()
        return {
            "texts": self.origin,
            "documents": len(learned),
            "names_sha256": names,
            "tokens": len(self.windows) * self.settings.window_tokens,
            "tokens_sha256": self._tokens_digest(),
            "settings": {**asdict(self.settings), "distil": asdict(self.settings.distil)},
        }


@contextmanager
def _no_memory_named(layer: int) -> Iterator[None]:
    try:
        yield
    except (MemoryError, RuntimeError) as error:  # torch has a RuntimeError for it, without a type of its own
        if isinstance(error, RuntimeError) and "allocate memory" not in str(error):
            raise
        raise FreeholdError(
            f"layer {layer}: there is not enough memory ({str(error) or 'it has run out'}); with OMP_NUM_THREADS=1 "
            "one layer learns at a time, and the same command goes on; fewer queries begin anew, in another directory"
        ) from None


def curves(work: Path) -> dict[int, list[float]]:
    """The losses of each layer's steps, as far as they were kept."""
    found = {}
    for path in sorted(work.glob("layer-*.safetensors"), key=lambda p: int(p.stem.split("-")[1])):
        found[int(path.stem.split("-")[1])] = load_state(path)["losses"].tolist()
    return found


def remove_work(work: Path) -> None:
    """Removes what a conversion kept, and nothing else; what says whose it is goes last, so that a removal that was
    interrupted can be followed by the same conversion."""
    for name in ("captured", "judged"):
        (work / f"{name}.json").unlink(missing_ok=True)  # before the file of which it speaks
        (work / name).unlink(missing_ok=True)
    for path in (*work.glob("layer-*.safetensors"), *work.glob("*.new")):
        path.unlink()
    for name in (_EVERY, _CHOSEN, _LOSSES):
        shutil.rmtree(work / name, ignore_errors=True)
    (work / _CARD).unlink(missing_ok=True)
