"""What each layer's sparseness costs, by another route: the whole model for every measurement."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from freehold.core.blocks import Span, Spans
from freehold.core.errors import ArgumentError
from freehold.loading.checkpoint import open_checkpoint
from freehold.model.compute import compute_for
from freehold.model.index_branch import IndexSizes
from freehold.model.index_sidecar import open_index
from freehold.model.llama import Llama
from freehold.training.corpus import Window
from freehold.training.dense_choice import harms
from freehold.training.frozen import FrozenModel
from freehold.training.kept_losses import KeptLosses
from support.portable_random import portable_tokens
from support.tiny_index import write_tiny_index
from support.tiny_llama import TinyLlamaSpec, write_tiny_llama

LENGTH = 1301
NOTHING = KeptLosses(None, "")
SPEC = TinyLlamaSpec("judged", num_layers=4, seed=5, context_length=LENGTH)


@pytest.fixture(scope="module", params=[3, 40], ids=["few blocks", "all of the first stretch"])
def frozen(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> FrozenModel:
    """A model whose layers 0, 2 and 3 have a random branch, which chooses blocks from token 48 or 640 on."""
    base, branch = tmp_path_factory.mktemp("base"), tmp_path_factory.mktemp("branch")
    write_tiny_llama(SPEC, base)
    write_tiny_index(branch, base, IndexSizes(SPEC.num_kv_heads, 16, 16, request.param), SPEC.hidden_size, [0, 2, 3])
    with open_checkpoint(base) as checkpoint:
        return FrozenModel(Llama.from_checkpoint(checkpoint, compute_for("native")[0], open_index(branch)), LENGTH)


@pytest.fixture(scope="module")
def windows() -> list[Window]:
    lengths = (LENGTH, 1024)
    return [Window("prose", tuple(int(t) for t in portable_tokens(n, seed=n, name="judged"))) for n in lengths]


def test_harms_are_those_of_whole_models(frozen: FrozenModel, windows: list[Window]) -> None:
    said: list[tuple[int, int]] = []
    found = harms(frozen, windows, [0, 2, 3], NOTHING, lambda *done: said.append(done))
    assert said == [(i, 6) for i in range(1, 7)]
    assert frozen.model.dense_layers == frozenset()
    assert [harm.nats for harm in found] == sorted((harm.nats for harm in found), reverse=True)

    def late(dense: set[int]) -> torch.Tensor:
        frozen.model.dense_layers = frozenset(dense)
        return torch.cat([frozen.losses(w.token_ids)[len(w.token_ids) // 2 :] for w in windows]).double()

    try:
        base = late({0, 2, 3})
        for harm in found:
            more = late({0, 2, 3} - {harm.layer}) - base
            assert more.abs().max() > 0
            assert harm.nats == pytest.approx(float(more.mean()), rel=1e-6, abs=1e-9)
            assert harm.error == pytest.approx(float(more.std() / len(more) ** 0.5), rel=1e-6)
    finally:
        frozen.model.dense_layers = frozenset()


def test_what_was_judged_before_is_not_judged_again(
    frozen: FrozenModel, windows: list[Window], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Interrupted behind each layer: the rest has the bits of a judgement that was not, and nothing runs twice."""
    whole = harms(frozen, windows, [0, 2, 3], NOTHING, lambda *_: None)

    class Killed(Exception):  # noqa: N818
        pass

    run, ran = frozen.run_layers, 0

    def watched(h: torch.Tensor, layers: range, first: int = 0) -> torch.Tensor:
        nonlocal ran
        ran += 1
        return run(h, layers, first)

    monkeypatch.setattr(frozen, "run_layers", watched)
    for stop in range(1, 7):
        kept = KeptLosses(tmp_path, "a model")

        def killed(done: int, _of: int, stop: int = stop) -> None:
            if done == stop:
                raise Killed

        ran = 0
        with pytest.raises(Killed):
            harms(frozen, windows, [0, 2, 3], kept, killed)
        assert ran == 3  # the dense model, and the layer from its two sides
    assert frozen.model.dense_layers == frozenset()
    ran = 0
    assert harms(frozen, windows, [0, 2, 3], KeptLosses(tmp_path, "a model"), lambda *_: None) == whole
    assert ran == 0
    harms(frozen, windows, [0, 2, 3], KeptLosses(tmp_path, "another model"), lambda *_: None)
    assert ran == 14


@pytest.mark.parametrize("first", [1, 3, 4])
def test_upper_layers_alone_give_the_bits_of_all(frozen: FrozenModel, windows: list[Window], first: int) -> None:
    ids = windows[0].token_ids
    before = frozen.run_layers(frozen.embedded(ids), range(first))
    kept = before.clone()
    behind = frozen.run_layers(before, range(first, 4))
    assert torch.equal(before, kept)
    assert torch.equal(frozen.losses_behind(behind, ids, 0), frozen.losses(ids))


def test_a_window_that_is_too_long_is_refused(frozen: FrozenModel) -> None:
    """The last block has room for more than the model was made for."""
    window = Window("prose", (1,) * (LENGTH + 1))
    with pytest.raises(ArgumentError, match=f"the window has {LENGTH + 1} tokens; there is room for {LENGTH}"):
        harms(frozen, [window], [0], NOTHING, lambda *_: None)
    assert frozen.model.dense_layers == frozenset()


def test_what_no_sparseness_changes_is_computed_once(
    frozen: FrozenModel, windows: list[Window], monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[tuple[range, int]] = []
    run = frozen.run_layers

    def watched(h: torch.Tensor, layers: range, first: int = 0) -> torch.Tensor:
        assert first + len(h) == LENGTH
        ran.append((layers, first))
        return run(h, layers, first)

    monkeypatch.setattr(frozen, "run_layers", watched)
    assert harms(frozen, windows[:1], [], NOTHING, lambda *_: None) == []
    ran.clear()
    first = {48: 0, 640: 512}[frozen.seen_whole]
    assert [harm.layer for harm in harms(frozen, windows[:1], [2], NOTHING, lambda *_: None)] == [2]
    assert ran == [(range(4), 0), (range(2), first), (range(2, 4), first)]


def test_every_layer_needs_its_lane(frozen: FrozenModel, windows: list[Window]) -> None:
    model = frozen.model
    ids = torch.tensor(windows[0].token_ids[:16])
    spans = Spans.pack([Span(0, 16, range(1))], 16)
    for lanes in (frozen.lanes[:-1], [*frozen.lanes, frozen.lanes[0]]):
        with pytest.raises(ValueError, match="zip"):
            model.forward(ids, spans, lanes, logit_rows=torch.arange(1))
