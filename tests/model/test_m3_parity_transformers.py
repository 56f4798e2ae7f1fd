"""MiniMax-M3's text model against transformers: logits, selected blocks and greedy continuations.

The default run takes most lengths for one shape and a short and a long one for the others, the long one beyond the
dense window; FREEHOLD_PROVE=1 takes every length for every shape and implementation.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

import freehold
from support import m3_oracle
from support.m3_oracle import Continuation, Reference
from support.m3_prompts import CONTINUATION, LENGTHS, prompt
from support.tiny_m3 import SHAPES, ConfigForm, TinyM3Spec, build_tiny_m3, quiet_transformers, write_tiny_m3

LOGIT_TOLERANCE = 2e-4
EVERY_LENGTH = "release_selection"
LONG_REFERENCE = "two_local_blocks"
PROVE = os.environ.get("FREEHOLD_PROVE") == "1"
pytestmark = [pytest.mark.slow] if PROVE else []
IMPLS = ("reference", "native")


def _lengths(shape: str, impl: str) -> tuple[int, ...]:
    if PROVE:
        return LENGTHS
    # Both the oracle and the reference are slow at length; the stored rows of tests/golden hold more of them.
    if shape == EVERY_LENGTH:
        return (1, 127, 128, 129, 2049, 2500) if impl == "native" else (1, 129, 2049)
    return (129, 2500) if impl == "native" or shape == LONG_REFERENCE else (129,)


CASES = [(shape, length, impl) for shape in SHAPES for impl in IMPLS for length in _lengths(shape, impl)]
# One continuation within the dense window and one beyond it always, the others in the long run.
CONTINUED = [
    (shape, length, impl)
    for shape, length, impl in CASES
    if PROVE or length == 129 or (length == 2500 and impl == "native" and shape == EVERY_LENGTH)
]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, ConfigForm], Path]:
    """Where the checkpoint of a shape stands, written on first use."""

    @cache
    def write(shape: str, config_form: ConfigForm = "release") -> Path:
        place = tmp_path_factory.mktemp(f"{shape}-{config_form}")
        write_tiny_m3(SHAPES[shape], place, config_form=config_form)
        return place

    return write


@cache
def _model(shape: str) -> Any:
    return build_tiny_m3(SHAPES[shape])


@cache
def _reference(shape: str, length: int) -> Reference:
    """transformers' answer, with the assurance that no decision in it was close."""
    reference = m3_oracle.run(_model(shape), prompt(shape, length))
    assert not reference.tight_positions, f"{shape}, {length} tokens: close decisions; make the prompts anew"
    return reference


@cache
def _continuation(shape: str, length: int) -> Continuation:
    answer = m3_oracle.continue_greedily(_model(shape), prompt(shape, length), CONTINUATION)
    assert not answer.is_close, f"{shape}, {length} tokens: close decisions; make the prompts anew"
    return answer


@pytest.fixture(scope="module")
def engine(directory: Callable[..., Path]) -> Iterator[Callable[[str, str], freehold.LLM]]:
    """The engine over a shape's checkpoint, loaded on first use."""
    loaded: dict[tuple[str, str], freehold.LLM] = {}

    def load(shape: str, impl: str) -> freehold.LLM:
        if (shape, impl) not in loaded:
            loaded[shape, impl] = freehold.LLM(directory(shape), impl=impl, kv_dtype="float32")
        return loaded[shape, impl]

    yield load
    for llm in loaded.values():
        llm.close()


@pytest.mark.parametrize(("shape", "length", "impl"), CASES)
def test_logits_agree(engine: Callable[[str, str], freehold.LLM], shape: str, length: int, impl: str) -> None:
    reference = _reference(shape, length)
    logits = engine(shape, impl).logits(reference.tokens)
    assert logits.shape == reference.logits.shape
    assert logits.dtype == torch.float32
    difference = (logits - reference.logits).abs().amax(dim=-1)
    worst = int(difference.argmax())
    assert float(difference[worst]) <= LOGIT_TOLERANCE, f"logits differ by {difference[worst]} at position {worst}"


@pytest.mark.parametrize(("shape", "length", "impl"), CASES)
def test_selected_blocks_are_identical(
    engine: Callable[[str, str], freehold.LLM], shape: str, length: int, impl: str
) -> None:
    reference = _reference(shape, length)
    selected = engine(shape, impl).selected_blocks(reference.tokens)
    assert selected.keys() == {layer for layer, sparse in enumerate(SHAPES[shape].sparse_layers) if sparse}
    for layer, wanted in reference.block_ids.items():
        assert selected[layer].shape == wanted.shape
        assert selected[layer].dtype == torch.int32
        differing = (selected[layer] != wanted).any(dim=-1).nonzero().tolist()
        assert not differing, f"layer {layer}: other blocks at (position, index head) {differing[:5]}"


