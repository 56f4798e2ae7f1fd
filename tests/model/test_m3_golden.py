"""The stored rows of tests/golden, by transformers and by plain loops: should either side change, it shows."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import freehold
from freehold.attention import attend_blocks, select_blocks
from support.golden import MODEL_CASE, OPERATOR_CASES, OperatorCase, sampled_rows, stored
from support.m3_prompts import prompt
from support.tiny_m3 import SHAPES, write_tiny_m3

IMPLS = ("reference", "native")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("golden")
    write_tiny_m3(SHAPES[MODEL_CASE.shape], place)
    return place


@pytest.mark.parametrize("impl", ["native", pytest.param("reference", marks=pytest.mark.slow)])
def test_model_matches_the_stored_rows(checkpoint: Path, impl: str) -> None:
    tokens = prompt(MODEL_CASE.shape, MODEL_CASE.length)
    rows = sampled_rows(len(tokens), MODEL_CASE.shape)
    golden = stored("tiny_m3")
    assert len(tokens) > 2048
    with freehold.LLM(checkpoint, impl=impl) as llm:
        logits, selected = llm.logits(tokens), llm.selected_blocks(tokens)
    torch.testing.assert_close(logits[rows], torch.from_numpy(golden["logits"]), atol=2e-4, rtol=0)
    layers = {int(name.removeprefix("block_ids.")) for name in golden if name != "logits"}
    assert selected.keys() == layers
    for layer in layers:
        assert torch.equal(selected[layer][rows], torch.from_numpy(golden[f"block_ids.{layer}"]))


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("case", OPERATOR_CASES, ids=lambda case: case.name)
def test_operators_match_the_stored_rows(case: OperatorCase, impl: str) -> None:
    inputs = {name: torch.from_numpy(array) for name, array in case.inputs().items()}
    golden, rows = stored("operators"), sampled_rows(case.total, case.name)
    block_ids = select_blocks(
        inputs["index_q"],
        inputs["index_k"],
        query_start=0,
        block_tokens=case.block_tokens,
        topk=case.topk,
        local_blocks=case.local_blocks,
        impl=impl,
    )
    assert torch.equal(block_ids[rows], torch.from_numpy(golden[f"{case.name}.block_ids"]))
    q, k, v = (inputs[name] for name in ("q", "k", "v"))
    out = attend_blocks(q, k, v, block_ids, query_start=0, block_tokens=case.block_tokens, impl=impl)
    torch.testing.assert_close(out[rows], torch.from_numpy(golden[f"{case.name}.out"]), atol=2e-6, rtol=1e-5)


def test_fixtures_cover_a_selection() -> None:
    """The stored rows of every case leave blocks out; otherwise dense attention would match them."""
    golden = stored("operators")
    for case in OPERATOR_CASES:
        rows = sampled_rows(case.total, case.name)
        last = golden[f"{case.name}.block_ids"][-1]
        assert rows[-1] // case.block_tokens + 1 > case.topk
        assert (last >= 0).all()
