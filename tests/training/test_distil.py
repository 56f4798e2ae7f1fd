"""The training of one layer's branch: it learns, and it may be killed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from freehold.attention import index_kl_loss, select_blocks
from freehold.core.errors import ArgumentError, CorruptFileError, FreeholdError
from freehold.model.index_branch import IndexSizes
from freehold.training.distil import DistilSettings, Lesson, Student, train
from freehold.training.index_init import Projections
from freehold.training.recall import recall_of
from freehold.training.whole_file import load_state, save_state

HIDDEN, DIM, GROUPS, LENGTH = 24, 8, 2, 128
EVERY = torch.arange(LENGTH)


def lesson(window: int, positions: torch.Tensor) -> Lesson:
    """Attention whose keys really are one key, which a branch can learn."""
    generator = torch.Generator().manual_seed(99)
    one, to_q = (
        torch.randn(HIDDEN, DIM, generator=generator),
        torch.randn(HIDDEN, GROUPS * 2 * DIM, generator=generator),
    )
    x = torch.randn(LENGTH, HIDDEN, generator=torch.Generator().manual_seed(window)) * 0.7
    k = (x @ one)[:, None].repeat(1, GROUPS, 1)
    q = (x[positions] @ to_q).view(-1, GROUPS * 2, DIM)
    return Lesson(x, positions, q, k, torch.ones(LENGTH, DIM // 2), torch.zeros(LENGTH, DIM // 2))


def student(**settings) -> Student:
    generator = torch.Generator().manual_seed(5)
    first = Projections(
        torch.randn(GROUPS * DIM, HIDDEN, generator=generator) * 0.2,
        torch.randn(DIM, HIDDEN, generator=generator) * 0.2,
    )
    wanted = DistilSettings(**{"steps": 60, "queries": 32, "save_every": 10, "learning_rate": 2e-2, **settings})
    return Student(first, wanted, IndexSizes(GROUPS, DIM, 16, 2))


def test_a_branch_learns_where_attention_goes():
    before = student()
    sizes = IndexSizes(GROUPS, DIM, 16, 2)
    unseen = lesson(1000, torch.arange(64, LENGTH))
    first = recall_of(before.q, before.k, unseen, sizes)
    after = train(before, lesson, 8, LENGTH, layer=0)
    last = recall_of(after.q, after.k, unseen, sizes)
    assert sum(after.losses[-10:]) < 0.8 * sum(after.losses[:10])
    assert first.mass + 0.02 < last.mass <= last.oracle + 1e-6
    assert last.oracle == pytest.approx(first.oracle)


def test_enough_blocks_hold_everything():
    recall = recall_of(student().q, student().k, lesson(0, EVERY), IndexSizes(GROUPS, DIM, 16, 8))
    assert (recall.mass, recall.oracle, recall.blocks) == pytest.approx((1, 1, 1))


def test_the_sparse_phase_is_taught_by_the_blocks_that_the_branch_chooses(monkeypatch):
    calls = []

    def watched(*arguments, **options):
        calls.append((arguments, options["block_ids"]))
        return index_kl_loss(*arguments, **options)

    monkeypatch.setattr("freehold.training.distil.index_kl_loss", watched)
    made = train(student(steps=3, sparse_steps=2, queries=LENGTH - 32), lesson, 1, LENGTH, layer=0)
    assert len(made.losses) == 5
    assert [block_ids for _, block_ids in calls[:3]] == [None] * 3
    for (_, _, index_q, index_k), block_ids in calls[3:]:  # queries 32 to the last
        own = select_blocks(
            index_q.detach(), index_k.detach(), query_start=32, block_tokens=16, topk=2, local_blocks=1, init_blocks=0,
            impl="reference",
        )  # fmt: skip
        assert torch.equal(block_ids, own)


@pytest.mark.parametrize("stop", [59, 65])
def test_a_kill_in_either_phase_changes_no_bit(tmp_path: Path, stop: int):
    settings = {"sparse_steps": 20}
    whole = train(student(**settings), lesson, 8, LENGTH, layer=3)

    def kill(step: int, loss: float) -> None:
        if step == stop:
            raise Killed

    state = tmp_path / "state.safetensors"
    with pytest.raises(Killed):
        train(student(**settings), lesson, 8, LENGTH, layer=3, state=state, progress=kill)
    again = train(student(**settings), lesson, 8, LENGTH, layer=3, state=state)
    assert again.losses == whole.losses
    assert torch.equal(again.q, whole.q)


class Killed(Exception):  # noqa: N818
    pass


@pytest.mark.parametrize("stops", [(1,), (9, 10), (25, 3, 31)])
def test_a_run_that_was_killed_ends_with_the_same_bits(tmp_path: Path, stops):
    whole = train(student(), lesson, 8, LENGTH, layer=3)
    state = tmp_path / "state.safetensors"
    for stop in stops:
        left = stop

        def count(step: int, loss: float) -> None:
            nonlocal left
            left -= 1
            if left == 0:
                raise Killed

        with pytest.raises(Killed):
            train(student(), lesson, 8, LENGTH, layer=3, state=state, progress=count)
    again = train(student(), lesson, 8, LENGTH, layer=3, state=state)
    assert again.step == 60
    assert again.losses == whole.losses
    assert torch.equal(again.q, whole.q)
    assert torch.equal(again.k, whole.k)
    done = train(student(), lesson, 8, LENGTH, layer=3, state=state)  # nothing is left to do
    assert torch.equal(done.q, whole.q)


BROKEN = {
    "a value that is no number": ("q", lambda t: t.index_fill(0, torch.tensor([3]), torch.nan), "q has values"),
    "another type": ("k.exp_avg", lambda t: t.double(), "k.exp_avg is missing, or of another shape or type"),
    "a negative square": ("q.exp_avg_sq", lambda t: t - 1.0, "q.exp_avg_sq has a negative square"),
    "losses in a square": ("losses", lambda t: t[None], "its losses are missing"),
    "losses that are whole numbers": ("losses", lambda t: t.long(), "its losses are missing"),
    "losses of steps never done": ("losses", lambda t: torch.cat([t, t]), "120 losses of 60 steps"),
    "another number of steps": ("k.step", lambda t: t + 1, "k.step is missing, or is not the 60 of all"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_state_that_no_training_wrote_is_refused(tmp_path: Path, what: str):
    state = tmp_path / "state.safetensors"
    train(student(), lesson, 8, LENGTH, layer=3, state=state)
    name, broken, said = BROKEN[what]
    kept = load_state(state)
    save_state({**kept, name: broken(kept[name])}, state)
    fresh = student()
    before = fresh.q.clone()
    with pytest.raises(CorruptFileError, match=rf"state.safetensors: is damaged \(.*{said}"):
        train(fresh, lesson, 8, LENGTH, layer=3, state=state)
    assert torch.equal(fresh.q, before)


def test_a_loss_that_is_no_number_names_the_layer():
    def broken(window: int, positions: torch.Tensor) -> Lesson:
        return replace(lesson(window, positions), x=torch.full((LENGTH, HIDDEN), torch.nan))

    with pytest.raises(FreeholdError, match="layer 3, step 1: the loss is nan"):
        train(student(), broken, 8, LENGTH, layer=3)


def test_the_layer_decides_what_is_seen():
    one, other = (train(student(steps=5), lesson, 8, LENGTH, layer=layer) for layer in (0, 1))
    assert one.losses != other.losses


def test_the_rate_rises_and_falls():
    settings = DistilSettings(steps=100, warmup_steps=10, learning_rate=1.0)
    rates = [settings.rate(step) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == rates[9] == rates[10] == pytest.approx(1.0)
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert 0.05 <= rates[-1] < 0.06


def test_settings_are_checked():
    for name, value in (("steps", 0), ("queries", 0), ("learning_rate", 0.0)):
        with pytest.raises(ArgumentError, match=f"{name} is {value}"):
            DistilSettings(**{name: value})
