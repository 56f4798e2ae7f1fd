"""transformers' M3 with our kernels gives what its own eager attention gives."""

from __future__ import annotations

import pytest
import torch

from freehold.core.errors import ArgumentError
from freehold.integrations import transformers as freehold_transformers
from support.tiny_m3 import SHAPES, build_tiny_m3


@pytest.fixture(scope="module", params=["two_local_blocks", "four_index_heads"])
def model(request):
    freehold_transformers.register()
    return build_tiny_m3(SHAPES[request.param])


def tokens(count: int) -> torch.Tensor:
    return torch.randint(0, 256, (1, count), generator=torch.Generator().manual_seed(count))


@pytest.mark.parametrize("count", [1, 130, 700])
def test_logits_equal_eager(model, count):
    with torch.no_grad():
        model.set_attn_implementation("eager")
        eager = model(input_ids=tokens(count)).logits
        model.set_attn_implementation("freehold")
        ours = model(input_ids=tokens(count)).logits
    assert (ours - eager).abs().max() < 1e-4


def test_generation_with_a_cache_equals_eager(model):
    answers = []
    for name in ("eager", "freehold"):
        model.set_attn_implementation(name)
        ids = tokens(300)
        answers.append(
            model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=16,
                do_sample=False,
                pad_token_id=0,
            )
        )
    assert torch.equal(*answers)


def test_padding_is_refused(model):
    model.set_attn_implementation("freehold")
    mask = torch.ones(1, 40, dtype=torch.long)
    mask[0, :3] = 0
    with pytest.raises(ArgumentError, match="without padding"), torch.no_grad():
        model(input_ids=tokens(40), attention_mask=mask)
