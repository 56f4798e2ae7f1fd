"""The model in training is the model that runs, and each loss teaches what it is for."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch

import freehold
from freehold.training import m3_forward
from freehold.training.bytes_tokenizer import write_bytes_tokenizer
from freehold.training.looking import NO_SOURCE, looking_loss
from freehold.training.m3_forward import NO_TARGET, Batch, M3Forward
from freehold.training.m3_weights import Weights, first_weights, is_bias, is_index
from freehold.training.pretrain import PretrainSettings, Trainer, write_model
from freehold.training.rows import Row
from freehold.training.shapes import SMALL

CONFIG = replace(
    SMALL, hidden_size=64, num_layers=3, sparse_attention=(False, True, True), moe=(False, True, True), num_q_heads=4,
    block_tokens=16, topk=3, dense_intermediate_size=96, expert_intermediate_size=48, shared_intermediate_size=48,
)  # fmt: skip


def tokens(count: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 256, (count,), generator=torch.Generator().manual_seed(seed))


def batch(*documents: torch.Tensor) -> Batch:
    ids, edges = torch.cat(documents), [0]
    for document in documents:
        edges.append(edges[-1] + len(document))
    targets = torch.cat([torch.cat([d[1:], torch.tensor([NO_TARGET])]) for d in documents])
    return Batch(ids, targets, tuple(pairwise(edges)))


def lively(seed: int = 1) -> Weights:
    """Weights large enough that layers and biases matter."""
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for name, weight in first_weights(CONFIG, seed).items():
        noise = torch.randn(weight.shape, generator=generator)
        found[name] = noise * (0.2 if weight.ndim == 1 else 1.5 * weight.shape[1] ** -0.5)
    return found


class OneRow:
    """The same row, whatever its number."""

    name = "one row"

    def row(self, number: int) -> Row:
        ids = tokens(100, number % 3)
        return Row(ids[:-1], ids[1:], (0,))


@pytest.mark.parametrize("sparse", [True, False])
def test_what_is_written_runs_as_it_was_trained(tmp_path: Path, sparse: bool) -> None:
    trainer = Trainer(CONFIG, OneRow(), PretrainSettings(steps=1, rows=1, dense_steps=0), tmp_path / "work")
    with torch.no_grad():
        for name, weight in lively().items():
            trainer.weights[name].copy_(weight)
    write_model(trainer, tmp_path / "model", {})
    write_bytes_tokenizer(tmp_path / "model")
    ids = tokens(200)
    expected = M3Forward(CONFIG).logits(trainer.weights, batch(ids), sparse=sparse).detach()
    with freehold.LLM(tmp_path / "model", allow_dense=not sparse) as llm:
        assert (llm.logits(ids.tolist()) - expected).abs().max() < 2e-4
    other = M3Forward(CONFIG).logits(trainer.weights, batch(ids), sparse=not sparse).detach()
    assert (other - expected).abs().max() > 1e-2  # the two ways are apart here


def gradients(loss: str, *, sparse: bool) -> dict[str, bool]:
    """Which weights the loss moves."""
    weights = {name: w.requires_grad_(not is_bias(name)) for name, w in lively().items()}
    losses = M3Forward(CONFIG).losses(weights, batch(tokens(150)), sparse=sparse)
    getattr(losses, loss).backward()
    return {n: w.grad is not None and bool((w.grad != 0).any()) for n, w in weights.items() if w.requires_grad}


@pytest.mark.parametrize("sparse", [True, False])
def test_the_loss_of_the_index_teaches_the_index_alone(sparse: bool) -> None:
    moved = gradients("index", sparse=sparse)
    assert {name for name, moves in moved.items() if moves} == {name for name in moved if is_index(name)}


@pytest.mark.parametrize("sparse", [True, False])
def test_the_language_teaches_everything_else(sparse: bool) -> None:
    moved = gradients("language", sparse=sparse)
    still = {name for name, moves in moved.items() if not moves and ".experts." not in name}  # some have no token
    assert still == {name for name in moved if is_index(name)}


def test_documents_do_not_see_each_other() -> None:
    weights, parts = lively(), [tokens(n, n) for n in (70, 1, 130)]
    together = M3Forward(CONFIG).logits(weights, batch(*parts), sparse=True)
    alone = [M3Forward(CONFIG).logits(weights, batch(part), sparse=True) for part in parts]
    assert (together - torch.cat(alone)).abs().max() < 1e-4


def test_gradients_are_those_of_differences() -> None:
    """Along one direction. Attention is dense, and every expert chosen: choices have jumps."""
    forward, one = M3Forward(replace(CONFIG, num_experts_per_token=CONFIG.num_experts)), batch(tokens(60))
    weights = {name: w.requires_grad_(not is_bias(name)) for name, w in lively().items()}
    losses = forward.losses(weights, one, sparse=False)
    (losses.language + losses.index).backward()
    direction = {n: torch.randn(w.shape, generator=torch.Generator().manual_seed(7)) for n, w in weights.items()}
    # What the detached parts would add is not part of the gradient: index weights feel their loss, the others theirs.
    slope = sum(float((w.grad * direction[n]).sum()) for n, w in weights.items() if w.grad is not None)

    def at(step: float, kind: str) -> float:
        moved = {
            n: w.detach() + (step * direction[n] if not is_bias(n) and is_index(n) == (kind == "index") else 0)
            for n, w in weights.items()
        }
        return float(getattr(forward.losses(moved, one, sparse=False), kind))

    step = 3e-4
    found = sum((at(step, kind) - at(-step, kind)) / (2 * step) for kind in ("language", "index"))
    assert abs(found - slope) < 0.02 * abs(slope)


def test_exits_are_the_losses_of_models_that_end_earlier() -> None:
    weights, given = lively(), batch(tokens(60))
    whole = M3Forward(CONFIG).losses(weights, given, sparse=True, exits=True)
    shorter = [
        M3Forward(
            replace(CONFIG, num_layers=n, sparse_attention=CONFIG.sparse_attention[:n], moe=CONFIG.moe[:n])
        ).losses(weights, given, sparse=True)
        for n in range(1, CONFIG.num_layers + 1)
    ]
    assert float(whole.exits) == pytest.approx(sum(float(one.language) for one in shorter[:-1]), rel=1e-5)
    assert float(whole.language) == pytest.approx(float(shorter[-1].language), rel=1e-6)
    assert float(shorter[-1].exits) == 0.0


def test_looking_elsewhere_costs_the_logarithm_of_the_probability_there() -> None:
    generator = torch.Generator().manual_seed(3)
    q, k = torch.randn(9, 4, 8, generator=generator), torch.randn(9, 2, 8, generator=generator)
    sources, documents = torch.full((9,), NO_SOURCE), ((0, 5), (5, 9))
    sources[[2, 4, 8]] = torch.tensor([2, 1, 5])
    found = []
    for place, begin in ((2, 0), (4, 0), (8, 5)):
        heads = [
            torch.softmax(k[begin : place + 1, h // 2] @ q[place, h] * 8**-0.5, dim=0)[sources[place] - begin]
            for h in range(4)
        ]
        found.append(-torch.stack(heads).mean().log())
    loss = looking_loss(q, k, sources, documents)
    assert float(loss) == pytest.approx(float(torch.stack(found).mean()), rel=1e-5)
    assert float(looking_loss(q, k, torch.full((9,), NO_SOURCE), documents)) == 0.0


@pytest.mark.parametrize("layer", [0, 2])
def test_looking_teaches_queries_and_keys_of_a_layer_and_what_is_before_them(layer: int) -> None:
    weights = {name: w.requires_grad_(not is_bias(name)) for name, w in lively().items()}
    sources = torch.full((2, 150), NO_SOURCE)
    sources[layer // 2, 100] = 20
    given = replace(batch(tokens(150)), sources=sources)
    assert float(M3Forward(CONFIG).losses(weights, given, sparse=True).looking) == 0.0  # it was not asked for
    losses = M3Forward(CONFIG).losses(weights, given, sparse=True, looking=True)
    losses.looking.backward()  # type: ignore[no-untyped-call]
    moved = {n for n, w in weights.items() if w.grad is not None and bool((w.grad != 0).any())}
    assert {n for n in moved if n >= f"model.layers.{layer}."} - {"model.norm.weight"} == {
        f"model.layers.{layer}.input_layernorm.weight",
        *(f"model.layers.{layer}.self_attn.{x}_{kind}.weight" for x in "qk" for kind in ("proj", "norm")),
    }
    assert "model.embed_tokens.weight" in moved
    assert ("model.layers.0.self_attn.v_proj.weight" in moved) == (layer == 2)
    assert not any(is_index(name) for name in moved)
    plain = M3Forward(CONFIG).losses(weights, given, sparse=True)
    assert torch.equal(plain.language, losses.language)


@pytest.mark.parametrize("sparse", [True, False])
def test_short_documents_together_are_as_alone(sparse: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = lively()
    given = batch(tokens(40, 1), tokens(1, 2), tokens(40, 3), tokens(90, 4), tokens(33, 5), tokens(1, 6))
    for weight in weights.values():
        weight.requires_grad_()
    found = []
    for most in (256, 0):  # 40 and 33 tokens fit into three blocks of 16, 90 do not
        monkeypatch.setattr(m3_forward, "MOST_TOKENS", most)
        losses = M3Forward(CONFIG).losses(weights, given, sparse=sparse)
        learnt = [w for name, w in weights.items() if not is_bias(name)]
        grads = torch.autograd.grad(losses.language + losses.index, learnt, allow_unused=True)
        found.append((losses.language.detach(), losses.index.detach(), grads))
    assert float(found[0][0]) == pytest.approx(float(found[1][0]), rel=1e-5)
    assert float(found[0][1]) == pytest.approx(float(found[1][1]), rel=1e-4)
    assert float(found[0][1]) > 0
    for one, other in zip(found[0][2], found[1][2], strict=True):
        if one is not None and other is not None:
            assert (one - other).abs().max() <= 1e-3 * other.abs().max() + 1e-7