@pytest.mark.parametrize(("shape", "length", "impl"), CONTINUED)
def test_greedy_continuations_are_identical(
    engine: Callable[[str, str], freehold.LLM], shape: str, length: int, impl: str
) -> None:
    answer = engine(shape, impl).generate(
        prompt(shape, length), max_tokens=CONTINUATION, temperature=0.0, ignore_eos=True
    )
    assert list(answer.token_ids) == _continuation(shape, length).tokens


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("prefill_chunk", [1000, 96])
def test_parity_holds_for_any_prefill_chunk(directory: Callable[..., Path], impl: str, prefill_chunk: int) -> None:
    """Chunks that end inside a block; the shape has two local blocks and a small block size."""
    reference = _reference("two_local_blocks", 2500)
    with freehold.LLM(directory("two_local_blocks"), impl=impl, prefill_chunk=prefill_chunk) as llm:
        assert float((llm.logits(reference.tokens) - reference.logits).abs().max()) <= LOGIT_TOLERANCE


@pytest.mark.parametrize("shape", ["release_selection", "mixed_layers"])
def test_transformers_own_configuration_names_the_same_model(
    directory: Callable[..., Path], engine: Callable[[str, str], freehold.LLM], shape: str
) -> None:
    tokens = prompt(shape, 129)
    with freehold.LLM(directory(shape, "transformers"), impl="native") as llm:
        assert torch.equal(llm.logits(tokens), engine(shape, "native").logits(tokens))


# ------------------------------------------------------------------------- what the fixtures themselves promise


@pytest.mark.parametrize("shape", SHAPES)
def test_the_release_configuration_is_read_by_transformers_as_meant(directory: Callable[..., Path], shape: str) -> None:
    """Release names and release keys, read back by transformers, give the weights and the logits we started from."""
    from transformers import AutoModelForImageTextToText

    with quiet_transformers():
        loaded: Any = AutoModelForImageTextToText.from_pretrained(
            directory(shape), dtype=torch.float32, attn_implementation="eager", output_loading_info=True
        )
    again, report = loaded
    assert not report["missing_keys"], report
    assert not report["unexpected_keys"], report
    again.set_experts_implementation("eager")
    ours = _model(shape).state_dict()
    for name, tensor in again.state_dict().items():
        assert torch.equal(tensor, ours[name]), name
    tokens = torch.tensor([prompt(shape, 129)])
    with torch.no_grad():
        assert torch.equal(again(input_ids=tokens).logits, _model(shape)(input_ids=tokens).logits)


@pytest.mark.parametrize("shape", SHAPES)
def test_long_prompts_leave_blocks_out(shape: str) -> None:
    """Otherwise dense attention would pass for the sparse one."""
    spec = SHAPES[shape]
    tokens = prompt(shape, 2500)
    sparse = _reference(shape, len(tokens))
    with torch.no_grad():
        dense = _without_selection(_model(shape), tokens)
    difference = (sparse.logits - dense).abs().amax(dim=-1)
    assert float(difference[: spec.dense_window].max()) <= LOGIT_TOLERANCE
    assert float(difference[spec.dense_window :].max()) > 100 * LOGIT_TOLERANCE


def _without_selection(model: Any, tokens: list[int]) -> torch.Tensor:
    attentions = [layer.self_attn for layer in model.model.language_model.layers]
    indexers = [attention.indexer for attention in attentions]
    try:
        for attention in attentions:
            attention.indexer = None
        logits: torch.Tensor = model(input_ids=torch.tensor([tokens]), use_cache=False).logits[0]
        return logits
    finally:
        for attention, indexer in zip(attentions, indexers, strict=True):
            attention.indexer = indexer


def test_index_heads_choose_for_themselves() -> None:
    """Otherwise one selection shared by all groups would pass."""
    for block_ids in _reference("four_index_heads", 2500).block_ids.values():
        assert bool((block_ids[-1, 1:] != block_ids[-1, :1]).any())


def test_the_clamped_shape_runs_into_every_clamp() -> None:
    spec = SHAPES["clamped_gates"]
    shares = _clamped_shares(spec, prompt(spec.name, 129))
    assert shares.keys() == {"gate above", "up above", "up below", "gate below, where no clamp is"}
    assert min(shares.values()) > 0.01, shares


def test_the_other_shapes_stay_clear_of_the_clamps() -> None:
    """So that a wrong clamp and a wrong gate show in different tests."""
    spec = SHAPES["no_dense_lead"]
    assert max(_clamped_shares(spec, prompt(spec.name, 129)).values()) < 0.001


def _clamped_shares(spec: TinyM3Spec, tokens: list[int]) -> dict[str, float]:
    """The smallest share of gates and ups beyond 7 over all feed-forward parts: dense, shared and routed."""
    shares: dict[str, float] = {}

    def note(gate_up: torch.Tensor) -> None:
        gate, up = gate_up.chunk(2, dim=-1)
        for name, beyond in (
            ("gate above", gate > 7),
            ("up above", up > 7),
            ("up below", up < -7),
            ("gate below, where no clamp is", gate < -7),
        ):
            shares[name] = min(shares.get(name, 1.0), float(beyond.float().mean()))

    model = build_tiny_m3(spec)
    for name, module in model.named_modules():
        if name.endswith("gate_up_proj"):
            module.register_forward_hook(lambda module, inputs, output: note(output))
        elif name.endswith("mlp.experts"):
            # Experts are one module without inner ones: score their tokens from the module's own input.
            module.register_forward_hook(
                lambda module, inputs, output: note(torch.einsum("th,eih->tei", inputs[0], module.gate_up_proj))
            )
    with torch.no_grad():
        model(input_ids=torch.tensor([tokens]), use_cache=False)
    return shares
